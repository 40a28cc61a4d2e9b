"""The chore that keeps the lists of words up: owed by the search that had to look at much one by one.

Who has said little is never indexed: looking at all of it costs less than lists would.
"""

from collections.abc import Sequence
from typing import Final

from services.memory.postings.store import PostingStore
from services.memory.upkeep.runner import Chore
from services.memory.upkeep.store import Owed

# Of one claim; who has more asks again with their next search.
_SEGMENTS_AT_ONCE: Final = 50


def index_chore(store: PostingStore) -> Chore:
    """Makes lists of what users said."""

    async def work(owed: Sequence[Owed]) -> None:
        for one in owed:
            await index(store, one.user_id)

    return Chore("index", work)


async def index(store: PostingStore, user_id: str) -> None:
    """Brings the lists of a user up to what was said, a bounded part of it. Idempotent."""
    for _ in range(_SEGMENTS_AT_ONCE):
        if not await store.close_segment(user_id):
            break
    for last_number in await store.unbuilt(user_id, most=_SEGMENTS_AT_ONCE):
        await store.build(user_id, last_number)
