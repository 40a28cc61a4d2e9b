"""The tables of tasks, and of the feed of their changes.

Invariants: a title is there and short; what a user has and how often it changed is counted in one row, whose lock makes the
changes of a user follow each other, so that their sequences grow in the order of their commits and without holes.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from services.chat.schema import metadata

REQUEST_INDEX: Final = "tasks_user_request_key"


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now())


tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", sa.Uuid(as_uuid=False), primary_key=True, server_default=sa.text("uuidv7()")),
    sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
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
    sa.Index("tasks_user_create_idx", "user_id", sa.text("create_time desc"), sa.text("id desc")),
    sa.Index(REQUEST_INDEX, "user_id", "request_id", unique=True, postgresql_where=sa.text("request_id is not null")),
)

# What each change of a user's tasks left behind: the task as it was then, or null where it was deleted.
task_changes = sa.Table(
    "task_changes",
    metadata,
    sa.Column("user_id", sa.Uuid(as_uuid=False), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("task_id", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("task", pg.JSONB),
    _time("create_time"),
    sa.CheckConstraint("kind in ('created', 'updated', 'deleted')", name="task_changes_kind_check"),
    sa.CheckConstraint("(kind = 'deleted') = (task is null)", name="task_changes_task_check"),
    # What pruning goes by.
    sa.Index("task_changes_create_idx", "create_time"),
)

task_counters = sa.Table(
    "task_counters",
    metadata,
    sa.Column("user_id", sa.Uuid(as_uuid=False), primary_key=True),
    sa.Column("last_sequence", sa.Integer, nullable=False, server_default="0"),
    sa.Column("task_count", sa.Integer, nullable=False, server_default="0"),
    sa.CheckConstraint("task_count >= 0", name="task_counters_task_count_check"),
)
