"""Notes of users, settings of the service, and the job queue."""

import sqlalchemy as sa
from alembic import op

from services.runtime.migrations import create_job_tables, isolate_by_user, keep_for_service

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "notes",
        sa.Column("id", sa.Uuid, primary_key=True, server_default=sa.text("uuidv7()")),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.CheckConstraint("text <> 'forbidden'", name="notes_text_check"),
    )
    op.create_table("standing", sa.Column("name", sa.Text, primary_key=True), sa.Column("number", sa.Integer))
    isolate_by_user("notes")
    keep_for_service("standing")
    create_job_tables()
