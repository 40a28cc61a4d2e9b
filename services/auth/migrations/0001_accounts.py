"""Accounts, their sessions and refresh tokens, and the keys that sign tokens."""

import sqlalchemy as sa
from alembic import op

from services.runtime.migrations import isolate_by_user, keep_for_service

revision = "0001"
down_revision = None

NOW = sa.text("now()")
NEW_ID = sa.text("uuidv7()")


def upgrade() -> None:
    _create_users()
    _create_sessions()
    _create_refresh_tokens()
    _create_signing_keys()


def _create_users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid, server_default=NEW_ID, nullable=False),
        sa.Column("username", sa.Text, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("username_key", sa.Text, sa.Computed("lower(username)", persisted=True), nullable=False),
        sa.Column("email_key", sa.Text, sa.Computed("lower(email)", persisted=True), nullable=False),
        sa.Column("password_hash", sa.Text, nullable=False),
        sa.Column("credential_version", sa.Integer, nullable=False, server_default=sa.text("1")),
        sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.text("true")),
        sa.Column("is_admin", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.PrimaryKeyConstraint("id", name="users_pkey"),
        sa.UniqueConstraint("username_key", name="users_username_key"),
        sa.UniqueConstraint("email_key", name="users_email_key"),
    )
    isolate_by_user("users", column="id")


def _create_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid, server_default=NEW_ID, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("user_agent", sa.Text, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False, server_default=sa.text("1")),
        sa.Column("rotate_time", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("last_used_time", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end_time", sa.DateTime(timezone=True)),
        sa.Column("end_cause", sa.Text),
        sa.PrimaryKeyConstraint("id", name="sessions_pkey"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="sessions_user_id_fkey", ondelete="CASCADE"),
        sa.CheckConstraint("(end_time is null) = (end_cause is null)", name="sessions_end_check"),
        sa.CheckConstraint(
            "end_cause in ('logout', 'revoked', 'password_changed', 'token_reused', 'too_many')",
            name="sessions_end_cause_check",
        ),
        sa.CheckConstraint("char_length(user_agent) <= 200", name="sessions_user_agent_check"),
    )
    op.create_index("sessions_user_id_idx", "sessions", ["user_id", "id"], postgresql_where=sa.text("end_time is null"))
    op.create_index("sessions_end_time_idx", "sessions", ["end_time"], postgresql_where=sa.text("end_time is not null"))
    op.create_index("sessions_expire_time_idx", "sessions", ["expire_time"])
    isolate_by_user("sessions")


def _create_refresh_tokens() -> None:
    op.create_table(
        "refresh_tokens",
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("session_id", sa.Uuid, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="refresh_tokens_pkey"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name="refresh_tokens_session_id_fkey", ondelete="CASCADE"),
        sa.CheckConstraint("octet_length(digest) = 32", name="refresh_tokens_digest_check"),
    )
    op.create_index("refresh_tokens_session_id_idx", "refresh_tokens", ["session_id"])
    op.create_index("refresh_tokens_expire_time_idx", "refresh_tokens", ["expire_time"])
    isolate_by_user("refresh_tokens")


def _create_signing_keys() -> None:
    op.create_table(
        "signing_keys",
        sa.Column("kid", sa.Text, nullable=False),
        sa.Column("private_key", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("activate_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("kid", name="signing_keys_pkey"),
    )
    op.create_index("signing_keys_activate_time_key", "signing_keys", ["activate_time"], unique=True)
    keep_for_service("signing_keys")
