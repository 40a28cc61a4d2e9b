"""The calls of one round of the model: checked, run at the same time, told and stored.

Owns what a call comes to. Invariants: a call that was begun gets exactly one result, which is stored before it is told; what
a tool raises is a result for the model; results stand in the order of the calls. It refuses to run a call again whose
process died in the middle of it, unless its tool does its work exactly once by itself.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from services.chat.log.reply import Reply
from services.chat.metrics import TOOL_CALLS
from services.chat.pieces import CallFinished, CallStarted, FunctionCall
from services.chat.records import ToolCall
from services.chat.tools.arguments import read_arguments
from services.chat.tools.call_store import Item, ToolCallStore
from services.chat.tools.tool import Heard, Invocation, Tool, ToolError
from services.runtime.errors import ServiceError
from services.runtime.rules import CONTROL_CHARACTERS

log = structlog.get_logger(__name__)

MAX_RESULT_CHARACTERS: Final = 100_000
_RUN_AT_ONCE: Final = 8
_END_SECONDS: Final = 2.0
_CUT: Final = " … (cut)"
_ASK_FIRST: Final = "It was not run: the user has to agree first. Say what you want to do, and ask."
_NOT_RUN: Final = "It was not run: there were too many calls in this turn. Go on with what you have."
_UNKNOWN_OUTCOME: Final = "It was interrupted; whether it took effect is unknown. Check before you repeat it."


@dataclass(frozen=True, slots=True)
class KeyedCall:
    """A call of the model, and the key that names it in its generation: the provider's ids may repeat in later rounds."""

    key: str
    call: FunctionCall


def keyed(calls: Iterable[FunctionCall], earlier: Sequence[KeyedCall] = ()) -> list[KeyedCall]:
    """The calls with their keys, which depend on nothing but the calls before them in the turn."""
    counts: dict[str, int] = {}
    for one in earlier:
        counts[one.call.call_id] = counts.get(one.call.call_id, 0) + 1
    found = []
    for call in calls:
        count = counts.get(call.call_id, 0)
        counts[call.call_id] = count + 1
        found.append(KeyedCall(f"{call.call_id}#{count + 1}" if count else call.call_id, call))
    return found


def refused(calls: Iterable[KeyedCall]) -> list[Item]:
    """What the model is told of calls beyond the bound."""
    return [_output(one, _NOT_RUN) for one in calls]


class ToolRunning:
    """Runs calls. Each may take `timeout_seconds`."""

    def __init__(self, store: ToolCallStore, *, timeout_seconds: float) -> None:
        self._store = store
        self._timeout_seconds = timeout_seconds

    def begin(self, reply: Reply, tools: Mapping[str, Tool], calls: Sequence[KeyedCall]) -> list[ToolCall]:
        """Tells that the calls have begun, and returns what is to be stored of them before they run."""
        begun = [_started(one, tools.get(one.call.name)) for one in calls]
        for call in begun:
            reply.add(CallStarted(call))
        return begun

    async def run(self, reply: Reply, tools: Mapping[str, Tool], calls: Sequence[KeyedCall]) -> list[Item]:
        """Runs calls that are stored as running; what each tells the model, in their order. Raises ServiceError."""
        gate = asyncio.Semaphore(_RUN_AT_ONCE)

        async def one(call: KeyedCall) -> Item:
            tool = tools.get(call.call.name)
            async with gate:
                work = self._run_one(reply, tool, call)
                return await (_whole(work) if tool is not None and tool.is_exactly_once else work)

        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(one(call)) for call in calls]
        except BaseExceptionGroup as errors:
            # As it was raised: whoever writes the reply knows it, and no group of it.
            raise _first(errors) from None
        return [task.result() for task in running]

    async def take_up(
        self, reply: Reply, tools: Mapping[str, Tool], calls: Sequence[KeyedCall], stored: Mapping[str, ToolCall]
    ) -> list[Item]:
        """What the calls of a round tell the model whose process died. `stored` is how each stands by its key.

        What has a result is not run again; what was running is only where its tool stores its change and result together.
        """
        again = [one for one in calls if one.key in stored and _may_repeat(stored[one.key], tools.get(one.call.name))]
        repeated = iter(await self.run(reply, tools, again))
        outputs: list[Item] = []
        for one in calls:
            call = stored.get(one.key)
            if call is None:
                outputs += refused([one])
            elif one in again:
                outputs.append(next(repeated))
            else:
                outputs.append(_output(one, _told(await self._end_dead(reply, call))))
        return outputs

    async def _end_dead(self, reply: Reply, call: ToolCall) -> ToolCall:
        if call.status == "running":
            call = await self._store.finish_call(
                reply.turn.generation, replace(call, status="failed", error=_UNKNOWN_OUTCOME)
            )
        reply.add(CallFinished(call))
        return call

    async def _run_one(self, reply: Reply, tool: Tool | None, call: KeyedCall) -> Item:
        begin, generation = time.monotonic(), reply.turn.generation
        invocation = _invocation(reply, call)
        ended = await self._store.finish_call(generation, await self._ended(tool, call, invocation))
        TOOL_CALLS.labels(ended.status).inc()
        log.info(
            "tool_call.ended",
            generation_id=generation.id,
            tool=ended.tool if tool else None,
            server_label=ended.server_label,
            status=ended.status,
            duration_ms=round((time.monotonic() - begin) * 1000),
        )
        reply.add(CallFinished(ended))
        return _output(call, _told(ended))

    async def _ended(self, tool: Tool | None, call: KeyedCall, invocation: Invocation) -> ToolCall:
        started = _started(call, tool)
        if tool is None:
            return replace(started, status="failed", error="There is no such tool.")
        if tool.needs_approval:
            return replace(started, status="approval_required")
        try:
            arguments = read_arguments(call.call.arguments, tool.spec.parameters)
            async with asyncio.timeout(self._timeout_seconds):
                result = await tool.run(arguments, invocation)
        except TimeoutError:
            error = f"It did not answer within {self._timeout_seconds:g} seconds."
        except ToolError as refusal:
            error = str(refusal)
        except ServiceError as refusal:
            error = refusal.message
        except Exception:
            # The border to tools: a fault in one costs the turn that tool and nothing else.
            log.exception("tool.faulted", generation_id=invocation.generation_id, tool=tool.tool)
            error = "The tool failed. Trying again is of no use."
        else:
            return replace(started, status="succeeded", result=_cut(result))
        return replace(started, status="failed", error=_cut(error))


def _invocation(reply: Reply, call: KeyedCall) -> Invocation:
    generation, said = reply.turn.generation, reply.turn.user_message
    return Invocation(
        user_id=generation.user_id,
        generation_id=generation.id,
        conversation_id=generation.conversation_id,
        call_id=call.key,
        heard=Heard(said.id, said.text, reply.memory_stamps, reply.calls),
    )


async def _whole(work: Coroutine[Any, Any, Item]) -> Item:
    """What is done as a whole or not at all: a cancellation waits a moment for its end, so that what happened is told."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_END_SECONDS)
        if not task.cancel():
            # Looked at: how the call ended is told, and nobody is left to be told of a fault.
            task.exception()
        raise


def _started(call: KeyedCall, tool: Tool | None) -> ToolCall:
    return ToolCall(
        id=call.key,
        tool=_cut(tool.tool if tool else call.call.name),
        server_label=tool.server_label if tool else "",
        arguments=_cut(call.call.arguments),
    )


def _may_repeat(stored: ToolCall, tool: Tool | None) -> bool:
    return stored.status == "running" and tool is not None and tool.is_exactly_once


def _told(call: ToolCall) -> str:
    if call.status == "approval_required":
        return _ASK_FIRST
    return call.result if call.status == "succeeded" else f"Error: {call.error}"


def _output(call: KeyedCall, output: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call.call.call_id, "output": output}


def _cut(text: str) -> str:
    """The text as it can be stored: no NUL, no half characters, and not longer than the bound."""
    text = CONTROL_CHARACTERS.sub("", text).encode(errors="replace").decode()
    return text if len(text) <= MAX_RESULT_CHARACTERS else text[: MAX_RESULT_CHARACTERS - len(_CUT)] + _CUT


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
