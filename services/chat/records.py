"""What chat keeps, as plain values: the rows of its tables, as the rest of the service sees them.

Owns no behaviour but what follows from a value alone. Ids are UUIDs in their text form; times carry their zone.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_TITLE_CHARACTERS = 60


def title_of(text: str) -> str:
    """The beginning of a message as a title: whole words where one ends in time, one line."""
    line = " ".join(text[: MAX_TITLE_CHARACTERS * 8].split())
    if len(line) <= MAX_TITLE_CHARACTERS:
        return line
    cut = line[:MAX_TITLE_CHARACTERS]
    words, _, _ = line[: MAX_TITLE_CHARACTERS + 1].rpartition(" ")
    return words or cut


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a reply cost."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds from the arrival of the call: to the first text (0 when there was none) and to the end."""

    time_to_first_token_ms: int
    processing_time_ms: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation of one user, without its messages."""

    id: str
    title: str
    message_count: int
    last_message_time: dt.datetime | None
    create_time: dt.datetime
    update_time: dt.datetime
    latest_time: dt.datetime


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation as administrators see it: without its content."""

    id: str
    user_id: str
    message_count: int
    last_message_time: dt.datetime | None
    create_time: dt.datetime
    latest_time: dt.datetime


@dataclass(frozen=True, slots=True)
class Found:
    """A conversation that was found: the message that fits best (None where only the title does), and a piece of it.

    `score` is its place among the others, a whole number, so that it fits the token of a page.
    """

    conversation: Conversation
    message_id: str | None
    excerpt: str
    score: int


@dataclass(frozen=True, slots=True)
class Citation:
    """A source, and where in the text it is cited: from `start` to before `end`, in characters."""

    url: str
    title: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; `status` is running, succeeded, failed or approval_required. `arguments` is JSON."""

    id: str
    tool: str
    server_label: str
    arguments: str
    status: str = "running"
    result: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class CodeRun:
    """Code that was run at the provider; `status` is succeeded or failed."""

    id: str
    code: str
    output: str
    status: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A summary of what the model thought."""

    text: str


@dataclass(frozen=True, slots=True)
class TextLength:
    """So many characters of the message's text."""

    length: int


Part = TextLength | Reasoning | ToolCall | CodeRun
"""What a reply is made of, in order. The lengths of its texts sum up to the whole text."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the user's message: a URL, or data with its media type."""

    url: str | None
    media_type: str | None
    data: bytes | None


@dataclass(frozen=True, slots=True)
class MessageImage:
    """What is shown of an image: its URL, or the media type of its data and their size."""

    url: str | None
    media_type: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    `revision` grows when what stands at its place is written anew, as memory counts it; `version` grows when another message
    takes its place. `parts` is empty for a message of text alone.
    """

    id: str
    conversation_id: str
    sequence: int
    role: str
    text: str
    status: str
    incomplete_reason: str | None
    model: str | None
    generation_id: str | None
    revision: int
    usage: Usage | None
    timings: Timings | None
    metadata: Mapping[str, str]
    create_time: dt.datetime
    parts: Sequence[Part] = ()
    citations: Sequence[Citation] = ()
    version: int = 1
    supersede_time: dt.datetime | None = None
    images: Sequence[MessageImage] = ()
    memory_ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """What was told of a reply: its parts, and the form in which its events are saved. See the columns of these names."""

    parts: Sequence[Part]
    citations: Sequence[Citation]
    event_lengths: Sequence[int]
    other_events: Sequence[bytes]
    last_sequence: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a generation failed: an ErrorReason without its prefix, and what its caller is told."""

    reason: str
    message: str
    metadata: Mapping[str, str]
    retry_delay_seconds: float | None


@dataclass(frozen=True, slots=True)
class Generation:
    """One attempt at a reply. `is_expired`: nobody keeps it alive any more, by the database's clock."""

    id: str
    user_id: str
    conversation_id: str
    user_message_id: str
    reply_message_id: str
    request_id: str | None
    request_digest: bytes
    attempt: int
    status: str
    is_expired: bool
    model: str
    degraded: Sequence[str]
    failure: Failure | None
    create_time: dt.datetime
    epoch: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    sealed_secrets: bytes | None = None
    last_sequence: int = 0
    end_time: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A generation with the two messages that it joins."""

    generation: Generation
    user_message: Message
    reply: Message


@dataclass(frozen=True, slots=True)
class ContextMessage:
    """What the model sees of a message, and how memory counts it."""

    sequence: int
    role: str
    text: str
    revision: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Something remembered of the user: a `fact`, or a `message` of this or another conversation.

    `stamped_by` is who it comes from: user, assistant, tool or sms_peer. A fact has no conversation and the sequence 0.
    """

    id: str
    kind: str
    text: str = field(repr=False)
    stamped_by: str
    begin_time: dt.datetime
    end_time: dt.datetime | None = None
    conversation_id: str = ""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Remembered:
    """What memory knows for a turn: the conversation up to a sequence, and what it recalls beyond that.

    `degraded` names what of itself memory had to do without: recall, summaries, embeddings.
    """

    messages: Sequence[ContextMessage] = ()
    last_sequence: int = 0
    memories: Sequence[Memory] = ()
    person_summary: str = field(default="", repr=False)
    conversation_summary: str = field(default="", repr=False)
    degraded: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class KnownConversation:
    """What a turn's first transaction learned about its conversation: which reply was last written anew."""

    rewritten_sequence: int
    rewritten_revision: int
