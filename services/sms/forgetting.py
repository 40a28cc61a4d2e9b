"""Forgetting: the job that has the provider delete what it keeps of a text of somebody who is gone."""

import structlog

from services.runtime.jobs import Jobs
from services.sms.provider.provider import Provider, UnansweredError
from services.sms.refusals import sms_unavailable
from services.sms.rows import FORGET_JOB

log = structlog.get_logger(__name__)


class Forgetting:
    """Has the provider forget texts."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def register(self, jobs: Jobs) -> None:
        """Makes this the handler of the job that forgets."""
        # Without end: only the job still knows under which id the provider keeps the text.
        jobs.register(FORGET_JOB, self.forget)

    async def forget(self, provider_message_id: str) -> None:
        """Forgets one text. Idempotent. Raises Unavailable, which repeats the job, until the provider has confirmed it."""
        try:
            await self._provider.forget(provider_message_id)
        except UnansweredError as error:
            log.warning("sms.not_forgotten", provider_message_id=provider_message_id, error=str(error))
            raise sms_unavailable() from None
