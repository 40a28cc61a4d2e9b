"""The deletion of users: the account at once, what every other service holds by a job that is repeated until all confirm.

Order: the account and its sessions end in one transaction, so that nothing new can begin; the services hear of that within
a second, and are asked after it. Each puts up a fence first (services/runtime/purging.py) that keeps out whatever a call
with a token of before still writes. Idempotent: a job that was cut is repeated, a service that has confirmed is not asked
again.
"""

import asyncio
from collections.abc import Sequence

import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.deletion_store import PURGE_USER, DeletionStore
from services.auth.ended_sessions import EndedSessions
from services.auth.purge_client import PurgeClient
from services.auth.records import Deletion, Origin
from services.auth.sign_in_delays import SignInDelays
from services.runtime.errors import ServiceError, Unavailable, reason_name
from services.runtime.jobs import Jobs

log = structlog.get_logger(__name__)

TELL_SECONDS = 1.5
"""After that the feed has told every service of what ended."""


class Deletions:
    """Deletes users."""

    def __init__(self, store: DeletionStore, services: PurgeClient, ended: EndedSessions, delays: SignInDelays) -> None:
        self._store = store
        self._services = services
        self._ended = ended
        self._delays = delays

    def register(self, jobs: Jobs) -> None:
        """Makes the queue know the handler."""
        jobs.register(PURGE_USER, self._purge)

    async def delete(self, user_id: str, origin: Origin) -> Deletion:
        """Deletes the account and begins the rest; where that was begun before, says how far it is.

        Raises NotFound (USER_NOT_FOUND) and FailedPrecondition (LAST_ADMINISTRATOR).
        """
        begun = await self._store.begin(user_id, services=self._services.services, origin=origin)
        if begun is None:
            return await self._store.read(user_id)
        self._ended.note(begun.ended_ids)
        account = begun.account
        await self._delays.forget([account.username, account.email, account.id])
        log.info("auth.user_deleted", user_id=user_id, actor_id=origin.actor_id)
        return begun.deletion

    async def read(self, user_id: str) -> Deletion:
        """How far a deletion is. Raises NotFound (USER_NOT_FOUND)."""
        return await self._store.read(user_id)

    async def _purge(self, *, user_id: str) -> None:
        """The job. Raises while a service has not confirmed, so that it is repeated."""
        deletion = await self._store.require(user_id, self._services.services)
        if deletion is None:
            return
        await asyncio.sleep(TELL_SECONDS)
        missing = [one.service for one in deletion.services if one.confirm_time is None]
        refused: ServiceError | None = None
        for service in missing:
            refused = await self._ask(service, user_id) or refused
        if not await self._store.complete(user_id):
            raise refused or _unfinished(missing)
        log.info("auth.deletion_completed", user_id=user_id)

    async def _ask(self, service: str, user_id: str) -> ServiceError | None:
        """Has one service delete, and notes what it says; its refusal, if it refuses."""
        if service not in self._services.services:
            # It was asked to confirm when the deletion began, and has no address now: an operator must give it one.
            log.error("auth.deletion_without_address", user_id=user_id, service=service)
            return None
        try:
            await self._services.purge(service, user_id)
        except ServiceError as error:
            await self._store.note_answer(user_id, service, refusal=reason_name(error.reason))
            log.warning("auth.purge_refused", user_id=user_id, service=service, reason=reason_name(error.reason))
            return error
        await self._store.note_answer(user_id, service, refusal="")
        log.info("auth.purge_confirmed", user_id=user_id, service=service)
        return None


def _unfinished(services: Sequence[str]) -> Unavailable:
    return Unavailable(
        "Not every service has confirmed yet.",
        reasons.ERROR_REASON_PURGE_UNFINISHED,
        metadata={"waits_for": ", ".join(services)},
    )
