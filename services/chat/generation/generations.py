"""The replies that this process is writing.

Owns their tasks and their end. Invariants: a generation belongs to this owner and not to a call, so a client that leaves
changes nothing; whatever happens, it ends with one saved outcome and one terminal event, which is told once that is saved;
what this process lost to another is told and written here no more. It refuses more replies than it may hold, and new ones
once it drains.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.generation.writing import Start, Writing
from services.chat.generation_store import GenerationStore, interrupted
from services.chat.lease_store import LeaseStore, Sign, Taken
from services.chat.log.event_feed import stopping
from services.chat.log.event_log import EventLog
from services.chat.log.reply import Ending, Reply
from services.chat.metrics import REPLIES, RUNNING, TIME_TO_FIRST_TOKEN, TOKENS
from services.chat.options import ReplyOptions
from services.chat.records import Failure, KnownConversation, Turn
from services.chat.tools.answering import MAX_REPLY_CHARACTERS, ReplyEnd
from services.chat.turn_end import Outcome
from services.runtime.calls import acting_for, current_caller, detached
from services.runtime.errors import ResourceExhausted, ServiceError

log = structlog.get_logger(__name__)

# Under load a save waits its turn; the lease is renewed meanwhile.
_SAVE_SECONDS = 60.0
_INTERRUPTED_SAVE_SECONDS = 10.0
_FLUSH_SECONDS = 2.0
_DRAIN_TICK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """Bounds of the replies of one process; the settings of the same names say what they are."""

    max_generations: int
    generation_deadline_seconds: float
    reader_retention_seconds: float


class Generations:
    """The running generations of this process."""

    def __init__(
        self, store: GenerationStore, leases: LeaseStore, log: EventLog, writing: Writing, limits: GenerationLimits
    ) -> None:
        self._store = store
        self._leases = leases
        self._log = log
        self._writing = writing
        self._limits = limits
        self._replies: dict[str, Reply] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._starting = 0
        self._is_stopping = False

    @contextlib.contextmanager
    def place(self) -> Iterator[ServiceError | None]:
        """Keeps a place for a generation that is about to start; yields why there is none, if there is none."""
        refusal = self._refusal()
        self._starting += refusal is None
        try:
            yield refusal
        finally:
            self._starting -= refusal is None

    def _refusal(self) -> ServiceError | None:
        if self._is_stopping:
            return stopping()
        if self.room <= 0:
            return ResourceExhausted(
                "The service writes as many replies as it can. Try again.",
                reasons.ERROR_REASON_TOO_MANY_GENERATIONS,
                retry_delay_seconds=round(random.uniform(1, 3), 1),  # noqa: S311 - jitter, no secret
            )
        return None

    @property
    def room(self) -> int:
        """How many more replies this process would write; none once it stops."""
        return 0 if self._is_stopping else self._limits.max_generations - len(self._tasks) - self._starting

    def start(self, turn: Turn, known: KnownConversation, options: ReplyOptions, *, arrival: float) -> Reply:
        """Starts writing the reply of a turn that was just begun by this process."""
        reply = Reply(turn, self._log, arrival=arrival)
        deadline = asyncio.get_running_loop().time() + self._limits.generation_deadline_seconds
        self._run(reply, Start(known, options, deadline))
        return reply

    def adopt(self, taken: Taken, reply: Reply) -> None:
        """Goes on with a reply that was taken over, where Writing.resumption says how; else closes it as it is.

        What this process wrote of it before, and lost unawares, it lets go of.
        """
        if earlier := self.find(reply.turn.generation.id):
            self._lose(earlier)
        deadline = asyncio.get_running_loop().time() + self._limits.generation_deadline_seconds - taken.age_seconds
        start = None
        if taken.is_cancel_requested:
            reply.is_cancelled = True
        else:
            start = self._writing.resumption(taken, reply, deadline)
        reply.is_resumed = start is not None
        self._run(reply, start)

    def _run(self, reply: Reply, start: Start | None) -> None:
        generation_id = reply.turn.generation.id
        self._replies[generation_id] = reply
        reply.tape.on_idle = lambda: self._release_idle(reply)
        reply.line.on_lost = lambda: self._lose(reply)
        work = self._write(reply, start)
        task = asyncio.create_task(work, name=f"generation-{generation_id}", context=detached())
        self._tasks[generation_id] = task
        task.add_done_callback(lambda done: self._forget(reply, done))

    def find(self, generation_id: str) -> Reply | None:
        """The reply, if this process writes it or still has readers on it."""
        return self._replies.get(generation_id)

    def running(self) -> dict[str, Reply]:
        """The replies that are being written or saved."""
        return {key: self._replies[key] for key in self._tasks if key in self._replies}

    def stop(self, generation_ids: Iterable[str]) -> None:
        """Ends generations that are not to go on: their conversation was deleted."""
        for generation_id in generation_ids:
            task, reply = self._tasks.get(generation_id), self._replies.get(generation_id)
            # What is being saved already finds out by itself.
            if task is not None and reply is not None and not reply.is_finishing:
                task.cancel()

    async def stop_everywhere(self, generation_ids: Sequence[str]) -> None:
        """As `stop`, on whichever process they run. Where that cannot be told, it finds out when it renews its leases."""
        self.stop(generation_ids)
        for generation_id in generation_ids:
            if generation_id not in self._tasks:
                await self._log.announce("stop", generation_id)

    async def forget_logs(self, generation_ids: Sequence[str]) -> None:
        """Deletes the logs of generations whose conversation is gone; they also expire by themselves."""
        if generation_ids:
            await self._log.delete(generation_ids)

    def cancel(self, generation_id: str) -> None:
        """Stops a reply because its user wants it; what was written is kept. Idempotent."""
        reply = self._replies.get(generation_id)
        if reply is not None and not reply.is_finishing:
            reply.is_cancelled = True
            self.stop([generation_id])

    def _lose(self, reply: Reply) -> None:
        """Lets go of what is another process's now, or another reply's here: nothing is saved, and its readers go there."""
        generation_id = reply.turn.generation.id
        if self._replies.get(generation_id) is not reply:
            return
        del self._replies[generation_id]
        if not reply.has_ended:
            log.warning("generation.lost", generation_id=generation_id)
            reply.leave()
            if task := self._tasks.get(generation_id):
                task.cancel()

    async def _write(self, reply: Reply, start: Start | None) -> None:
        with RUNNING.track_inprogress(), contextlib.ExitStack() as identity:
            if reply.turn.generation.epoch > 1 or current_caller().session_id is None:
                # Taken over, or asked for by a service on behalf of the user: no token of the user's own is there, and what
                # a service has shown to this one is no good elsewhere.
                identity.enter_context(acting_for(reply.turn.generation.user_id))
            try:
                end, failure = await self._writing.write(reply, start)
            except asyncio.CancelledError:
                if not reply.has_ended:
                    await self._finish(reply, None, interrupted(reply.turn.generation.id))
                raise
            if not reply.has_ended:
                await self._finish(reply, end, failure)

    async def _finish(self, reply: Reply, end: ReplyEnd | None, failure: Failure | None) -> None:
        generation = reply.turn.generation
        outcome = Outcome(
            text=reply.text[:MAX_REPLY_CHARACTERS],
            incomplete_reason=end.incomplete_reason if end else None,
            usage=end.usage if end else None,
            timings=reply.timings(),
            told=reply.close(end.usage if end else None),
            degraded=reply.degraded,
            memory_ids=reply.memory_ids,
            response_ids=reply.response_ids,
            failure=None if reply.is_cancelled else failure,
            is_cancelled=reply.is_cancelled,
        )
        try:
            async with asyncio.timeout(_SAVE_SECONDS):
                ending = await self._saved(reply.turn, outcome)
        except (ServiceError, TimeoutError) as error:
            # The lease expires unrenewed, and whoever takes it over closes it; the readers wait for that.
            log.warning("generation.save_failed", generation_id=generation.id, error=type(error).__name__)
            ending = None
        if ending is None:
            self._lose(reply)
            return
        if ending.reply is None:
            reply.line.delete_at_end()
        reply.end(ending, outcome.told)
        self._report(reply, ending, outcome)
        if end is None:
            await self._writing.cancel(reply)
        if ending.reply is None:
            await self._forget_responses(reply)

    async def _forget_responses(self, reply: Reply) -> None:
        """A conversation that was deleted takes with it what the provider kept, also what its row did not name yet."""
        try:
            await self._store.forget_responses(reply.response_ids, user_id=reply.turn.generation.user_id)
        except ServiceError as error:
            log.warning("generation.responses_not_forgotten", error=type(error).__name__)

    async def _saved(self, turn: Turn, outcome: Outcome) -> Ending | None:
        """How the reply ended, as saved by this process; None when another process took it over."""
        generation = turn.generation
        saved = await self._store.finish_turn(turn, outcome)
        if saved is not None:
            return Ending(saved, outcome.failure, outcome.is_cancelled)
        stored = await self._store.read_turn(generation.id, user_id=generation.user_id)
        if stored is None:
            return Ending(None, None)
        if stored.generation.epoch == generation.epoch and stored.generation.status != "running":
            # Committed, though its answer was lost.
            return Ending(stored.reply, stored.generation.failure, stored.generation.status == "cancelled")
        return None

    def _report(self, reply: Reply, ending: Ending, outcome: Outcome) -> None:
        generation = reply.turn.generation
        is_cancelled = ending.is_cancelled or ending.reply is None
        reason = ending.failure.reason if ending.failure else "CANCELLED" if is_cancelled else ""
        REPLIES.labels(reason or "COMPLETED").inc()
        if outcome.timings.time_to_first_token_ms:
            TIME_TO_FIRST_TOKEN.observe(outcome.timings.time_to_first_token_ms / 1000)
        if outcome.usage is not None:
            TOKENS.labels("input").inc(outcome.usage.input_tokens)
            TOKENS.labels("output").inc(outcome.usage.output_tokens)
        log.info(
            "generation.ended",
            generation_id=generation.id,
            conversation_id=generation.conversation_id,
            model=generation.model,
            reason=reason,
            duration_ms=outcome.timings.processing_time_ms,
        )

    def _forget(self, reply: Reply, task: asyncio.Task[None]) -> None:
        """Lets go of an ended generation; readers that are behind get a while to catch up."""
        generation_id = reply.turn.generation.id
        if self._tasks.get(generation_id) is task:
            del self._tasks[generation_id]
        if not reply.has_ended:
            # Cancelled before its first step, or a fault: the row's lease expires, and whoever takes it over closes it.
            fault = None if task.cancelled() else task.exception()
            log.error("generation.abandoned", generation_id=generation_id, exc_info=fault)
            self._lose(reply)
        elif self._replies.get(generation_id) is reply:
            asyncio.get_running_loop().call_later(self._limits.reader_retention_seconds, self._release, reply)
            self._release_idle(reply)

    def _release_idle(self, reply: Reply) -> None:
        if reply.turn.generation.id not in self._tasks and reply.tape.has_ended and not reply.tape.readers:
            self._release(reply)

    def _release(self, reply: Reply) -> None:
        if self._replies.get(reply.turn.generation.id) is reply:
            del self._replies[reply.turn.generation.id]
            reply.tape.release()

    async def drain(self, *, within_seconds: float) -> None:
        """Starts nothing more and waits; what outlasts the time is handed over, or saved as interrupted."""
        self._is_stopping = True
        if not await self._ended_within(within_seconds):
            await self._hand_over([reply for reply in self.running().values() if self._writing.may_hand_over(reply)])
            log.warning("generations.interrupted_by_stop", count=len(self._tasks))
            self.stop(list(self._tasks))
            await self._ended_within(_INTERRUPTED_SAVE_SECONDS)
        await self._log.flushed(within_seconds=_FLUSH_SECONDS)

    async def _hand_over(self, replies: list[Reply]) -> None:
        if not replies:
            return
        await self._log.flushed(within_seconds=_FLUSH_SECONDS)
        log.info("generations.handed_over", count=len(replies))
        signs = {reply.turn.generation.id: sign_of(reply) for reply in replies}
        for reply in replies:
            self._lose(reply)
        try:
            await self._leases.hand_over(signs)
        except ServiceError as error:
            # They expire by themselves.
            log.warning("generations.hand_over_failed", error=type(error).__name__)
        await self._log.announce("sweep")

    async def _ended_within(self, seconds: float) -> bool:
        """Waits until nothing runs or is about to; whether that was so in time."""
        end_time = asyncio.get_running_loop().time() + seconds
        while self._tasks or self._starting:
            left = end_time - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            await asyncio.sleep(min(left, _DRAIN_TICK_SECONDS))
        return True


def sign_of(reply: Reply) -> Sign:
    """That it is being written, and what is not saved yet of it."""
    return Sign(reply.turn.generation.epoch, reply.unsaved_text(), reply.unsaved_response_ids(), reply.memory_ids)
