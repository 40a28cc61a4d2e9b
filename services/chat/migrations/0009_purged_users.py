"""The fence around users who are deleted, on the tables whose rows begin what a user has here.

Messages, generations and what hangs on them refer to their conversation, which is gone.
"""

from services.runtime.migrations import fence_purged_users

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    fence_purged_users(
        "conversations",
        "tasks",
        "task_changes",
        "task_counters",
        "mcp_servers",
        "usage_days",
        "token_reservations",
    )
