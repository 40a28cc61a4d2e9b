"""What recording turns entails: work that is owed from then on, noted in the transaction that records.

Owns the list of that work and when it is due. Invariant: a constant number of statements, however many conversations. What
was made of a message that is rewritten or gone needs no line here: see the triggers of migration 0002.
"""

from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncConnection

from services.memory.extraction.store import read_again
from services.memory.summaries.limits import SummaryLimits
from services.memory.summaries.store import follow_recorded
from services.memory.turns import ConversationKey, Merge
from services.memory.upkeep.store import Task, owe_all


class Consequences:
    """What follows from recorded turns. `delays` are seconds by task: how long it waits for more to come.

    Tasks that are switched off are owed too, once a conversation: they are made up for when they are on.
    """

    def __init__(self, delays: Mapping[Task, float], summaries: SummaryLimits) -> None:
        self._delays = delays
        self._summaries = summaries

    async def of_recorded(
        self, connection: AsyncConnection, changes: Mapping[ConversationKey, Merge], extracted: Mapping[ConversationKey, int]
    ) -> None:
        """Notes what is owed for the conversations that took something new.

        `extracted`: how far each was read for facts; what is new before that came late, or was written anew.
        """
        changed = [key for key, change in changes.items() if change.accepted]
        await owe_all(connection, self._delays, [(key.user_id, key.conversation_id) for key in changed])
        first = {key: min(turn.sequence for turn in change.accepted) for key, change in changes.items() if change.accepted}
        await follow_recorded(connection, first, self._summaries)
        unread = {key: sequence for key, sequence in first.items() if sequence <= extracted[key]}
        if unread:
            await read_again(connection, unread)
