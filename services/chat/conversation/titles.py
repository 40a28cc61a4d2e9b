"""Titles of conversations, by the model.

Owns the job that asks for one, once, after the first turn of a conversation that ended well, and what is taken for a title.
Invariants: whatever the model says, a title is one line of at most 60 characters without quotes and markup; a model that
fails is asked a few times, and then the beginning of the first message stays for good.
"""

import asyncio
import re
import uuid
from dataclasses import replace
from importlib.resources import files
from typing import Final

import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.conversation.title_store import Cost, Exchange, TitleStore
from services.chat.generation_store import TITLE_CONVERSATION
from services.chat.model import Model
from services.chat.records import MAX_TITLE_CHARACTERS, Usage, title_of
from services.chat.usage.budget import Budget
from services.runtime.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, ServiceError, reason_name
from services.runtime.jobs import Jobs

log = structlog.get_logger(__name__)

_TRIES: Final = 3
_ANSWER_SECONDS: Final = 30.0
# Reasoning counts too, and a model that may not finish it says nothing.
_MOST_TOKENS: Final = 1_000
# What the provider puts around the text.
_AROUND_TOKENS: Final = 512
_INSTRUCTIONS: Final = (files("services.chat") / "prompts" / "title.md").read_text(encoding="utf-8")
# Links and images keep their words; what else is markup at the edges goes.
_LINK: Final = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_LABEL: Final = re.compile(r"^\W*title\W*:\s*", re.IGNORECASE)
_MARKS: Final = re.compile(r"[*`#<>~|]+|(?<!\w)_+|_+(?!\w)")
_EDGES: Final = " \t\"'“”„‟«»‹›‘’‚「」『』.,;:-–—"  # noqa: RUF001 - quotes of many languages


class Titles:
    """Asks the model `model_name` for titles, as far as the user's budget goes."""

    def __init__(self, store: TitleStore, model: Model, budget: Budget, *, model_name: str) -> None:
        self._store = store
        self._model = model
        self._budget = budget
        self._model_name = model_name

    def register(self, jobs: Jobs) -> None:
        """Makes the queue know the handler."""
        jobs.register(TITLE_CONVERSATION, self._title, tries=_TRIES, is_slow=True)

    async def _title(self, *, generation_id: str, user_id: str) -> None:
        exchange = await self._store.read_exchange(generation_id, user_id=user_id)
        if exchange is None:
            return
        # The same id at every try, so that a try whose process died reserves nothing besides the next.
        cost = Cost(str(uuid.uuid5(uuid.UUID(generation_id), "title")), user_id, self._model_name)
        try:
            said, usage = await self._ask(_told(exchange), cost)
        except (InvalidArgument, ResourceExhausted) as error:
            if isinstance(error, ResourceExhausted) and error.reason != reasons.ERROR_REASON_TOKEN_BUDGET_SPENT:
                raise
            # The same question gets the same answer.
            log.warning("title.refused", generation_id=generation_id, reason=reason_name(error.reason))
            return
        await self._store.keep_title(generation_id, title=tidy_title(said), cost=replace(cost, usage=usage))

    async def _ask(self, text: str, cost: Cost) -> tuple[str, Usage | None]:
        await self._budget.reserve(
            cost, len((_INSTRUCTIONS + text).encode()) + _AROUND_TOKENS + _MOST_TOKENS, spent_tokens=0
        )
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await self._model.complete(
                    model=self._model_name, instructions=_INSTRUCTIONS, text=text, max_output_tokens=_MOST_TOKENS
                )
        except (ServiceError, TimeoutError) as error:
            may_have_cost = isinstance(error, TimeoutError | DeadlineExceeded)
            await self._store.count_failure(replace(cost, may_have_cost=may_have_cost))
            raise


def tidy_title(said: str) -> str:
    """What a model said, as a title; empty when nothing of it can be one."""
    line = next((line for line in said.splitlines() if any(character.isalnum() for character in line)), "")
    plain = _MARKS.sub("", _LINK.sub(r"\1", _LABEL.sub("", line))).strip(_EDGES)
    return title_of(plain).strip(_EDGES)[:MAX_TITLE_CHARACTERS]


def _told(exchange: Exchange) -> str:
    return f"User: {exchange.said}\n\nAssistant: {exchange.answered}"
