"""Decisions about texts, by the model.

Owns what the model is asked, and whether its answer is one. Invariants: the text is shown to the model as data; an answer
that is not of the schema is asked for once more, and is then an error and never a guess; what was decided is stored, once
a request id.
"""

import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import orjson
import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import Unavailable
from services.runtime.rules import CONTROL_CHARACTERS
from services.runtime.small_jobs import AnswerSchema, SmallJobs
from services.sms.decision_store import DecisionStore
from services.sms.records import Decision, Verdict

log = structlog.get_logger(__name__)

_FIELDS: Final = ("decision", "reply", "reason", "confidence")
_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "decision": {"type": "string", "enum": ["yes", "no"]},
        "reply": {"type": "string"},
        "reason": {"type": "string"},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": list(_FIELDS),
    "additionalProperties": False,
}
_ATTEMPTS: Final = 2
_MOST_REASON: Final = 500


class _BrokenAnswer(Exception):
    """The model's answer is not what it was asked for; the words say what is wrong, and quote nothing."""


@dataclass(frozen=True, slots=True)
class DecisionLimits:
    """The model that decides, and the bounds of what it says."""

    model: str
    output_tokens: int
    reply_characters: int


class Decisions:
    """Decides about texts."""

    def __init__(self, store: DecisionStore, jobs: SmallJobs, limits: DecisionLimits) -> None:
        prompt = files("services.sms").joinpath("prompts", "decision.md").read_text(encoding="utf-8")
        self._instructions = prompt.replace("{characters}", str(limits.reply_characters))
        self._schema = AnswerSchema("decision_about_a_text", _SCHEMA)
        self._store = store
        self._jobs = jobs
        self._limits = limits

    async def decide(
        self, text: str, *, language: str, user_id: str, request_id: str | None, request_digest: bytes
    ) -> Decision:
        """The decision about a text, or the one that the request id named before.

        Raises AlreadyExists (REQUEST_ID_REUSED), ResourceExhausted (LIMIT_REACHED), Unavailable (MODEL_ANSWER_INVALID), and
        what the model's provider is refused by.
        """
        found = await self._store.admit(user_id=user_id, request_id=request_id, request_digest=request_digest)
        if found is not None:
            return found
        verdict = await self._ask(text, language)
        return await self._store.create(
            text, verdict, model=self._limits.model, user_id=user_id, request_id=request_id, request_digest=request_digest
        )

    async def _ask(self, text: str, language: str) -> Verdict:
        limits = self._limits
        asked = orjson.dumps({"text": text, "language": language}).decode()
        for attempt in range(_ATTEMPTS):
            answer = await self._jobs.complete(
                model=limits.model,
                instructions=self._instructions,
                text=asked,
                max_output_tokens=limits.output_tokens,
                schema=self._schema,
            )
            try:
                return read_verdict("" if answer.is_cut else answer.text, most_characters=limits.reply_characters)
            except _BrokenAnswer as error:
                log.warning("decision.answer_invalid", problem=str(error), attempt=attempt + 1, model=limits.model)
        raise Unavailable(
            "The model did not decide as it was asked to. Try again.",
            reasons.ERROR_REASON_MODEL_ANSWER_INVALID,
            metadata={"model": limits.model},
            retry_delay_seconds=1,
        )


def read_verdict(answer: str, *, most_characters: int) -> Verdict:
    """What a model has said, where it keeps the schema and the bounds. Raises _BrokenAnswer."""
    try:
        said = orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise _BrokenAnswer("no JSON") from None
    if not isinstance(said, dict) or set(said) != set(_FIELDS):
        raise _BrokenAnswer("other fields")
    decision, reply, reason, confidence = (said[name] for name in _FIELDS)
    if decision not in {"yes", "no"}:
        raise _BrokenAnswer("another decision")
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not _is_share(confidence):
        raise _BrokenAnswer("a confidence that is none")
    if not isinstance(reason, str) or not isinstance(reply, str) or CONTROL_CHARACTERS.search(reply + reason):
        raise _BrokenAnswer("words that are none")
    reply = reply.strip()
    if len(reply) > most_characters:
        raise _BrokenAnswer("a reply that is too long")
    if (decision == "yes") != bool(reply):
        raise _BrokenAnswer("a reply that does not fit the decision")
    return Verdict(decision == "yes", reply, reason.strip()[:_MOST_REASON], float(confidence))


def _is_share(number: float) -> bool:
    return math.isfinite(number) and 0 <= number <= 1
