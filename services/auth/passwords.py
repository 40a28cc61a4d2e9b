"""Password hashes: made and checked with pwdlib, off the event loop, a few at a time.

New hashes are Argon2id. Hashes of bcrypt ($2a$, $2b$, $2y$), which earlier systems made, are accepted; `check` then also
returns a better hash to store. A name without an account costs what a wrong password costs.

Invariant: what a thread has begun is finished, and followed by what must follow it, whether or not somebody still waits:
whoever breaks calls off gets neither a thread more nor a guess that nobody counted.
"""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import structlog
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher
from pwdlib.hashers.bcrypt import BcryptHasher

from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.settings import HashSettings
from services.runtime.errors import Unavailable

log = structlog.get_logger(__name__)
T = TypeVar("T")
_BCRYPT_BYTES = 72
# What `check` can tell: Argon2 as it writes itself, bcrypt with a cost that a sign-in can wait for.
_KNOWN_HASH = re.compile(
    r"\$2[aby]\$(0[4-9]|1[0-5])\$[./A-Za-z0-9]{53}|\$argon2id?\$v=\d+\$m=\d{1,7},t=\d{1,3},p=\d{1,2}\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+"
)
_RETRY_SECONDS = 1.0
_END_SECONDS = 5.0


def is_known_hash(stored_hash: str) -> bool:
    """Whether a user can sign in with a hash that another system has made."""
    return _KNOWN_HASH.fullmatch(stored_hash) is not None


@dataclass(frozen=True, slots=True)
class HashCost:
    """Argon2id parameters (RFC 9106): passes, memory in KiB, lanes."""

    time_cost: int
    memory_kib: int
    parallelism: int

    @classmethod
    def of(cls, settings: HashSettings) -> Self:
        """What the settings say."""
        return cls(settings.argon2_time_cost, settings.argon2_memory_kib, settings.argon2_parallelism)


@dataclass(frozen=True, slots=True)
class Checked:
    """Whether a password was right, and a better hash of it to store, if there is one."""

    is_right: bool
    better_hash: str | None = field(default=None, repr=False)


class _LegacyBcryptHasher(BcryptHasher):
    """bcrypt reads 72 bytes of a password. The libraries that made the old hashes cut the rest off; bcrypt 5 refuses it."""

    def verify(self, password: str | bytes, hash: str | bytes) -> bool:  # noqa: A002
        raw = password.encode() if isinstance(password, str) else password
        return super().verify(raw[:_BCRYPT_BYTES], hash)


class Passwords:
    """Hashes and checks passwords in `threads` threads; at most `most_waiting` calls wait, each `wait_seconds` at most.

    Beyond either a call is refused with UNAVAILABLE and a retry delay: a queue that grows would answer nobody in time.
    """

    def __init__(self, cost: HashCost, *, threads: int, most_waiting: int, wait_seconds: float) -> None:
        current = Argon2Hasher(time_cost=cost.time_cost, memory_cost=cost.memory_kib, parallelism=cost.parallelism)
        self._hashes = PasswordHash((current, _LegacyBcryptHasher()))
        self._nobodys_hash = self._hashes.hash(secrets.token_urlsafe())
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._turns = asyncio.Semaphore(threads)
        self._waiting = 0
        self._begun = set[asyncio.Task[Any]]()
        self._most_in_hand = threads + most_waiting
        self._wait_seconds = wait_seconds

    async def hash(self, password: str, *, first: Callable[[], Awaitable[None]] | None = None) -> str:
        """A new hash of the password. `first` runs when its turn has come: what it raises saves the hash."""
        return await self._run(lambda: self._hashes.hash(password), first)

    async def check(
        self,
        password: str,
        stored_hash: str | None,
        *,
        first: Callable[[], Awaitable[None]],
        then: Callable[[Checked], Awaitable[None]],
    ) -> Checked:
        """Whether the stored hash is one of this password; `first` as for `hash`. Of no hash ("", or nobody's) none is.

        `then` runs with what was found before it is returned, also where the call was cancelled since `first` began.
        """
        held = self._nobodys_hash if stored_hash is None else stored_hash
        return await self._run(lambda: self._check(password, held), first, then)

    async def close(self) -> None:
        """Lets go of the threads. What they have begun is finished, within 5 s; the rest fails."""
        self._pool.shutdown(wait=False)
        if not self._begun:
            return
        _, late = await asyncio.wait(self._begun, timeout=_END_SECONDS)
        for task in late:
            task.cancel()

    def _check(self, password: str, stored_hash: str) -> Checked:
        try:
            return Checked(*self._hashes.verify_and_update(password, stored_hash))
        except UnknownHashError:
            if stored_hash:
                log.warning("auth.password_hash_unknown")  # imported from somewhere: nobody can sign in with it
            # It takes as long as any other.
            self._hashes.verify(password, self._nobodys_hash)
            return Checked(is_right=False)

    async def _run(
        self,
        work: Callable[[], T],
        first: Callable[[], Awaitable[None]] | None,
        then: Callable[[T], Awaitable[None]] | None = None,
    ) -> T:
        if self._waiting + len(self._begun) >= self._most_in_hand:
            raise _busy()
        self._waiting += 1
        try:
            await self._wait_for_turn()
        finally:
            self._waiting -= 1
        begun = asyncio.create_task(self._finish(work, first, then))
        self._begun.add(begun)
        begun.add_done_callback(self._end)
        return await asyncio.shield(begun)

    async def _finish(
        self,
        work: Callable[[], T],
        first: Callable[[], Awaitable[None]] | None,
        then: Callable[[T], Awaitable[None]] | None,
    ) -> T:
        try:
            if first is not None:
                await first()
            # No thread can be told to stop: the turn is over when it is done, and not when nobody waits for it any more.
            found = await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._turns.release()
        if then is not None:
            await then(found)
        return found

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._begun.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits gets it; who does not wait any more is told nothing

    async def _wait_for_turn(self) -> None:
        """A person who waits longer has given up or asks again: a queue of those would block every sign-in after them."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise _busy() from None


def _busy() -> Unavailable:
    return Unavailable(
        "Too many sign-ins at once. Try again.",
        reasons.ERROR_REASON_SERVICE_BUSY,
        metadata={"work": "password_hashing"},
        retry_delay_seconds=_RETRY_SECONDS,
    )
