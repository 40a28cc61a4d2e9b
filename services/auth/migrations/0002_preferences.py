"""What users prefer."""

import sqlalchemy as sa
from alembic import op

from services.runtime.migrations import isolate_by_user

revision = "0002"
down_revision = "0001"

NOW = sa.text("now()")


def upgrade() -> None:
    op.create_table(
        "preferences",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("language", sa.Text),
        sa.Column("tts_voice", sa.Text),
        sa.Column("auto_reply_enabled", sa.Boolean),
        sa.Column("notifications_enabled", sa.Boolean),
        sa.Column("conversation_timeout_seconds", sa.Integer),
        sa.Column("model", sa.Text),
        sa.Column("reasoning_effort", sa.Text),
        sa.Column("memory_enabled", sa.Boolean),
        sa.Column("instructions", sa.Text),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.PrimaryKeyConstraint("user_id", name="preferences_pkey"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="preferences_user_id_fkey", ondelete="CASCADE"),
        sa.CheckConstraint("conversation_timeout_seconds between 60 and 604800", name="preferences_timeout_check"),
        sa.CheckConstraint(
            "reasoning_effort in ('minimal', 'low', 'medium', 'high')", name="preferences_reasoning_effort_check"
        ),
        sa.CheckConstraint("char_length(instructions) <= 4000", name="preferences_instructions_check"),
    )
    isolate_by_user("preferences")
