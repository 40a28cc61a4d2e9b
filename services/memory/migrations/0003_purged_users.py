"""The fence around users who are deleted.

Whatever writes text of a user, or anything made of it, holds the user's row in `people` first; the others are named for what
does not: owed work, evictions, vectors.
"""

from services.runtime.migrations import fence_purged_users

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    fence_purged_users("people", "conversations", "facts", "embeddings", "summaries", "upkeep", "pending_evictions")
