"""Administration of users: phone numbers, one-time tokens, deletions, the audit log, and how sign-ins that fail are slowed.

New columns of users are null where they say nothing, so that no row is written anew.
"""

import sqlalchemy as sa
from alembic import op

from services.runtime.migrations import create_job_tables, isolate_by_user, keep_for_service

revision = "0003"
down_revision = "0002"

NOW = sa.text("now()")
TIME = sa.DateTime(timezone=True)
_CAUSES = "end_cause in ('logout', 'revoked', 'password_changed', 'token_reused', 'too_many', 'deactivated', 'role_lost')"


def upgrade() -> None:
    _extend_users()
    _extend_sessions()
    _create_password_tokens()
    _create_phone_verifications()
    _create_sign_in_failures()
    _create_deletions()
    _create_audit_events()
    create_job_tables()


def _extend_users() -> None:
    op.add_column("users", sa.Column("phone_number", sa.Text))
    op.add_column("users", sa.Column("standing_id", sa.Uuid))
    op.create_unique_constraint("users_phone_number_key", "users", ["phone_number"])
    for key in ("username", "email"):
        column = f"{key}_key"
        op.create_index(f"users_{key}_prefix_idx", "users", [column], postgresql_ops={column: "text_pattern_ops"})


def _extend_sessions() -> None:
    op.drop_constraint("sessions_end_cause_check", "sessions")
    # Wider than the one before: no row needs to be looked at.
    op.execute(f"alter table sessions add constraint sessions_end_cause_check check ({_CAUSES}) not valid")
    op.execute("alter table sessions validate constraint sessions_end_cause_check")
    op.create_table(
        "ended_identities",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("end_time", TIME, nullable=False, server_default=NOW),
        sa.PrimaryKeyConstraint("id", name="ended_identities_pkey"),
    )
    op.create_index("ended_identities_end_time_idx", "ended_identities", ["end_time"])
    keep_for_service("ended_identities")


def _create_password_tokens() -> None:
    op.create_table(
        "password_tokens",
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("expire_time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="password_tokens_pkey"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="password_tokens_user_id_fkey", ondelete="CASCADE"),
        sa.UniqueConstraint("user_id", name="password_tokens_user_id_key"),
        sa.CheckConstraint("octet_length(digest) = 32", name="password_tokens_digest_check"),
    )
    op.create_index("password_tokens_expire_time_idx", "password_tokens", ["expire_time"])
    keep_for_service("password_tokens")


def _create_phone_verifications() -> None:
    op.create_table(
        "phone_verifications",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("phone_number", sa.Text, nullable=False),
        sa.Column("code_digest", sa.LargeBinary),
        sa.Column("attempts_left", sa.SmallInteger, nullable=False),
        sa.Column("sent_count", sa.SmallInteger, nullable=False, server_default=sa.text("1")),
        sa.Column("window_time", TIME, nullable=False, server_default=NOW),
        sa.Column("resend_time", TIME, nullable=False),
        sa.Column("expire_time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="phone_verifications_pkey"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="phone_verifications_user_id_fkey", ondelete="CASCADE"),
        sa.CheckConstraint("attempts_left >= 0", name="phone_verifications_attempts_check"),
    )
    op.create_index("phone_verifications_phone_number_idx", "phone_verifications", ["phone_number"])
    op.create_index("phone_verifications_window_time_idx", "phone_verifications", ["window_time"])
    isolate_by_user("phone_verifications")


def _create_sign_in_failures() -> None:
    op.create_table(
        "sign_in_failures",
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("name_key", sa.LargeBinary),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("delay_until", TIME, nullable=False),
        sa.Column("update_time", TIME, nullable=False, server_default=NOW),
        sa.Column("success_time", TIME),
        sa.PrimaryKeyConstraint("key", name="sign_in_failures_pkey"),
        sa.CheckConstraint("failures >= 0", name="sign_in_failures_failures_check"),
    )
    op.create_index("sign_in_failures_name_key_idx", "sign_in_failures", ["name_key"])
    op.create_index("sign_in_failures_update_time_idx", "sign_in_failures", ["update_time"])
    keep_for_service("sign_in_failures")


def _create_deletions() -> None:
    op.create_table(
        "deletions",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("request_time", TIME, nullable=False, server_default=NOW),
        sa.Column("complete_time", TIME),
        sa.PrimaryKeyConstraint("user_id", name="deletions_pkey"),
    )
    op.create_index("deletions_request_time_idx", "deletions", ["request_time"])
    keep_for_service("deletions")
    op.create_table(
        "deletion_services",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("confirm_time", TIME),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("last_reason", sa.Text, nullable=False, server_default=sa.text("''")),
        sa.PrimaryKeyConstraint("user_id", "service", name="deletion_services_pkey"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["deletions.user_id"], name="deletion_services_user_id_fkey", ondelete="CASCADE"
        ),
    )
    keep_for_service("deletion_services")


def _create_audit_events() -> None:
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Uuid, nullable=False, server_default=sa.text("uuidv7()")),
        sa.Column("event_time", TIME, nullable=False, server_default=NOW),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("user_id", sa.Uuid),
        sa.Column("actor_id", sa.Uuid),
        sa.Column("address", sa.Text),
        sa.Column("details", sa.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'::text[]")),
        sa.PrimaryKeyConstraint("id", name="audit_events_pkey"),
    )
    op.create_index("audit_events_user_id_idx", "audit_events", ["user_id", "id"])
    op.create_index("audit_events_actor_id_idx", "audit_events", ["actor_id", "id"])
    op.create_index("audit_events_event_time_idx", "audit_events", ["event_time"])
    keep_for_service("audit_events")
