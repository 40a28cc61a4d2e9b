"""Lists of words by user, so that a search reads what stands under its words instead of every text.

Messages get a number in the order in which they come; those from before get theirs when a list is made of them, by upkeep.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

from services.runtime.migrations import isolate_by_user

revision = "0004"
down_revision = "0003"

_TASKS = "('embed', 'extract', 'summarize', 'portray', 'expire', 'index')"


def upgrade() -> None:
    _number_turns()
    _create_segments()
    _create_postings()
    for table in ("segments", "postings"):
        isolate_by_user(table)
    _drop_postings_with_turns()
    op.drop_constraint("upkeep_task_check", "upkeep")
    op.execute(f"alter table upkeep add constraint upkeep_task_check check (task in {_TASKS}) not valid")


def _number_turns() -> None:
    op.execute("create sequence turn_numbers")
    # Without a default first: what is there keeps none, and nothing is rewritten.
    op.add_column("turns", sa.Column("number", sa.BigInteger))
    op.alter_column("turns", "number", server_default=sa.text("nextval('turn_numbers')"))


def _create_segments() -> None:
    op.create_table(
        "segments",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("last_number", sa.BigInteger, nullable=False),
        sa.Column("first_number", sa.BigInteger, nullable=False),
        sa.Column("is_built", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("message_count", sa.Integer, nullable=False, server_default="0"),
        sa.Column("length_total", sa.BigInteger, nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("user_id", "last_number", name="segments_pkey"),
        sa.CheckConstraint(
            "first_number >= 1 and last_number - first_number between 0 and 274877906943", name="segments_extent_check"
        ),
    )


def _create_postings() -> None:
    op.create_table(
        "postings",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("segment", sa.BigInteger, nullable=False),
        sa.Column("word", sa.Text(collation="C"), nullable=False),
        sa.Column("entries", ARRAY(sa.BigInteger), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "segment", "word", name="postings_pkey"),
        sa.ForeignKeyConstraint(
            ["user_id", "segment"],
            ["segments.user_id", "segments.last_number"],
            name="postings_segment_fkey",
            ondelete="CASCADE",
        ),
    )
    # A list of a thousand entries still stands in its row.
    op.execute("alter table postings alter column entries set storage main")
    op.execute("alter table postings set (toast_tuple_target = 8160)")


def _drop_postings_with_turns() -> None:
    """Whatever takes or rewrites a message takes the lists with it that hold its words, whoever does it."""
    # Held before it is looked at: lists that are being made wait for this change, or this change for them.
    op.execute(
        "create function drop_postings_of_turn() returns trigger language plpgsql"
        " set plan_cache_mode = force_generic_plan as $$"
        " declare held segments; begin"
        " select * into held from segments where user_id = old.user_id and last_number >= old.number"
        " order by last_number limit 1 for update;"
        " if held.is_built and held.first_number <= old.number then"
        " update segments set is_built = false, message_count = 0, length_total = 0"
        " where user_id = held.user_id and last_number = held.last_number;"
        " delete from postings where user_id = held.user_id and segment = held.last_number;"
        " end if; return null; end $$"
    )
    for name, event, condition in (
        ("unlisted", "delete", "old.number is not null"),
        ("relisted", "update of body", "old.number is not null and old.body is distinct from new.body"),
    ):
        op.execute(
            f"create trigger turns_{name} after {event} on turns for each row when ({condition})"
            " execute function drop_postings_of_turn()"
        )
