"""Sending: the job that gives a text to the provider, and what is done about those whose sending ended without an answer.

Invariant: a text is given to the provider again only where it surely was not taken. After a crash, or an answer that was
lost, it is looked for: in reports of its delivery, whose address names it, and in the provider's list; what is not found
becomes `unknown` and is never sent again.
"""

from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import Counter

from services.runtime.jobs import Jobs
from services.sms.outbox_store import Claim, OutboxStore, Unresolved
from services.sms.provider.provider import NotTakenError, Provider, RefusedError, Taken, Text, UnansweredError
from services.sms.refusals import sms_unavailable
from services.sms.rows import SEND_JOB

log = structlog.get_logger(__name__)

_ENDED: Final = Counter("parley_sms_sends", "Texts given to the provider, by what came of it.", ["outcome"])
_BATCH: Final = 100
# Beyond the provider's deadline: the process may be slow to write down what came of it.
_WRITE_SECONDS: Final = 15.0
_GIVEN_UP: Final = "not_taken"
"""The error code of a text that the provider did not take, however often it was tried."""


@dataclass(frozen=True, slots=True)
class SendLimits:
    """How often a text is tried, how long the provider may take, and how long it is asked about one without an answer."""

    tries: int
    timeout_seconds: float
    unknown_after_seconds: float


class Sending:
    """Gives texts to the provider."""

    def __init__(self, store: OutboxStore, provider: Provider, limits: SendLimits) -> None:
        self._store = store
        self._provider = provider
        self._limits = limits

    def register(self, jobs: Jobs) -> None:
        """Makes this the handler of the job that sends."""
        jobs.register(SEND_JOB, self.send)

    async def send(self, message_id: str) -> None:
        """Sends a queued text; nothing where it is not queued (any more). Raises Unavailable where it may be tried again."""
        claim = await self._store.claim(message_id)
        if claim is not None and await self.carry(claim, claim.text) == "not_taken":
            raise sms_unavailable()

    async def carry(self, claim: Claim, text: str) -> str:
        """Gives what was claimed to the provider, and writes down what came of it.

        Returns that: `taken`, `refused`, `unanswered`; `not_taken` where it is queued again, `given_up` where no more.
        """
        outcome = await self._carried(claim, text)
        _ENDED.labels(outcome).inc()
        log.info("sms.carried", message_id=claim.message_id, kind=claim.kind, outcome=outcome, attempt=claim.attempts)
        return outcome

    async def _carried(self, claim: Claim, text: str) -> str:
        try:
            taken = await self._provider.send(Text(claim.message_id, claim.phone_number, text))
        except NotTakenError as error:
            log.warning("sms.not_taken", message_id=claim.message_id, error=str(error))
            if claim.attempts >= self._limits.tries:
                await self._store.fail(claim.message_id, error_code=_GIVEN_UP)
                return "given_up"
            await self._store.requeue(claim.message_id)
            return "not_taken"
        except RefusedError as error:
            await self._store.fail(claim.message_id, error_code=error.code)
            return "refused"
        except UnansweredError as error:
            log.warning("sms.unanswered", message_id=claim.message_id, error=str(error))
            return "unanswered"
        await self._settle(claim.message_id, taken)
        return "taken"

    async def reconcile(self) -> None:
        """Looks after texts that were claimed and are not known to have been taken. A standing duty, of every replica."""
        after = self._limits.timeout_seconds + _WRITE_SECONDS
        for unresolved in await self._store.list_unresolved(after_seconds=after, limit=_BATCH):
            found = await self._found(unresolved)
            if found is not None:
                await self._settle(unresolved.message_id, found)
                log.warning("sms.found", message_id=unresolved.message_id)
            elif unresolved.age_seconds > after + self._limits.unknown_after_seconds:
                await self._store.give_up(unresolved.message_id)
                log.warning("sms.unknown", message_id=unresolved.message_id)

    async def _found(self, unresolved: Unresolved) -> Taken | None:
        # What a code said is not known any more: only a report can tell of it.
        if not unresolved.text:
            return None
        try:
            listed = await self._provider.find(unresolved.phone_number, unresolved.text, since=unresolved.claim_time)
        except UnansweredError as error:
            log.warning("sms.search_failed", message_id=unresolved.message_id, error=str(error))
            return None
        new = await self._store.unknown_among([one.provider_message_id for one in listed])
        return next((one for one in listed if one.provider_message_id in new), None)

    async def _settle(self, message_id: str, taken: Taken) -> None:
        await self._store.accept(message_id, taken)
