"""From the contract's requests to what the domain takes, with the checks that no field rule can say.

Owns those checks and the digest that tells whether two requests with one request id are the same. Raises InvalidArgument
(INVALID_REQUEST) with a violation for each field that is wrong.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeVar, cast

from parley.chat.v1 import chat_pb2, conversation_pb2
from services.chat.model import ReplyOptions
from services.chat.turn_store import TurnDraft
from services.runtime.errors import FieldViolation, invalid_request
from services.runtime.openai import OpenAISettings, ReasoningEffort

IDEMPOTENCY_KEY: Final = "idempotency-key"
MAX_REQUEST_ID_CHARACTERS: Final = 200


class _Named(Protocol):
    @property
    def request_id(self) -> str: ...


class RequestReading:
    """Reads requests. `instructions` and the settings fill what a request leaves open."""

    def __init__(self, settings: OpenAISettings, *, instructions: str) -> None:
        self._settings = settings
        self._instructions = instructions

    def draft(self, request: chat_pb2.CompletionRequest, *, user_id: str, metadata: Mapping[str, str]) -> TurnDraft:
        """The turn that a request asks for."""
        check(_wrong_messages(request))
        said = [(one.role, one.text) for one in request.messages] or [("user", request.message)]
        return TurnDraft(
            user_id=user_id,
            conversation_id=request.conversation_id.lower() or None,
            said=said,
            metadata=dict(request.metadata),
            request_id=request_id_of(request, metadata),
            request_digest=digest_of(request, ("request_id", "user_id")),
            model=request.model or self._settings.openai_model,
        )

    def options(self, request: chat_pb2.CompletionRequest, *, user_id: str) -> ReplyOptions:
        """How the reply is to be written."""
        settings = self._settings
        effort = cast(ReasoningEffort, request.reasoning_effort) if request.reasoning_effort else None
        bound = request.max_output_tokens if request.HasField("max_output_tokens") else None
        temperature = request.temperature if request.HasField("temperature") else None
        return ReplyOptions(
            instructions=request.instructions or self._instructions,
            reasoning_effort=effort or settings.openai_reasoning_effort,
            max_output_tokens=settings.openai_max_output_tokens if bound is None else bound,
            temperature=settings.openai_temperature if temperature is None else temperature,
            user_digest=hashlib.sha256(user_id.encode()).hexdigest()[:32],
        )


def request_id_of(request: _Named, metadata: Mapping[str, str]) -> str | None:
    """The request id, from the field or the `idempotency-key` header, which must not contradict each other."""
    header = metadata.get(IDEMPOTENCY_KEY, "")
    if request.request_id and header and request.request_id != header:
        check([FieldViolation("request_id", "differs from the Idempotency-Key header: send one, or the same twice")])
    if len(header) > MAX_REQUEST_ID_CHARACTERS:
        check([FieldViolation("request_id", "the Idempotency-Key header must be at most 200 characters long")])
    return request.request_id or header or None


R = TypeVar("R", chat_pb2.CompletionRequest, conversation_pb2.CreateConversationRequest)


def digest_of(request: R, without: Sequence[str]) -> bytes:
    """What makes a request the same as another: everything but these fields."""
    counted = type(request)()
    counted.CopyFrom(request)
    for field in without:
        counted.ClearField(field)  # type: ignore[arg-type]  # field names are literals in the stubs
    return hashlib.sha256(counted.SerializeToString(deterministic=True)).digest()


def wrong_mask(request: conversation_pb2.UpdateConversationRequest) -> list[FieldViolation]:
    """What is wrong with the fields that an update names."""
    unknown = sorted(set(request.update_mask.paths) - {"title"})
    return [FieldViolation("update_mask", f"`{path}` cannot be changed: only `title` can") for path in unknown]


def check(violations: Sequence[FieldViolation]) -> None:
    """Refuses a request with violations."""
    if violations:
        raise invalid_request(violations)


def _wrong_messages(request: chat_pb2.CompletionRequest) -> list[FieldViolation]:
    if bool(request.message) == bool(request.messages):
        return [FieldViolation("message", "say something, either here or in `messages`")]
    if not request.messages:
        return []
    if request.messages[-1].role != "user":
        return [FieldViolation("messages", "the last message must be the user's")]
    if len(request.messages) > 1 and request.conversation_id:
        return [FieldViolation("messages", "earlier messages are only allowed where a conversation begins")]
    return []
