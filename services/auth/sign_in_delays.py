"""How sign-ins that fail are slowed: by name and address together, by address, and by name.

Owns the policy. A refusal says when to come again; a password that comes too early is not looked at. A failure counts when
it is known, and the delay is looked at when a password's turn to be hashed has come, so that a burst gets as many guesses
as there are hashing threads.

Nobody can lock somebody else out: who has signed in from an address before is delayed there by that address's own failures
only. From elsewhere a name under attack from many addresses is let through once a minute at least, and refreshing tokens,
one-time tokens and open sessions are never touched. Names count as they are typed, whether there is such an account or not.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network
from math import ceil
from typing import Final

import structlog

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.failure_store import Counter, FailureStore
from services.auth.records import Origin
from services.runtime.database import DATABASE_FAILURES
from services.runtime.errors import ResourceExhausted
from services.runtime.sealing import Seal

log = structlog.get_logger(__name__)

WINDOW_SECONDS: Final = 3_600.0
"""Failures are forgotten so long after the last one."""
KNOWN_SECONDS: Final = 30 * 86_400.0
"""An address is known for a name so long after a sign-in."""
_ANEW_SECONDS: Final = 86_400.0
# The longest delays: of one person at one place, of all behind one address, of all who try one name.
_PAIR_SECONDS, _ADDRESS_SECONDS, _NAME_SECONDS = 900.0, 300.0, 60.0


@dataclass(frozen=True, slots=True)
class FreeFailures:
    """How many failures cost nothing: of a name at an address, of an address, of a name from wherever."""

    pair: int
    address: int
    name: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, by the keys of what it has in common with others: keyed hashes, which tell nobody a name."""

    pair_key: bytes = field(repr=False)
    name_key: bytes = field(repr=False)
    address_key: bytes | None = field(repr=False)
    origin: Origin


class SignInDelays:
    """The delays of all names and addresses."""

    def __init__(self, store: FailureStore, seal: Seal, free: FreeFailures) -> None:
        self._store = store
        self._seal = seal
        self._free = free

    def attempt(self, name: str, origin: Origin) -> Attempt:
        """An attempt to sign in with this name."""
        address = network(origin.address)
        return Attempt(
            pair_key=self._seal.fingerprint(f"sign-in pair {address} {lowered(name)}".encode()),
            name_key=self._name_key(name),
            address_key=None if address is None else self._seal.fingerprint(f"sign-in address {address}".encode()),
            origin=origin,
        )

    async def check(self, attempt: Attempt) -> None:
        """Raises ResourceExhausted (SIGN_IN_DELAYED) while the attempt comes too early."""
        keys = [key for key in (attempt.pair_key, attempt.name_key, attempt.address_key) if key is not None]
        seconds = await self._store.delay_seconds(
            keys, pair_key=attempt.pair_key, name_key=attempt.name_key, known_seconds=KNOWN_SECONDS
        )
        if seconds > 0:
            raise ResourceExhausted(
                f"Too many sign-ins failed. Try again in {ceil(seconds)} seconds.",
                reasons.ERROR_REASON_SIGN_IN_DELAYED,
                metadata={"seconds": str(ceil(seconds))},
                retry_delay_seconds=seconds,
            )

    async def failed(self, attempt: Attempt, cause: str, user_id: str | None) -> None:
        """Counts a wrong password, or a name that nobody has."""
        counters = [
            Counter(attempt.pair_key, attempt.name_key, self._free.pair, _PAIR_SECONDS),
            Counter(attempt.name_key, attempt.name_key, self._free.name, _NAME_SECONDS),
        ]
        if attempt.address_key is not None:
            counters.append(Counter(attempt.address_key, None, self._free.address, _ADDRESS_SECONDS))
        await self._store.note_failure(counters, cause=cause, user_id=user_id, origin=attempt.origin)

    async def succeeded(self, attempt: Attempt) -> None:
        """Forgets the failures of this name at this address. Those of the address and of the name stay: both are shared."""
        await self._store.note_success(pair_key=attempt.pair_key, name_key=attempt.name_key, anew_seconds=_ANEW_SECONDS)

    async def forget(self, names: Collection[str]) -> None:
        """Forgets all about these names. While the database refuses it nothing is forgotten, and the log says so.

        It follows what is committed: a failure here would have callers repeat what was done, and counts go by themselves.
        """
        try:
            await self._store.forget_names([self._name_key(name) for name in names])
        except DATABASE_FAILURES as error:
            log.warning("auth.sign_in_failures_kept", error=type(error).__name__)

    def _name_key(self, name: str) -> bytes:
        return self._seal.fingerprint(f"sign-in name {lowered(name)}".encode())


def lowered(name: str) -> str:
    """The name as the database makes it small: letter by letter.

    Of the whole `lower` would make two characters of İ, and another sigma at the end of a word: each spelling that finds the
    same account would have free failures of its own.
    """
    return "".join(letter.lower()[0] for letter in name)


def network(address: str | None) -> str | None:
    """What one client can have many addresses of: of IPv6 a /64."""
    if address is None:
        return None
    parsed = ip_address(address)
    return str(ip_network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else str(parsed)
