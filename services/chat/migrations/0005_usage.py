"""What replies cost, by user, day and model."""

import sqlalchemy as sa
from alembic import op

from services.runtime.migrations import isolate_by_user

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    _create_usage_days()
    _create_token_reservations()
    for table in ("usage_days", "token_reservations"):
        isolate_by_user(table)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _create_usage_days() -> None:
    op.create_table(
        "usage_days",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        _count("input_tokens"),
        _count("cached_tokens"),
        _count("output_tokens"),
        _count("reasoning_tokens"),
        _count("unreported_tokens"),
        sa.Column("replies", sa.Integer, nullable=False, server_default="0"),
        sa.CheckConstraint(
            "least(input_tokens, cached_tokens, output_tokens, reasoning_tokens, unreported_tokens, replies) >= 0",
            name="usage_days_counts_check",
        ),
    )


def _create_token_reservations() -> None:
    op.create_table(
        "token_reservations",
        sa.Column("generation_id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        _count("spent_tokens"),
        sa.CheckConstraint("spent_tokens between 0 and tokens", name="token_reservations_spent_check"),
    )
    op.create_index("token_reservations_user_day_idx", "token_reservations", ["user_id", "day"])
