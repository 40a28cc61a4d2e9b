"""The tables of usage: what was spent, and what running replies may still spend.

Neither refers to a conversation or a generation: what was spent stays counted when they are deleted, and a reservation
whose conversation was deleted holds until its day is over.
"""

import sqlalchemy as sa

from services.chat.schema import metadata

# One row a user, day (UTC) and model.
usage_days = sa.Table(
    "usage_days",
    metadata,
    sa.Column("user_id", sa.Uuid(as_uuid=False), primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("input_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("output_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("reasoning_tokens", sa.BigInteger, nullable=False, server_default="0"),
    # Charged to the budget for replies whose cost the provider never said: they were cut or cancelled.
    sa.Column("unreported_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("replies", sa.Integer, nullable=False, server_default="0"),
    sa.CheckConstraint(
        "least(input_tokens, cached_tokens, output_tokens, reasoning_tokens, unreported_tokens, replies) >= 0",
        name="usage_days_counts_check",
    ),
)

# What a running reply may cost in all, of which `spent_tokens` are known to be spent by the rounds that are over.
token_reservations = sa.Table(
    "token_reservations",
    metadata,
    sa.Column("generation_id", sa.Uuid(as_uuid=False), primary_key=True),
    sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("spent_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.CheckConstraint("spent_tokens between 0 and tokens", name="token_reservations_spent_check"),
    # The sum of a user's day.
    sa.Index("token_reservations_user_day_idx", "user_id", "day"),
)
