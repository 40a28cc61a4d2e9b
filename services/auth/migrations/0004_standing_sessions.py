"""Standing sessions, one a user and kind, for credentials that come with every call; and identities of other issuers."""

import sqlalchemy as sa
from alembic import op

from services.runtime.migrations import isolate_by_user

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("sessions", sa.Column("kind", sa.Text, server_default=sa.text("'sign_in'"), nullable=False))
    # Every row of before is 'sign_in', by the default: a look at a table of some rows a user, without a rewrite.
    op.create_check_constraint("sessions_kind_check", "sessions", "kind in ('sign_in', 'basic', 'external')")
    # No row of before is in it, so that building it reads the table once and keeps nobody waiting for long.
    op.create_index(
        "sessions_standing_key",
        "sessions",
        ["user_id", "kind"],
        unique=True,
        postgresql_where=sa.text("end_time is null and kind <> 'sign_in'"),
    )
    _create_external_identities()


def _create_external_identities() -> None:
    op.create_table(
        "external_identities",
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("issuer", "subject", name="external_identities_pkey"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="external_identities_user_id_fkey", ondelete="CASCADE"),
        sa.CheckConstraint("char_length(subject) between 1 and 255", name="external_identities_subject_check"),
    )
    op.create_index("external_identities_user_id_idx", "external_identities", ["user_id"])
    isolate_by_user("external_identities")
