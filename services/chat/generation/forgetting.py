"""The job that has the provider delete what it kept of a reply that ran in the background.

Idempotent, and repeated by the queue until the provider has confirmed.
"""

from services.chat.generation_store import FORGET_RESPONSES
from services.chat.model import Model
from services.runtime.jobs import Jobs


class Forgetting:
    """Tells the provider."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def register(self, jobs: Jobs) -> None:
        """Makes the queue know the handler."""
        jobs.register(FORGET_RESPONSES, self._forget)

    async def _forget(self, *, response_ids: str, user_id: str = "") -> None:
        # The user is named so that a purge can wait for it; jobs of the previous release name none.
        del user_id
        for response_id in response_ids.split(","):
            await self._model.forget(response_id)
