"""Who comes first where many want the same: a user who asks a thousand times at once waits behind himself, and nobody else.

Owns the waiting of one kind of work in a process. Its places are as many as there are callers that wait.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairGate:
    """Lets `size` pass at a time, and of one user one at a time; in the order in which they come, as long as it takes.

    For work of which each user's waits for itself in the database anyway: there it holds a connection, here none.
    """

    def __init__(self, *, size: int) -> None:
        self._gate = asyncio.Semaphore(size)
        self._users: dict[str, _Place] = {}

    @asynccontextmanager
    async def passed(self, user_id: str) -> AsyncIterator[None]:
        """Holds a place inside the block."""
        place = self._users.setdefault(user_id, _Place())
        place.wanted += 1
        try:
            async with place.lock, self._gate:
                yield
        finally:
            place.wanted -= 1
            if not place.wanted:
                del self._users[user_id]


class _Place:
    __slots__ = ("lock", "wanted")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0
