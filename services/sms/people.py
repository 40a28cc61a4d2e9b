"""The seam to auth: whose a number is, and what they prefer.

Owns the calls and their conversion. Invariant: every call has a deadline. It remembers nothing: whose a number is may
change.
"""

import re
from dataclasses import dataclass
from typing import Final

import grpc

from parley.auth.v1 import user_pb2, user_pb2_grpc
from services.runtime.calls import acting_for, as_itself, current_caller
from services.runtime.errors import NotFound, ServiceError, peer_errors

_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}")


@dataclass(frozen=True, slots=True)
class Person:
    """Who has verified a number, and what they prefer."""

    user_id: str
    wants_replies: bool
    language: str


class People:
    """Users, as auth knows them."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_seconds: float) -> None:
        self._users = user_pb2_grpc.UserServiceStub(channel)
        self._timeout_seconds = timeout_seconds

    async def by_number(self, phone_number: str) -> Person | None:
        """The active user who has verified the number; None for nobody. Raises ServiceError when auth does not answer."""
        if not _E164.fullmatch(phone_number):
            # A short code, the name of a sender, a withheld number: nobody can verify one, and auth refuses to look.
            return None
        request = user_pb2.FindUserByPhoneRequest(phone_number=phone_number)
        try:
            with as_itself(), peer_errors():
                found = await self._users.FindUserByPhone(request, timeout=self._timeout_seconds)
        except NotFound:
            return None
        preferences = found.preferences
        return Person(found.user_id, preferences.auto_reply_enabled, preferences.language)

    async def language_of(self, user_id: str) -> str:
        """The language that the user who calls, or is called for, prefers: a BCP 47 tag; empty where that is not known."""
        request = user_pb2.GetPreferencesRequest(user_id="me")
        caller = current_caller()
        try:
            with peer_errors():
                if caller.session_id is not None:
                    return (await self._users.GetPreferences(request, timeout=self._timeout_seconds)).language
                with acting_for(user_id):
                    return (await self._users.GetPreferences(request, timeout=self._timeout_seconds)).language
        except ServiceError:
            # A decision in the language of the text is better than none.
            return ""
