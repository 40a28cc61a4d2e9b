"""How many codes were sent to a number, whoever asked for them and wherever they are now.

What was sent before is not counted in it: it counts for a day at most.
"""

import sqlalchemy as sa
from alembic import op

from services.runtime.migrations import keep_for_service

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    now = sa.text("now()")
    op.create_table(
        "code_counts",
        sa.Column("number_key", sa.LargeBinary, nullable=False),
        sa.Column("sent_count", sa.Integer, server_default=sa.text("1"), nullable=False),
        sa.Column("window_time", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("number_key", name="code_counts_pkey"),
    )
    op.create_index("code_counts_window_time_idx", "code_counts", ["window_time"])
    keep_for_service("code_counts")
