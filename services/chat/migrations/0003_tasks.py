"""Tasks, and the feed of their changes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

from services.runtime.migrations import isolate_by_user

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    _create_tasks()
    _create_changes()
    for table in ("tasks", "task_changes", "task_counters"):
        isolate_by_user(table)


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now())


def _create_tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.Uuid, primary_key=True, server_default=sa.text("uuidv7()")),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False, server_default=""),
        sa.Column("due_time", sa.TIMESTAMP(timezone=True)),
        sa.Column("complete_time", sa.TIMESTAMP(timezone=True)),
        sa.Column("request_id", sa.Text),
        sa.Column("request_digest", sa.LargeBinary),
        _time("create_time"),
        _time("update_time"),
        sa.CheckConstraint("char_length(title) between 1 and 200", name="tasks_title_check"),
        sa.CheckConstraint("char_length(description) <= 2000", name="tasks_description_check"),
        sa.CheckConstraint("(request_id is null) = (request_digest is null)", name="tasks_request_check"),
    )
    op.create_index("tasks_user_create_idx", "tasks", ["user_id", sa.text("create_time desc"), sa.text("id desc")])
    op.create_index(
        "tasks_user_request_key",
        "tasks",
        ["user_id", "request_id"],
        unique=True,
        postgresql_where=sa.text("request_id is not null"),
    )


def _create_changes() -> None:
    op.create_table(
        "task_changes",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("task_id", sa.Uuid, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("task", pg.JSONB),
        _time("create_time"),
        sa.CheckConstraint("kind in ('created', 'updated', 'deleted')", name="task_changes_kind_check"),
        sa.CheckConstraint("(kind = 'deleted') = (task is null)", name="task_changes_task_check"),
    )
    op.create_index("task_changes_create_idx", "task_changes", ["create_time"])
    op.create_table(
        "task_counters",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("last_sequence", sa.Integer, nullable=False, server_default="0"),
        sa.Column("task_count", sa.Integer, nullable=False, server_default="0"),
        sa.CheckConstraint("task_count >= 0", name="task_counters_task_count_check"),
    )
