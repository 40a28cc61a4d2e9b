"""The user's memory as tools of the model: remember, recall, forget.

Owns what the three say, and how far a remembered sentence is trusted: it is the user's own word only where its words are
those of the user's message in this turn, and otherwise at most as trusted as the least trusted that the model had heard.
Invariants: they reach the memories of the user whose turn it is and no others; a call makes its change once; memory that
does not answer costs the turn that call and nothing else.
"""

import contextlib
import datetime as dt
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import orjson

from services.chat.memory.client import MemoryClient, NewMemory
from services.chat.model.request import FunctionSpec
from services.chat.options import ReplyOptions
from services.chat.records import Memory
from services.chat.tools.tool import Heard, Invocation, Toolbox, ToolError
from services.runtime.errors import AlreadyExists, DeadlineExceeded, NotFound, ServiceError, Unavailable
from services.runtime.rules import CONTROL_CHARACTERS

Arguments = Mapping[str, Any]

_USER: Final = "user"
# As memory orders them.
_FROM_MOST_TRUSTED: Final = (_USER, "assistant", "sms_peer", "tool")
_RECALL: Final = "recall"
_WEB_SEARCH: Final = "web_search"
_MOST_RECALLED: Final = 10
_LONGEST_RECALLED: Final = 1_000


def _spec(name: str, description: str, properties: Arguments, *, required: str) -> FunctionSpec:
    parameters = {"type": "object", "properties": properties, "required": [required], "additionalProperties": False}
    # Offered by ourselves, whoever asks: a model that takes no functions is asked without.
    return FunctionSpec(name, description, parameters, is_optional=True)


REMEMBER: Final = _spec(
    "remember",
    "Remembers a fact about the user for later conversations, when the user asks for it.",
    {
        "text": {"type": "string", "minLength": 1, "maxLength": 1000, "description": "One sentence, in the user's words."},
        "subject": {"type": "string", "maxLength": 100, "description": "Whom it is about: user, or a name."},
        "attribute": {"type": "string", "maxLength": 100, "description": "What it tells of them: home city, likes."},
    },
    required="text",
)
RECALL: Final = _spec(
    _RECALL,
    "Searches what is remembered of the user, from all conversations.",
    {"query": {"type": "string", "minLength": 1, "maxLength": 1000}},
    required="query",
)
FORGET: Final = _spec(
    "forget",
    "Deletes a remembered fact for good, when the user asks for it. What was said in a conversation goes with that.",
    {"memory_id": {"type": "string", "description": "The fact's id, from the memories or from recall."}},
    required="memory_id",
)


@dataclass(frozen=True, slots=True)
class MemoryTool:
    """One of the three. A call asks memory by an id that is made of the call, or only reads: it may be run again."""

    spec: FunctionSpec
    do: Callable[[Arguments, Invocation], Awaitable[Any]]
    server_label: str = ""
    needs_approval: bool = False
    is_exactly_once: bool = True

    @property
    def tool(self) -> str:
        """What readers of the stream see as its name."""
        return self.spec.name

    async def run(self, arguments: Arguments, invocation: Invocation) -> str:
        """The result as JSON. Raises ToolError."""
        for name, value in arguments.items():
            if CONTROL_CHARACTERS.search(value):
                raise ToolError(f"{name} holds a control character (NUL, say): remove it.")
            if not value.strip():
                raise ToolError(f"{name} is empty.")
        with _sentences():
            return orjson.dumps(await self.do(arguments, invocation)).decode()


class MemoryTools:
    """The tools of replies that may use memory."""

    def __init__(self, memory: MemoryClient) -> None:
        self._memory = memory
        self._toolbox = Toolbox(
            [MemoryTool(REMEMBER, self._remember), MemoryTool(RECALL, self._recall), MemoryTool(FORGET, self._forget)]
        )

    @asynccontextmanager
    async def open(self, user_id: str, options: ReplyOptions) -> AsyncIterator[Toolbox]:  # noqa: ARG002 - asked for each call
        """The three tools, unless the turn is to know nothing of memory."""
        yield self._toolbox if options.memory_enabled else Toolbox(())

    async def _remember(self, arguments: Arguments, invocation: Invocation) -> Any:
        text, subject = arguments["text"].strip(), arguments.get("subject", _USER).strip()
        new = NewMemory(
            text=text,
            subject=subject,
            attribute=arguments.get("attribute", "").strip(),
            stamped_by=stamp_of(text, subject, invocation.heard),
            conversation_id=invocation.conversation_id,
            message_id=invocation.heard.message_id,
            request_id=str(uuid.uuid5(uuid.UUID(invocation.generation_id), invocation.call_id)),
        )
        try:
            return {"remembered": _told(await self._memory.add_memory(new))}
        except AlreadyExists:
            # This very call, made before its process died, when it had heard something else: the id is nobody else's.
            return {"remembered": {"text": text}}

    async def _recall(self, arguments: Arguments, invocation: Invocation) -> Any:  # noqa: ARG002 - reads only
        found = await self._memory.search_memories(arguments["query"], limit=_MOST_RECALLED)
        return {"memories": [_told(memory) for memory in found]}

    async def _forget(self, arguments: Arguments, invocation: Invocation) -> Any:  # noqa: ARG002 - an id is done with once
        try:
            memory_id = str(uuid.UUID(arguments["memory_id"]))
        except ValueError:
            raise ToolError("memory_id is not the id of a memory. recall tells the ids.") from None
        await self._memory.delete_memory(memory_id)
        return {"forgotten": memory_id}


def stamp_of(text: str, subject: str, heard: Heard) -> str:
    """Who a sentence comes from that the model wants remembered."""
    said = heard.text.casefold()
    if _is_grounded(text, said) and (subject.casefold() == _USER or _is_grounded(subject, said)):
        return _USER
    stamps = {"assistant", *heard.memory_stamps}
    for call in heard.calls:
        if call.server_label or call.tool == _WEB_SEARCH:
            stamps.add("tool")
        elif call.tool == _RECALL and call.result:
            stamps |= {memory["from"] for memory in orjson.loads(call.result)["memories"]}
    return max(stamps, key=_distrust)


def _distrust(stamp: str) -> int:
    return _FROM_MOST_TRUSTED.index(stamp) if stamp in _FROM_MOST_TRUSTED else len(_FROM_MOST_TRUSTED)


# What relates one thing to another in a sentence that is turned from the user's voice into one about the user. Only those
# that add nothing: with "hates" among them, the opposite of what was said would pass for the user's word.
_RELATING_WORDS: Final = (
    "a about also an and are as at be been being by called for from had has have he her hers him his i in into is it its"
    " me my mine name named of on or our s she that the their them they this to user users was we were who with you your"
)
_RELATING: Final = frozenset(_RELATING_WORDS.split())
_WORD: Final = re.compile(r"\w+")
_UNSPACED: Final = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_STEM_CHARACTERS: Final = 4
_MOST_ENDING: Final = 3


def _is_grounded(text: str, said: str) -> bool:
    """Whether every word that says something is among what was said (in lower case), up to its ending."""
    words = [word for word in _WORD.findall(text.casefold()) if word not in _RELATING]
    known = set(_WORD.findall(said))
    return bool(words) and all(word in known or _is_said(word, known, said) for word in words)


def _is_said(word: str, known: set[str], said: str) -> bool:
    if _UNSPACED.search(word):
        # Without spaces a word has no bounds: every two characters of it stand together in what was said.
        return all(word[at : at + 2] in said for at in range(max(1, len(word) - 1)))
    return not any(letter.isdigit() for letter in word) and any(_is_same_word(word, other) for other in known)


def _is_same_word(one: str, other: str) -> bool:
    """Whether two words differ in a short ending only: live and lives, move and moved."""
    shorter = min(len(one), len(other))
    shared = next((at for at in range(shorter) if one[at] != other[at]), shorter)
    return shared >= _STEM_CHARACTERS - 1 and max(len(one), len(other)) - shared <= min(_MOST_ENDING, shared - 1)


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """What memory refuses, as the model may read it."""
    try:
        yield
    except NotFound as error:
        raise ToolError("No fact is remembered under this id, or not any more. recall tells the ids.") from error
    except (Unavailable, DeadlineExceeded) as error:
        raise ToolError("Memory does not answer now. Go on without it, and tell the user.") from error
    except ServiceError as error:
        raise ToolError(error.message) from error


def _told(memory: Memory) -> dict[str, Any]:
    text = memory.text if len(memory.text) <= _LONGEST_RECALLED else memory.text[:_LONGEST_RECALLED] + "…"
    told = {"memory_id": memory.id, "kind": memory.kind, "date": _date(memory.begin_time)}
    until = {"until": _date(memory.end_time)} if memory.end_time else {}
    return {**told, **until, "from": memory.stamped_by, "text": text}


def _date(time: dt.datetime) -> str:
    return time.date().isoformat()
