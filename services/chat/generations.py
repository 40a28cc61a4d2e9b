"""The replies that this process is writing.

Owns their tasks, their leases and their end. Invariants: a generation belongs to this owner and not to a call, so a client
that leaves changes nothing; whatever happens, it ends with one saved outcome and one terminal event; what lost its lease
writes nothing any more. It refuses more replies than it may hold, and new ones once it drains.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.chat.context import Context, ContextAssembly
from services.chat.failures import failure_of
from services.chat.generation_store import GenerationStore, Outcome, interrupted
from services.chat.metrics import REPLIES, RUNNING, TIME_TO_FIRST_TOKEN, TOKENS
from services.chat.model import Model, ModelRequest, ReplyOptions
from services.chat.model_stream import ReplyEnd
from services.chat.records import Failure, KnownConversation, Turn
from services.chat.reply import Ending, Reply
from services.runtime.calls import current_request_id, detached
from services.runtime.duties import beside, repeat
from services.runtime.errors import Internal, ResourceExhausted, ServiceError, Unavailable, to_service_error
from services.runtime.openai import timed_out

log = structlog.get_logger(__name__)

# What memory takes of one message; a reply that is longer is cut as one at its token limit is.
MAX_REPLY_CHARACTERS = 400_000
# Under load a save waits its turn; the lease is renewed meanwhile.
_SAVE_SECONDS = 60.0
_INTERRUPTED_SAVE_SECONDS = 10.0
_DRAIN_TICK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """Bounds of the replies of one process; the settings of the same names say what they are."""

    max_generations: int
    generation_deadline_seconds: float
    lease_seconds: float
    lease_renew_seconds: float
    heartbeat_seconds: float
    reader_retention_seconds: float


class Generations:
    """The running generations of this process."""

    def __init__(self, store: GenerationStore, context: ContextAssembly, model: Model, limits: GenerationLimits) -> None:
        self._store = store
        self._context = context
        self._model = model
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
            return Unavailable(
                "The service is stopping. Try again.", reasons.ERROR_REASON_SERVICE_STOPPING, retry_delay_seconds=1
            )
        if len(self._tasks) + self._starting >= self._limits.max_generations:
            return ResourceExhausted(
                "The service writes as many replies as it can. Try again.",
                reasons.ERROR_REASON_TOO_MANY_GENERATIONS,
                retry_delay_seconds=round(random.uniform(1, 3), 1),  # noqa: S311 - jitter, no secret
            )
        return None

    def start(self, turn: Turn, known: KnownConversation, options: ReplyOptions, *, arrival: float) -> Reply:
        """Starts writing the reply of a turn that was just begun by this process."""
        generation_id = turn.generation.id
        reply = Reply(
            turn,
            arrival=arrival,
            heartbeat_seconds=self._limits.heartbeat_seconds,
            on_idle=lambda: self._release(generation_id),
        )
        self._replies[generation_id] = reply
        task = asyncio.create_task(self._run(reply, known, options), name=f"generation-{generation_id}", context=detached())
        self._tasks[generation_id] = task
        task.add_done_callback(lambda done: self._forget(reply, done))
        return reply

    def find(self, generation_id: str) -> Reply | None:
        """The reply, if this process writes it or still has readers on it."""
        return self._replies.get(generation_id)

    def stop(self, generation_ids: Iterable[str]) -> None:
        """Ends generations that are not to go on: their conversation was deleted, or another process closed them."""
        for generation_id in generation_ids:
            task, reply = self._tasks.get(generation_id), self._replies.get(generation_id)
            # What is being saved already finds out by itself.
            if task is not None and reply is not None and not reply.is_finishing:
                task.cancel()

    async def _run(self, reply: Reply, known: KnownConversation, options: ReplyOptions) -> None:
        with RUNNING.track_inprogress():
            try:
                end, failure = await self._write_guarded(reply, known, options)
            except asyncio.CancelledError:
                await self._finish(reply, None, interrupted(reply.turn.generation.id))
                raise
            await self._finish(reply, end, failure)

    async def _write_guarded(
        self, reply: Reply, known: KnownConversation, options: ReplyOptions
    ) -> tuple[ReplyEnd | None, Failure | None]:
        generation = reply.turn.generation
        deadline = asyncio.get_running_loop().time() + self._limits.generation_deadline_seconds
        try:
            async with asyncio.timeout_at(deadline):
                context = await self._context.assemble(reply.turn, known)
                reply.start(context.degraded)
                return await self._write(reply, context, options, deadline), None
        except TimeoutError:
            return None, failure_of(timed_out(generation.model))
        except ServiceError as error:
            return None, failure_of(error)
        except Exception as error:
            # The border of the task: no fault of ours may leave a reader without an end.
            log.exception("generation.faulted", generation_id=generation.id)
            return None, failure_of(to_service_error(error, current_request_id()))

    async def _write(self, reply: Reply, context: Context, options: ReplyOptions, deadline: float) -> ReplyEnd:
        generation = reply.turn.generation
        asked = ModelRequest(generation.model, generation.conversation_id, context.messages, options)
        # Nothing is awaited between two pieces: the model's clock of silence runs in this task.
        async with contextlib.aclosing(self._model.reply(asked, deadline=deadline)) as pieces:
            async for piece in pieces:
                if isinstance(piece, ReplyEnd):
                    return piece
                reply.write(piece)
                if reply.length > MAX_REPLY_CHARACTERS:
                    return ReplyEnd(None, "MAX_OUTPUT_TOKENS")
        raise Internal("The model ended without an end.", reasons.ERROR_REASON_INTERNAL_FAULT)

    async def _finish(self, reply: Reply, end: ReplyEnd | None, failure: Failure | None) -> None:
        reply.is_finishing = True
        timings = reply.timings()
        outcome = Outcome(
            text=reply.text[:MAX_REPLY_CHARACTERS],
            incomplete_reason=end.incomplete_reason if end else None,
            usage=end.usage if end else None,
            timings=timings,
            degraded=reply.degraded,
            failure=failure,
        )
        ending = await self._saved(reply.turn, outcome)
        reply.end(ending)
        self._report(reply, ending, outcome)

    async def _saved(self, turn: Turn, outcome: Outcome) -> Ending:
        """How the reply ended, as saved: by this process, or by whoever closed it before."""
        generation = turn.generation
        try:
            async with asyncio.timeout(_SAVE_SECONDS):
                saved = await self._store.finish_turn(turn, outcome)
                if saved is not None:
                    return Ending(saved, outcome.failure)
                stored = await self._store.read_turn(generation.id, user_id=generation.user_id)
        except (ServiceError, TimeoutError) as error:
            # The lease expires unrenewed, and a sweeper closes the row.
            log.warning("generation.save_failed", generation_id=generation.id, error=type(error).__name__)
            return Ending(None, failure_of(to_service_error(error, current_request_id())))
        if stored is None:
            return Ending(None, None)
        if stored.generation.status == "completed":
            return Ending(stored.reply, None)
        return Ending(stored.reply, stored.generation.failure or interrupted(generation.id))

    def _report(self, reply: Reply, ending: Ending, outcome: Outcome) -> None:
        generation = reply.turn.generation
        reason = ending.failure.reason if ending.failure else "" if ending.reply else "CANCELLED"
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
        self._tasks.pop(generation_id, None)
        if not reply.has_ended:
            # Cancelled before its first step, or its end could not be told: the row's lease expires, the readers know now.
            log.error("generation.abandoned", generation_id=generation_id, exc_info=_fault(task))
            reply.end(Ending(None, interrupted(generation_id)))
        if reply.has_readers:
            asyncio.get_running_loop().call_later(self._limits.reader_retention_seconds, self._release, generation_id)
        else:
            self._release(generation_id)

    def _release(self, generation_id: str) -> None:
        reply = self._replies.pop(generation_id, None)
        if reply is not None:
            reply.release()

    @contextlib.asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Keeps the leases of this process and closes those of dead ones, inside the block."""
        limits = self._limits
        leases = repeat("lease_renewal", self._renew_leases, interval_seconds=limits.lease_renew_seconds, jitter=0)
        # Wide apart, so that the replicas do not sweep at the same moment.
        sweep = repeat("lease_sweep", self._store.close_expired, interval_seconds=limits.lease_seconds / 2, jitter=0.4)
        async with beside(leases, sweep):
            yield

    async def _renew_leases(self) -> None:
        texts = {key: reply.unsaved_text() for key, reply in self._replies.items() if key in self._tasks}
        if not texts:
            return
        renewed = await self._store.renew_leases(texts)
        for key in renewed:
            text, reply = texts[key], self._replies.get(key)
            if text is not None and reply is not None:
                reply.note_saved(text)
        self._stop_lost(set(texts) - renewed)

    def _stop_lost(self, generation_ids: Iterable[str]) -> None:
        """Stops what is not ours any more; what ended while its lease was being renewed is not lost."""
        replies = ((key, self._replies.get(key)) for key in generation_ids)
        lost = [key for key, reply in replies if reply is not None and not reply.is_finishing]
        if lost:
            log.warning("generations.lease_lost", generation_ids=lost)
            self.stop(lost)

    async def drain(self, *, within_seconds: float) -> None:
        """Starts nothing more and waits for what runs; what outlasts the time is saved as interrupted, with its text."""
        self._is_stopping = True
        if await self._ended_within(within_seconds):
            return
        log.warning("generations.interrupted_by_stop", count=len(self._tasks))
        self.stop(list(self._tasks))
        await self._ended_within(_INTERRUPTED_SAVE_SECONDS)

    async def _ended_within(self, seconds: float) -> bool:
        """Waits until nothing runs or is about to; whether that was so in time."""
        end_time = asyncio.get_running_loop().time() + seconds
        while self._tasks or self._starting:
            left = end_time - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            await asyncio.sleep(min(left, _DRAIN_TICK_SECONDS))
        return True


def _fault(task: asyncio.Task[None]) -> BaseException | None:
    return None if task.cancelled() else task.exception()
