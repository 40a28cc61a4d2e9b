"""Conversations made of text messages, and the history of what a user said in all of them."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    # Wider than the one before: no row of the previous release breaks it.
    op.execute("alter table conversations drop constraint conversations_kind_check")
    op.execute(
        "alter table conversations add constraint conversations_kind_check"
        " check (kind in ('written', 'spoken', 'texted')) not valid"
    )
    with op.get_context().autocommit_block():
        op.create_index(
            "messages_user_said_idx",
            "messages",
            ["user_id", sa.text("create_time desc"), sa.text("id desc")],
            postgresql_where=sa.text("role = 'user' and supersede_time is null"),
            postgresql_concurrently=True,
            if_not_exists=True,
        )
        # A scan under a lock that lets rows be read and written.
        op.execute("alter table conversations validate constraint conversations_kind_check")
