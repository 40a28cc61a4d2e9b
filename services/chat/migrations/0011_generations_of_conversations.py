"""The index of generations by their conversation, for whatever deletes conversations; built beside what is being written."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # It stops nobody, and waits for whatever reads for long.
        op.execute("set lock_timeout = '600s'; set statement_timeout = '900s'")
        # What an attempt that was interrupted left is of no use.
        op.execute("drop index concurrently if exists generations_conversation_idx")
        op.execute("create index concurrently generations_conversation_idx on generations (conversation_id)")
        op.execute("reset lock_timeout; reset statement_timeout")
