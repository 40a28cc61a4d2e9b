"""From the contract's requests to what the domain takes, with the checks that no field rule can say.

Owns those checks, and what a request, the user's preferences and the settings decide together. Raises InvalidArgument
(INVALID_REQUEST) with a violation for each field that is wrong. Invariant: the secrets of a request leave here in the
options of this process and, for storage, sealed.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from parley.chat.v1 import chat_pb2, conversation_pb2
from services.chat.mcp.addresses import Addresses, wrong_headers
from services.chat.options import McpServerChoice, ReplyOptions
from services.chat.preferences import PreferenceClient, Preferences
from services.chat.request.images import read_images
from services.chat.request.instructions import told
from services.chat.request.option_secrets import seal_secrets
from services.chat.request.response_schema import SchemaError, read_schema
from services.chat.settings import ChatSettings
from services.chat.tools.round_cost import DEFAULT_OUTPUT_TOKENS
from services.chat.turn_draft import TurnDraft
from services.chat.versions import Replacement
from services.runtime.errors import FieldViolation, InvalidArgument, invalid_request
from services.runtime.openai import ReasoningEffort
from services.runtime.request_ids import digest_of, request_id_of
from services.runtime.sealing import Seal

LAST_EVENT_ID: Final = "last-event-id"
_MOST_DIGITS: Final = 10

Asked = chat_pb2.CompletionRequest | chat_pb2.CompletionOptions
Replacing = chat_pb2.EditMessageRequest | chat_pb2.RegenerateReplyRequest


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A request as the domain takes it. `preferences` are those that went into it."""

    draft: TurnDraft
    options: ReplyOptions
    preferences: Preferences


class RequestReading:
    """Reads requests. The user's preferences and the settings fill what a request leaves open."""

    def __init__(self, settings: ChatSettings, *, preferences: PreferenceClient, addresses: Addresses, seal: Seal) -> None:
        self._settings = settings
        self._preferences = preferences
        self._addresses = addresses
        self._seal = seal

    async def completion(
        self, request: chat_pb2.CompletionRequest, *, user_id: str, metadata: Mapping[str, str]
    ) -> ReadRequest:
        """The turn that a request asks for."""
        images, wrong = read_images(request.images)
        check([*_wrong_messages(request), *wrong])
        chosen = await self._choose(request, user_id=user_id)
        said = [(one.role, one.text) for one in request.messages] or [("user", request.message)]
        draft = chosen.draft(
            conversation_id=request.conversation_id.lower() or None,
            said=said,
            metadata=dict(request.metadata),
            request_id=request_id_of(request, metadata),
            request_digest=digest_of(request, ("request_id", "user_id")),
            images=images,
        )
        return ReadRequest(draft, chosen.options, chosen.preferences)

    async def replacement(self, request: Replacing, *, user_id: str, metadata: Mapping[str, str]) -> ReadRequest:
        """The turn that is to take the place of the last one."""
        chosen = await self._choose(request.options, user_id=user_id, path="options.")
        is_edit = isinstance(request, chat_pb2.EditMessageRequest)
        draft = chosen.draft(
            conversation_id=request.conversation_id.lower(),
            said=[("user", request.message)] if isinstance(request, chat_pb2.EditMessageRequest) else [],
            metadata={},
            request_id=request_id_of(request, metadata),
            request_digest=digest_of(request, ("request_id",)),
            replaces=Replacement(request.message_id.lower(), "edit" if is_edit else "regenerate"),
        )
        return ReadRequest(draft, chosen.options, chosen.preferences)

    async def utterance(
        self, request: chat_pb2.ProcessUtteranceRequest, *, user_id: str, metadata: Mapping[str, str]
    ) -> ReadRequest:
        """The turn that an utterance or text asks for, in the last conversation of its kind where it names none."""
        is_text = request.channel == "sms"
        # By text there is no other way to the user's tasks.
        chosen = await self._choose(chat_pb2.CompletionOptions(use_tasks=is_text), user_id=user_id, by_text=is_text)
        draft = chosen.draft(
            conversation_id=request.conversation_id.lower() or None,
            said=[("user", request.text)],
            metadata={},
            request_id=request_id_of(request, metadata),
            request_digest=digest_of(request, ("request_id", "user_id")),
            spoken_within_seconds=chosen.preferences.conversation_timeout_seconds,
            kind="texted" if is_text else "spoken",
        )
        return ReadRequest(draft, chosen.options, chosen.preferences)

    async def _choose(self, asked: Asked, *, user_id: str, path: str = "", by_text: bool = False) -> "_Chosen":
        schema, wrong = _schema(asked, path)
        servers = [_server(one) for one in asked.mcp_servers]
        check([*wrong, *_wrong_servers(servers, path), *await self._wrong_addresses(servers, path)])
        known = await self._preferences.of(user_id)
        preferences, settings = known.preferences, self._settings
        effort = cast(ReasoningEffort, asked.reasoning_effort) if asked.reasoning_effort else None
        options = ReplyOptions(
            instructions=told(asked.instructions or settings.assistant_instructions, preferences, by_text=by_text),
            reasoning_effort=effort or preferences.reasoning_effort or settings.openai_reasoning_effort,
            max_output_tokens=self._output_bound(asked),
            temperature=asked.temperature if asked.HasField("temperature") else settings.openai_temperature,
            user_digest=hashlib.sha256(user_id.encode()).hexdigest()[:32],
            response_schema=schema,
            use_web_search=asked.use_web_search,
            use_code_interpreter=asked.use_code_interpreter,
            use_tasks=asked.use_tasks,
            memory_enabled=asked.memory_enabled if asked.HasField("memory_enabled") else preferences.memory_enabled,
            mcp_servers=servers,
            degraded=() if known.is_current else ("preferences",),
        )
        return _Chosen(
            user_id=user_id,
            model=asked.model or preferences.model or settings.openai_model,
            options=options,
            preferences=preferences,
            sealed_secrets=seal_secrets(self._seal, options, user_id=user_id),
        )

    def _output_bound(self, asked: Asked) -> int | None:
        if asked.HasField("max_output_tokens"):
            return asked.max_output_tokens
        bound = self._settings.openai_max_output_tokens
        # What may cost anything cannot be reserved.
        return DEFAULT_OUTPUT_TOKENS if bound is None and self._settings.token_budget_per_day else bound

    async def _wrong_addresses(self, servers: Sequence[McpServerChoice], path: str) -> list[FieldViolation]:
        checks = (self._wrong_address(one.url, f"{path}mcp_servers[{index}].url") for index, one in enumerate(servers))
        return [violation for found in await asyncio.gather(*checks) for violation in found]

    async def _wrong_address(self, url: str, field: str) -> Sequence[FieldViolation]:
        try:
            await self._addresses.check_url(url, field=field)
        except InvalidArgument as error:
            return error.violations
        return ()


@dataclass(frozen=True, slots=True)
class _Chosen:
    """How a reply is to be written, decided."""

    user_id: str
    model: str
    options: ReplyOptions
    preferences: Preferences
    sealed_secrets: bytes | None

    def draft(self, **rest: Any) -> TurnDraft:
        """A draft with what was decided."""
        return TurnDraft(
            user_id=self.user_id,
            model=self.model,
            options=self.options.to_stored(),
            sealed_secrets=self.sealed_secrets,
            **rest,
        )


def last_event_id(metadata: Mapping[str, str]) -> int:
    """The sequence in the `last-event-id` header, 0 without one."""
    value = metadata.get(LAST_EVENT_ID, "").strip()
    if not value:
        return 0
    if not (value.isascii() and value.isdigit()) or len(value) > _MOST_DIGITS:
        check([FieldViolation("after_sequence", "the Last-Event-ID header must be the `id` of an event that came before")])
    return int(value)


def wrong_mask(request: conversation_pb2.UpdateConversationRequest) -> list[FieldViolation]:
    """What is wrong with the fields that an update names."""
    unknown = sorted(set(request.update_mask.paths) - {"title"})
    return [FieldViolation("update_mask", f"`{path}` cannot be changed: only `title` can") for path in unknown]


def wrong_place(request: conversation_pb2.ReadTurnsRequest) -> list[FieldViolation]:
    """What is wrong with the place that a history goes on from."""
    if request.HasField("before_time") == bool(request.before_id):
        return []
    return [FieldViolation("before_id", "a place is a time and an id: name both, or neither")]


def without_words(query: str) -> list[FieldViolation]:
    """What is wrong with a search for nothing."""
    if any(character.isalnum() for character in query):
        return []
    return [FieldViolation("query", "holds no word: name at least one letter or digit")]


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


def _schema(asked: Asked, path: str) -> tuple[dict[str, Any] | None, list[FieldViolation]]:
    if not asked.HasField("response_schema"):
        return None, []
    try:
        return read_schema(asked.response_schema), []
    except SchemaError as error:
        return None, [FieldViolation(f"{path}response_schema", str(error))]


def _server(option: chat_pb2.McpServerOption) -> McpServerChoice:
    return McpServerChoice(
        label=option.label,
        url=option.url,
        headers=dict(option.headers),
        allowed_tools=list(dict.fromkeys(option.allowed_tools)),
        approval=option.approval or "never",
    )


def _wrong_servers(servers: Sequence[McpServerChoice], path: str) -> list[FieldViolation]:
    """Labels name servers whatever their case, as those do that the user keeps."""
    found: list[FieldViolation] = []
    seen: set[str] = set()
    for index, server in enumerate(servers):
        where = f"{path}mcp_servers[{index}]"
        if server.label.lower() in seen:
            found.append(FieldViolation(f"{where}.label", "names another server of this request too"))
        seen.add(server.label.lower())
        found += wrong_headers(server.headers, field=f"{where}.headers")
    return found
