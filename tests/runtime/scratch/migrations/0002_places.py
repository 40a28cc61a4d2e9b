"""A table without owner's rows that no policy covers: what tests of locks and conflicts work on."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table("places", sa.Column("name", sa.Text, primary_key=True), sa.Column("number", sa.Integer))
