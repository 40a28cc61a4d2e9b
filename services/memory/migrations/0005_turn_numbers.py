"""The index of messages by their number, built beside what is being recorded; and what 0003 left to be validated."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_PARTITIONS = 32


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # It stops nobody, and waits for whatever reads for long, an export among others.
        op.execute("set lock_timeout = '600s'; set statement_timeout = '900s'")
        op.execute("create index if not exists turns_number_idx on only turns (user_id, number)")
        for index in range(_PARTITIONS):
            _build(f"turns_{index:02}")
        op.execute("reset lock_timeout; reset statement_timeout")
    op.execute("alter table upkeep validate constraint upkeep_task_check")


def _build(partition: str) -> None:
    """What an attempt that was interrupted finished stays; what it left unfinished is made anew."""
    name = f"{partition}_number_idx"
    attached = sa.text("select 1 from pg_inherits where inhrelid = to_regclass(:index)")
    if op.get_bind().execute(attached, {"index": f"partitions.{name}"}).first() is None:
        op.execute(f"drop index concurrently if exists partitions.{name}")
        op.execute(f"create index concurrently {name} on partitions.{partition} (user_id, number)")
        op.execute(f"alter index turns_number_idx attach partition partitions.{name}")
