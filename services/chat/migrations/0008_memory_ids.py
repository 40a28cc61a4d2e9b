"""Which memories the model was given for a reply. Ids only; the previous release leaves them empty."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    # A constant default: no row is written anew.
    op.add_column(
        "messages",
        sa.Column("memory_ids", pg.ARRAY(sa.Uuid), nullable=False, server_default=sa.text("'{}'::uuid[]")),
    )
