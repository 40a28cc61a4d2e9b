"""Which turns memory has yet to be told of: a row a conversation instead of a job a turn.

Jobs that the previous release defers beside this one are worked as before.
"""

import sqlalchemy as sa
from alembic import op

from services.runtime.migrations import isolate_by_user

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "unrecorded_turns",
        sa.Column("conversation_id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("first_sequence", sa.Integer, nullable=False),
        sa.Column("due_time", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["conversation_id", "user_id"],
            ["conversations.id", "conversations.user_id"],
            ondelete="CASCADE",
            name="unrecorded_turns_conversation_fkey",
        ),
    )
    isolate_by_user("unrecorded_turns")
