"""From a begun turn to a written reply: the context, the answer, and what may go wrong on the way.

Owns the choice whether a reply can be resumed where its process left it. Invariant: whatever goes wrong is a failure that
can be saved and told.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from services.chat.context import ContextAssembly
from services.chat.failures import failure_of
from services.chat.generation_store import interrupted
from services.chat.lease_store import Taken
from services.chat.log.reply import Reply, ReplyTooLargeError
from services.chat.model import Model
from services.chat.options import ReplyOptions
from services.chat.records import Failure, Generation, KnownConversation
from services.chat.tools.answering import Answering, ReplyEnd, Resumption
from services.runtime.calls import current_request_id
from services.runtime.errors import ServiceError, to_service_error
from services.runtime.openai import timed_out
from services.runtime.sealing import SealError

log = structlog.get_logger(__name__)

_CANCEL_SECONDS: Final = 5.0
ReadOptions = Callable[[Generation], ReplyOptions]


@dataclass(frozen=True, slots=True)
class Start:
    """How a reply begins, or goes on: `deadline` is on the loop's clock."""

    known: KnownConversation
    options: ReplyOptions
    deadline: float
    resumption: Resumption | None = None


class Writing:
    """Writes replies. Holds no state of any of them. `read_options` gives a stored generation's options."""

    def __init__(self, context: ContextAssembly, answering: Answering, model: Model, *, read_options: ReadOptions) -> None:
        self._context = context
        self._answering = answering
        self._model = model
        self._read_options = read_options

    def resumption(self, taken: Taken, reply: Reply, deadline: float) -> Start | None:
        """How a reply that was taken over goes on; None where it cannot."""
        generation = taken.turn.generation
        try:
            options = self._read_options(generation)
        except SealError:
            log.warning("generation.options_not_opened", generation_id=generation.id)
            return None
        if not reply.knows_told or reply.last_sequence > reply.line.logged:
            # The log is gone, and with it what readers have heard, or it says that the reply has ended: other events must
            # not follow under the same sequences.
            return None
        # Without a position a reply of which nobody heard anything begins anew, and in the background a round behind its
        # tools: in the foreground nobody knows what was told of that.
        begins_round = taken.items_response_id is not None and self._model.runs_in_background(options)
        if reply.position is None and reply.has_output and not begins_round:
            return None
        return Start(taken.known, options, deadline, Resumption(reply.position, (), taken.items_response_id))

    def may_hand_over(self, reply: Reply) -> bool:
        """Whether another process could go on with a reply that this one has to leave."""
        return reply.is_resumable and reply.position is not None and not (reply.is_finishing or reply.is_cancelled)

    async def write(self, reply: Reply, start: Start | None) -> tuple[ReplyEnd | None, Failure | None]:
        """The end of the reply, or why it failed; without a start it is interrupted as it is."""
        generation = reply.turn.generation
        if start is None:
            return None, interrupted(generation.id)
        try:
            async with asyncio.timeout_at(start.deadline):
                return await self._answer(reply, start), None
        except TimeoutError:
            return None, failure_of(timed_out(generation.model))
        except ReplyTooLargeError:
            return ReplyEnd(None, "MAX_OUTPUT_TOKENS"), None
        except ServiceError as error:
            return None, failure_of(error)
        except Exception as error:
            # The border of the task: no fault of ours may leave a reader without an end.
            log.exception("generation.faulted", generation_id=generation.id)
            return None, failure_of(to_service_error(error, current_request_id()))

    async def _answer(self, reply: Reply, start: Start) -> ReplyEnd:
        context = await self._context.assemble(reply.turn, start.known)
        reply.start(context.degraded, context.memories)
        return await self._answering.answer(
            reply, context, start.options, deadline=start.deadline, resumption=start.resumption
        )

    async def cancel(self, reply: Reply) -> None:
        """Stops the provider's run of a reply that did not come to its end, where that goes on by itself."""
        if reply.position is not None:
            try:
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await self._model.cancel(reply.position.response_id)
            except (ServiceError, TimeoutError) as error:
                log.warning("generation.provider_not_cancelled", error=type(error).__name__)
