"""What a search looks at, in SQL: of which messages and which facts. Nothing is executed here."""

from dataclasses import dataclass
from typing import Final

MOST_SOURCES: Final = 20
"""Messages that one fact votes for."""

IS_LIVE: Final = "(facts.expire_time is null or facts.expire_time > now())"
"""Of a fact: it has not expired."""
SOURCES: Final = (
    "array(select cast(source.conversation_id as text) || ':' || source.sequence from fact_sources"  # noqa: S608
    " join turns source on source.user_id = fact_sources.user_id and source.message_id = fact_sources.message_id"
    " where fact_sources.user_id = :user_id and fact_sources.fact_id = best.id"
    f" order by fact_sources.message_id limit {MOST_SOURCES})"
)
"""Of a fact among the `best`: the places of the messages that it was learned from."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a search looks at: the statement is another for each."""

    messages: bool = True
    in_conversation: bool = False
    superseded: bool = False
    excluding: bool = False
    in_window: bool = False
    has_lists: bool = False

    @property
    def reads_lists(self) -> bool:
        """Whether lists of words are read where there are any; one conversation is found by itself, and is seldom long."""
        return self.has_lists and self.messages and not self.in_conversation

    @property
    def of_turns(self) -> str:
        """What narrows messages."""
        place = " and turns.conversation_id = :conversation_id" if self.in_conversation else ""
        return place + self.without("turns.message_id")

    @property
    def of_facts(self) -> str:
        """What narrows facts."""
        current = "" if self.superseded else " and facts.invalidate_time is null"
        learned_here = (
            " and exists (select from fact_sources where fact_sources.user_id = :user_id and fact_sources.fact_id = facts.id"
            " and fact_sources.conversation_id = :conversation_id)"
            if self.in_conversation
            else ""
        )
        return f" and {IS_LIVE}{current}{learned_here}"

    def without(self, id_column: str) -> str:
        """What leaves the excluded messages out."""
        return f" and {id_column} <> all(cast(:excluded as uuid[]))" if self.excluding else ""
