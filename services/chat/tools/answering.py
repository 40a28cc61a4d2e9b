"""A reply as rounds of the model and the calls of tools between them.

Owns the loop and its bounds: rounds and calls a turn; running.py runs the calls of a round. Invariants: a round's items
and calls are stored before the first of them runs; what is stored is not done again, whoever goes on with the reply; beyond
a bound the model gets one last round without tools.
"""

import contextlib
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Final

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.context import Context
from services.chat.log.reply import Reply
from services.chat.model.provider import Model
from services.chat.model.request import HostedMcpServer, ModelRequest
from services.chat.model.response_stream import said_in
from services.chat.options import ReplyOptions
from services.chat.pieces import CallFinished, CallStarted, FunctionCall, Piece, Position, RoundEnd
from services.chat.records import ToolCall, Usage
from services.chat.tools.call_store import Item, Progress, RoundOver, ToolCallStore
from services.chat.tools.round_cost import DEFAULT_OUTPUT_TOKENS, bound_of_round
from services.chat.tools.running import KeyedCall, ToolRunning, keyed, refused
from services.chat.tools.tool import Tool, ToolSource
from services.chat.usage.budget import Budget
from services.runtime.errors import Internal

# What memory takes of one message; a reply that is longer is cut as one at its token limit is.
MAX_REPLY_CHARACTERS: Final = 400_000


@dataclass(frozen=True, slots=True)
class ReplyEnd:
    """The end of a reply: what all its rounds cost, and why it is incomplete, if it is."""

    usage: Usage | None
    incomplete_reason: str | None


@dataclass(frozen=True, slots=True)
class Resumption:
    """Where a reply stood when its process died: the provider's run, and the items of the rounds that were saved."""

    position: Position | None
    items: Sequence[Mapping[str, Any]]
    items_response_id: str | None


@dataclass(frozen=True, slots=True)
class ToolLimits:
    """Bounds of one turn: rounds after which tools are called, and calls in all. The settings say more."""

    max_rounds: int
    max_calls: int


@dataclass(slots=True)
class _Work:
    """One reply on its way: what the model may use, the items so far, and what they cost.

    Of `items` the first `stored_items` are stored; `rounds_read` are those of `rounds` that this process read.
    """

    reply: Reply
    context: Context
    options: ReplyOptions
    deadline: float
    tools: Mapping[str, Tool] = field(default_factory=dict)
    hosted: Sequence[HostedMcpServer] = ()
    items: list[Item] = field(default_factory=list)
    stored_items: int = 0
    usage: Usage | None = None
    rounds: int = 0
    rounds_read: int = 0
    calls: list[KeyedCall] = field(default_factory=list)


class Answering:
    """Writes replies. Holds no state of any of them."""

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        model: Model,
        store: ToolCallStore,
        running: ToolRunning,
        budget: Budget,
        *,
        sources: Sequence[ToolSource],
        limits: ToolLimits,
    ) -> None:
        self._model = model
        self._store = store
        self._running = running
        self._budget = budget
        self._sources = sources
        self._limits = limits

    async def answer(
        self, reply: Reply, context: Context, options: ReplyOptions, *, deadline: float, resumption: Resumption | None = None
    ) -> ReplyEnd:
        """Writes the reply into `reply` and returns its end. Raises ServiceError.

        With a `resumption` it goes on where another process died; the next attempt at a reply goes on after the rounds of
        the one before. The caller enforces `deadline` (on the loop's clock).
        """
        work = _Work(reply, context, context.told(options), deadline)
        position = resumption.position if resumption else None
        async with contextlib.AsyncExitStack() as boxes:
            await self._open_tools(work, boxes)
            if resumption is not None or reply.turn.generation.attempt > 1:
                progress = await self._store.read_progress(reply.turn.generation)
                await self._take_up(work, progress)
                if position is not None and position.response_id == progress.response_id:
                    # That round was read to its end; the next begins.
                    position = None
            return await self._rounds(work, position)

    async def _open_tools(self, work: _Work, boxes: contextlib.AsyncExitStack) -> None:
        tools: dict[str, Tool] = {}
        hosted: list[HostedMcpServer] = []
        for source in self._sources:
            box = await boxes.enter_async_context(source.open(work.reply.turn.generation.user_id, work.options))
            for tool in box.tools:
                tools.setdefault(tool.spec.name, tool)
            hosted += box.hosted
            if box.degraded:
                work.reply.degrade(box.degraded)
        work.tools, work.hosted = tools, hosted

    async def _take_up(self, work: _Work, progress: Progress) -> None:
        """Goes on from what is stored: tells what was said and called, and ends the calls of the last round."""
        work.items, work.stored_items, work.usage = list(progress.items), len(progress.items), progress.usage
        # What another process told of it is in the reply already; of an earlier attempt nothing is.
        is_said = work.reply.has_output
        answered = sum(_is_output(item) for item in progress.items)
        for said in _rounds_in(progress.items):
            if not is_said:
                _say_again(work.reply, said)
            calls = keyed(_calls_in(said), work.calls)
            _tell_calls(work.reply, calls, progress.calls, are_over=len(work.calls) < answered)
            work.calls += calls
            work.rounds += 1
        pending = work.calls[answered:]
        work.items += await self._running.take_up(work.reply, work.tools, pending, progress.calls)

    async def _rounds(self, work: _Work, position: Position | None) -> ReplyEnd:
        while True:
            may_call = work.rounds < self._limits.max_rounds and len(work.calls) < self._limits.max_calls
            end = await self._round(work, position, may_call=may_call)
            position = None
            if end is None:
                return ReplyEnd(None, "MAX_OUTPUT_TOKENS")
            work.rounds += 1
            work.rounds_read += 1
            work.usage = _sum(work.usage, end.usage)
            if not end.calls or not may_call or end.incomplete_reason:
                return ReplyEnd(work.usage, end.incomplete_reason)
            await self._call_tools(work, end)

    async def _round(self, work: _Work, position: Position | None, *, may_call: bool) -> RoundEnd | None:
        """Reads one round into the reply; None when the reply became too long."""
        request = self._request(work, may_call=may_call)
        await self._reserve(work, request)
        if position is None:
            work.reply.begin_round()
            pieces = self._model.round(request, deadline=work.deadline)
        else:
            # Of this round a part is in the reply already.
            pieces = self._model.resume(request, position, deadline=work.deadline)
        return await _read(pieces, work.reply)

    def _request(self, work: _Work, *, may_call: bool) -> ModelRequest:
        generation, options = work.reply.turn.generation, work.options
        if not may_call:
            options = replace(options, use_web_search=False, use_code_interpreter=False)
        if self._budget.is_bounded and options.max_output_tokens is None:
            options = replace(options, max_output_tokens=DEFAULT_OUTPUT_TOKENS)
        return ModelRequest(
            model=generation.model,
            conversation_id=generation.conversation_id,
            options=options,
            messages=work.context.messages,
            images=work.context.images,
            items=tuple(work.items),
            functions=[tool.spec for tool in work.tools.values()] if may_call else (),
            hosted_mcp=work.hosted if may_call else (),
            is_background=self._model.runs_in_background(work.options),
        )

    async def _reserve(self, work: _Work, request: ModelRequest) -> None:
        if self._budget.is_bounded:
            spent = None if work.rounds_read else 0
            if work.usage is not None:
                spent = work.usage.input_tokens + work.usage.output_tokens
            await self._budget.reserve(work.reply.turn.generation, bound_of_round(request), spent_tokens=spent)

    async def _call_tools(self, work: _Work, end: RoundEnd) -> None:
        """Stores the round, runs its calls, and adds both to what the next round is told."""
        generation, calls = work.reply.turn.generation, keyed(end.calls, work.calls)
        room = self._limits.max_calls - len(work.calls)
        begun = self._running.begin(work.reply, work.tools, calls[:room])
        work.calls += calls
        work.items += end.items
        added = work.items[work.stored_items :]
        await self._store.start_calls(
            generation,
            RoundOver(
                work.stored_items,
                added,
                end.response_id,
                usage=work.usage,
                calls=begun,
                kept_response_ids=work.reply.response_ids,
            ),
        )
        work.stored_items = len(work.items)
        work.items += await self._running.run(work.reply, work.tools, calls[:room])
        work.items += refused(calls[room:])


async def _read(pieces: AsyncGenerator[Piece | RoundEnd, None], reply: Reply) -> RoundEnd | None:
    # Nothing is awaited between two pieces: the provider would wait with us.
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, str):
                reply.write(piece)
                if reply.length > MAX_REPLY_CHARACTERS:
                    return None
            elif isinstance(piece, RoundEnd):
                return piece
            elif isinstance(piece, Position):
                reply.note(piece)
            else:
                reply.add(piece)
    raise Internal("The model ended without an end.", reasons.ERROR_REASON_INTERNAL_FAULT)


def _sum(one: Usage | None, other: Usage | None) -> Usage | None:
    """What both cost together, as far as it is known."""
    if one is None or other is None:
        return one or other
    return Usage(*(mine + its for mine, its in zip(astuple(one), astuple(other), strict=True)))


def _say_again(reply: Reply, said: Sequence[Item]) -> None:
    reply.begin_round()
    for piece in said_in(said, reply.turn.generation.model):
        if isinstance(piece, str):
            reply.write(piece)
        elif not isinstance(piece, Position):
            reply.add(piece)


def _tell_calls(reply: Reply, calls: Sequence[KeyedCall], stored: Mapping[str, ToolCall], *, are_over: bool) -> None:
    for one in calls:
        if call := stored.get(one.key):
            reply.add(CallStarted(replace(call, status="running", result="", error="")))
            if are_over:
                reply.add(CallFinished(call))


def _rounds_in(items: Sequence[Item]) -> list[list[Item]]:
    """What the model put out in each round. What its calls came to stands between them, all of a round or nothing."""
    return [list(said) for is_output, said in itertools.groupby(items, _is_output) if not is_output]


def _is_output(item: Item) -> bool:
    return bool(item["type"] == "function_call_output")


def _calls_in(said: Sequence[Item]) -> list[FunctionCall]:
    calls = [item for item in said if item["type"] == "function_call"]
    return [FunctionCall(item["call_id"], item["name"], item["arguments"]) for item in calls]
