"""What sms knows, as data: text messages, consent, decisions, calls."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Final, Literal

Direction = Literal["inbound", "outbound"]
Keyword = Literal["stop", "start", "help"]
Answer = Literal[
    "pending", "answered", "not_wanted", "opted_out", "too_late", "failed", "keyword", "unmatched", "no_text", "limited"
]
"""What came of an inbound text."""
FINAL_STATUSES: Final = ("delivered", "undelivered", "failed", "blocked")


@dataclass(frozen=True, slots=True)
class TextMessage:
    """A text message, in or out."""

    id: str
    user_id: str | None
    direction: Direction
    kind: str
    phone_number: str = field(repr=False)
    text: str = field(repr=False)
    status: str
    error_code: str
    segments: int
    encoding: str
    answer: str | None
    in_reply_to: str | None
    conversation_id: str | None
    create_time: dt.datetime
    update_time: dt.datetime


@dataclass(frozen=True, slots=True)
class NewText:
    """A text message to be sent: to whom, what and why."""

    phone_number: str = field(repr=False)
    text: str = field(repr=False)
    kind: str
    user_id: str | None = None
    in_reply_to: str | None = None
    conversation_id: str | None = None
    consent_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class IncomingText:
    """A text message as the provider tells of it. `opt_out_type` is what it has answered by itself, empty for nothing."""

    provider_message_id: str
    phone_number: str = field(repr=False)
    text: str = field(repr=False)
    opt_out_type: str = ""


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What the provider says of a message that it was given."""

    provider_message_id: str
    status: str
    """In our words: `sent`, `delivered`, `undelivered` or `failed`."""
    error_code: str = ""
    message_id: str | None = None
    """Ours, where the report was sent to the place that we named for it."""


@dataclass(frozen=True, slots=True)
class Consent:
    """Whether a number may be written to. `epoch` grows with every change."""

    phone_number: str = field(repr=False)
    is_opted_out: bool
    epoch: int
    source: str | None
    change_time: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the model says about a text."""

    is_yes: bool
    reply: str = field(repr=False)
    reason: str = field(repr=False)
    confidence: float


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, stored."""

    id: str
    input_text: str = field(repr=False)
    verdict: Verdict
    model: str
    create_time: dt.datetime


@dataclass(frozen=True, slots=True)
class CallReport:
    """What the provider says of a phone call."""

    provider_call_id: str
    direction: Direction
    phone_number: str = field(repr=False)
    status: str
    duration_seconds: int
    start_time: dt.datetime | None


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call as a client records it."""

    direction: str
    phone_number: str = field(repr=False)
    status: str
    start_time: dt.datetime | None
    duration_seconds: int
    summary: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A phone call."""

    id: str
    direction: str
    phone_number: str = field(repr=False)
    status: str
    start_time: dt.datetime
    duration_seconds: int
    summary: str = field(repr=False)
    source: str
    create_time: dt.datetime
