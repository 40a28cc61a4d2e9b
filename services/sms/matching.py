"""Matching: the job that finds whose a call is that the provider told of."""

from services.runtime.errors import NotFound
from services.runtime.jobs import Jobs
from services.sms.call_store import MATCH_JOB, CallStore
from services.sms.people import People


class Matching:
    """Gives calls to the users whose verified number is at their other end. What is nobody's stays so."""

    def __init__(self, store: CallStore, people: People) -> None:
        self._store = store
        self._people = people

    def register(self, jobs: Jobs) -> None:
        """Makes this the handler of the job that matches."""
        jobs.register(MATCH_JOB, self.match)

    async def match(self, call_id: str) -> None:
        """Matches one call. Idempotent. Raises ServiceError when auth does not answer, which repeats the job."""
        phone_number = await self._store.number_of(call_id)
        person = None if phone_number is None else await self._people.by_number(phone_number)
        if person is None:
            return
        try:
            await self._store.assign(call_id, user_id=person.user_id)
        except NotFound:
            # Deleted meanwhile.
            return
