"""The purge: everything that chat holds of a user who was deleted.

Order: the fence, so that nothing is added; the rows; the replies that are being written, wherever they are; the logs in
Redis, now and once more when what was under way is over. Confirmed only when a pass found nothing left. Idempotent, and
safe to cut anywhere: the next call goes on.
"""

from contextlib import AsyncExitStack

from services.chat.generation.generations import Generations
from services.chat.generation.parts import GenerationParts
from services.chat.log.event_log import EventLog
from services.chat.purge.store import PurgeStore
from services.runtime.database import Database
from services.runtime.duties import beside
from services.runtime.jobs import Jobs
from services.runtime.purging import Fence, take_down, unfinished


class Purge:
    """Deletes what chat holds of users."""

    def __init__(self, fence: Fence, store: PurgeStore, generations: Generations, log: EventLog) -> None:
        self._fence = fence
        self._store = store
        self._generations = generations
        self._log = log

    async def run(self, user_id: str) -> None:
        """Returns when nothing is left. Raises Unavailable (PURGE_UNFINISHED) while that is not known."""
        await self._fence.put_up(user_id)
        while (batch := await self._store.delete_conversations(user_id)).count:
            await self._generations.stop_everywhere(batch.running_ids)
        while await self._store.delete_rest(user_id):
            pass
        standing = await self._fence.put_up(user_id)
        if not await self._log.delete_keys(standing.held_keys):
            raise unfinished("redis")
        if not standing.is_settled:
            raise unfinished("calls under way")
        if await self._store.has_jobs(user_id):
            raise unfinished("jobs")
        await self._fence.release_keys(user_id)


async def open_purge(parts: AsyncExitStack, database: Database, jobs: Jobs, replies: GenerationParts) -> Purge:
    """The purge of a process, with old fences taken down until `parts` closes."""
    fence = Fence(database)
    await parts.enter_async_context(beside(take_down(fence)))
    return Purge(fence, PurgeStore(database, jobs), replies.generations, replies.log)
