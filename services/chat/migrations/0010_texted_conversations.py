"""Conversations made of text messages, and the history of what a user said in all of them."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    # Wider than the one before: no row of the previous release breaks it.
    op.drop_constraint("conversations_kind_check", "conversations")
    op.create_check_constraint("conversations_kind_check", "conversations", "kind in ('written', 'spoken', 'texted')")
    # Not concurrently: a second process that waits to migrate is waited for by that, and waits for this one.
    op.create_index(
        "messages_user_said_idx",
        "messages",
        ["user_id", sa.text("create_time desc"), sa.text("id desc")],
        postgresql_where=sa.text("role = 'user' and supersede_time is null"),
    )
