"""The caller's own number.

Owns how it is found: the numbers that the user was seen with are a hint where to ask, and auth says of each whose it is
now. So sms needs to be told nothing of users but whose a number is, and believes nothing that was true once.
"""

from services.sms.people import People
from services.sms.refusals import phone_not_verified
from services.sms.seen_numbers import SeenNumberStore


class OwnNumber:
    """Finds the verified number of a user."""

    def __init__(self, seen: SeenNumberStore, people: People) -> None:
        self._seen = seen
        self._people = people

    async def of(self, user_id: str) -> str:
        """The user's verified number. Raises FailedPrecondition (PHONE_NOT_VERIFIED), and ServiceError without auth."""
        for phone_number in await self._seen.list_numbers(user_id):
            person = await self._people.by_number(phone_number)
            if person is not None and person.user_id == user_id:
                return phone_number
        raise phone_not_verified()
