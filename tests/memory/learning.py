"""A memory service that learns facts at once, and what a test says to it or scripts for its model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from parley.memory.v1 import memory_pb2
from simulator.control import Match, ScriptedAnswer
from simulator.script import RecordedRequest
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.memory.database import fetch
from tests.memory.service import MemoryService, eventually, message, new_id

# Learning at once, and nothing else that asks the model.
LEARNING: dict[str, object] = {
    "extraction_enabled": True,
    "extraction_delay_seconds": 0,
    "summaries_enabled": False,
    "upkeep_retry_seconds": 0.1,
    "upkeep_longest_pause_seconds": 0.2,
}
IS_EXTRACTION = Match(text="KNOWN FACTS")


def operation(kind: str = "ADD", text: str = "", **fields: Any) -> dict[str, Any]:
    """One operation as a model proposes it; by default from the first message."""
    proposed = {
        "operation": kind,
        "fact": None,
        "sources": [1],
        "text": text,
        "subject": "user",
        "attribute": "",
        "importance": 5,
        "valid_from": None,
        "valid_to": None,
    }
    return {**proposed, **fields}


def proposing(*operations: dict[str, Any], **fields: Any) -> ScriptedAnswer:
    """The model's next answer to an extraction."""
    return ScriptedAnswer(match=IS_EXTRACTION, text=orjson.dumps({"operations": operations}).decode(), **fields)


@dataclass
class Learner:
    """A user of a memory service with a provider."""

    memory: MemoryService
    simulator: Running
    database: ServiceDatabase
    conversation_id: str = field(default_factory=new_id)
    said: int = 0

    async def say(self, *texts: str, reply: str = "I see.", days: int = 0, seconds: int | None = None) -> list[str]:
        """Records turns of the user and waits until they were read; returns the ids of the user's messages."""
        ids = await self.record(*texts, reply=reply, days=days, seconds=seconds)
        await self.read()
        return ids

    async def record(self, *texts: str, reply: str = "I see.", days: int = 0, seconds: int | None = None) -> list[str]:
        """Records turns, each with the reply; the time of a message follows from its place, `days` later."""
        messages: list[memory_pb2.ContextMessage] = []
        for text in texts:
            for part in (text, reply):
                self.said += 1
                at = (self.said if seconds is None else seconds) + days * 86_400
                messages.append(message(self.said, part, seconds=at))
        await self.memory.record(self.conversation_id, messages)
        return [one.message_id for one in messages[::2]]

    async def read(self, seconds: float = 15) -> None:
        """Waits until nothing is left to be read for facts."""
        async for _ in eventually(seconds):
            self.memory.upkeep.look()
            if not await fetch(self.database, "select 1 from upkeep where task = 'extract'"):
                return

    async def script(self, *answers: ScriptedAnswer) -> None:
        await self.simulator.control.script(*answers)

    async def facts(self, **fields: Any) -> list[memory_pb2.Memory]:
        return await self.memory.memories(**fields)

    async def texts(self) -> list[str]:
        """The current facts, in the order of the alphabet."""
        return sorted(fact.text for fact in await self.facts())

    async def requests(self) -> Sequence[RecordedRequest]:
        """What the model was asked."""
        received = await self.simulator.control.requests()
        return [one for one in received if "KNOWN FACTS" in str(one.body.get("input") or one.body.get("messages"))]

    async def told(self) -> str:
        """The input of the last call."""
        return str((await self.requests())[-1].body["input"])
