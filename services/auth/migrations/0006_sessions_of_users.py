"""The index of sessions by their user, ended ones too, for the deletion of a user; built beside what is being written.

It takes the place of one that held open sessions only: rows of ended sessions stay for a day, so it is hardly larger.
"""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # It stops nobody, and waits for whatever reads for long.
        op.execute("set lock_timeout = '600s'; set statement_timeout = '900s'")
        # What an attempt that was interrupted left is of no use.
        op.execute("drop index concurrently if exists sessions_user_id_id_idx")
        op.execute("create index concurrently sessions_user_id_id_idx on sessions (user_id, id)")
        op.execute("drop index concurrently if exists sessions_user_id_idx")
        op.execute("reset lock_timeout; reset statement_timeout")
