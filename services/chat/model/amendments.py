"""What a provider does not take, and how a round is asked without it.

Owns what this process has learned of its provider. Only what we added by ourselves is left out, or what has broken on its
own (a container, an MCP server); what the user asked for and the provider refuses is an error that names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from services.chat.model.provider_calls import failed_server
from services.chat.model.request import HostedMcpServer, ModelRequest
from services.chat.model.response_body import BACKGROUND, ENCRYPTED_REASONING, REASONING_SUMMARY, unpaired
from services.chat.pieces import Piece
from services.runtime.errors import ServiceError
from services.runtime.openai import Refusal

MAX_KNOWN: Final = 1_000
_FAILED_DEPENDENCY: Final = 424
_FUNCTIONS: Final = "tools"
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Round:
    """A round as it is asked now."""

    request: ModelRequest
    is_background: bool
    without: frozenset[str]
    has_lost_container: bool = False
    told: list[Piece] = field(default_factory=list)
    """What is to be told of what was left out."""


class Amendments:
    """What this process knows of its provider. Bounded."""

    def __init__(self) -> None:
        self.refuses_background = False
        self._refused: set[tuple[str, str]] = set()

    def first(self, request: ModelRequest) -> Round:
        """The round as it is asked first."""
        own = (ENCRYPTED_REASONING, REASONING_SUMMARY)
        without = frozenset(name for name in own if (request.model, name) in self._refused)
        if (request.model, _FUNCTIONS) in self._refused:
            request = _without_optional(request)
        return Round(request, request.is_background and not self.refuses_background, without)

    def amended(self, asked: Round, error: ServiceError, *, has_text: bool) -> bool:
        """Whether the round is to be asked again, changed. Each change is made once."""
        refusal = error.__cause__
        if not isinstance(refusal, Refusal) or has_text or (refusal.status or 400) >= 500:  # noqa: PLR2004
            return False
        return (
            self._without_background(asked, refusal)
            or self._without_own(asked, refusal)
            or self._without_functions(asked, refusal)
            or self._without_container(asked, refusal)
            or self._without_servers(asked, refusal)
        )

    def _without_background(self, asked: Round, refusal: Refusal) -> bool:
        if not asked.is_background or not (refusal.parameter in (BACKGROUND, "store") or refusal.mentions(BACKGROUND)):
            return False
        asked.is_background = False
        self.refuses_background = True
        log.warning("model.background_refused", model=asked.request.model)
        return True

    def _without_own(self, asked: Round, refusal: Refusal) -> bool:
        name = refusal.parameter
        if name not in (ENCRYPTED_REASONING, REASONING_SUMMARY) or name in asked.without:
            return False
        self._note_refused(asked, name)
        asked.without |= {name}
        return True

    def _without_functions(self, asked: Round, refusal: Refusal) -> bool:
        """Some models take no functions. Only where all that were offered are our own is it sure that these are meant."""
        request = asked.request
        if request.items or not _offers_only_optional(request) or not refusal.mentions("tool", "function"):
            return False
        self._note_refused(asked, _FUNCTIONS)
        asked.request = _without_optional(request)
        return True

    def _note_refused(self, asked: Round, name: str) -> None:
        if len(self._refused) >= MAX_KNOWN:
            self._refused.clear()
        self._refused.add((asked.request.model, name))
        log.info("model.parameter_refused", model=asked.request.model, parameter=name)

    def _without_container(self, asked: Round, refusal: Refusal) -> bool:
        if asked.has_lost_container or not asked.request.options.use_code_interpreter or not refusal.mentions("container"):
            return False
        asked.has_lost_container = True
        asked.request = replace(asked.request, items=unpaired(asked.request.items))
        log.warning("model.container_lost", model=asked.request.model)
        return True

    def _without_servers(self, asked: Round, refusal: Refusal) -> bool:
        servers = asked.request.hosted_mcp
        if not servers or not (refusal.status == _FAILED_DEPENDENCY or refusal.mentions("mcp server")):
            return False
        broken = _named(servers, refusal)
        asked.request = replace(asked.request, hosted_mcp=[server for server in servers if server not in broken])
        for server in broken:
            asked.told.extend(failed_server(server.label, "The provider could not use the MCP server."))
            log.warning("model.mcp_server_failed", model=asked.request.model, server_label=server.label)
        return True


def _offers_only_optional(request: ModelRequest) -> bool:
    options = request.options
    has_others = request.hosted_mcp or options.use_web_search or options.use_code_interpreter
    return bool(request.functions) and not has_others and all(one.is_optional for one in request.functions)


def _without_optional(request: ModelRequest) -> ModelRequest:
    return replace(request, functions=[one for one in request.functions if not one.is_optional])


def _named(servers: Sequence[HostedMcpServer], refusal: Refusal) -> Sequence[HostedMcpServer]:
    """Those that the provider names; all of them where it names none."""
    return [server for server in servers if refusal.mentions(f"'{server.label.lower()}'")] or servers
