"""The matrix itself: one RPC by one door, tried by everybody who may not, then by somebody else, and last by who may.

The last makes the rest mean something: the same request is answered, and what was asked for is still there.
"""

from collections.abc import Mapping
from typing import Any

from tests.access.contract import Rpc
from tests.access.doors import Door, Outcome, RestDoor
from tests.access.table import NOT_FOUND, TABLE, THEIRS, Line
from tests.access.world import Person, Things, World
from tests.issuer import Metadata

NO_IDENTITY = frozenset({"UNAUTHENTICATED"})
NOT_ALLOWED = frozenset({"PERMISSION_DENIED"})
REFUSED = NO_IDENTITY | NOT_ALLOWED
# The edge knows no route to what is between services.
UNROUTED = frozenset({"UNIMPLEMENTED", "NOT_FOUND"})


def line_of(rpc: Rpc) -> Line:
    line = TABLE.get(rpc.name)
    assert line is not None, (
        f"{rpc.name} is not in the access matrix: add a line to TABLE in tests/access/table.py that says how its owner asks"
        f" (fields: {', '.join(field.name for field in rpc.method.input_type.fields) or 'none'}), and what others are told"
    )
    return line


class Trial:
    """One RPC by one door. `check` raises AssertionError that names the first hole."""

    def __init__(self, world: World, rpc: Rpc, door: Door, *, owner: Person, stranger: Person) -> None:
        self._world = world
        self._rpc = rpc
        self._door = door
        self._line = line_of(rpc)
        self._owner = owner
        self._stranger = stranger
        self._things = Things(world, owner, stranger)
        self.tried: list[str] = []

    async def check(self) -> None:
        """Everybody who may not, then who may."""
        await getattr(self, f"_check_{self._rpc.access.lower()}")()

    async def _check_public(self) -> None:
        """Anybody; what comes along as an identity is not looked at."""
        for name, make in {"nobody": lambda _: (), **self._world.bad}.items():
            await self._expect(name, make(self._rpc), self._line.good)

    async def _check_user(self) -> None:
        await self._refuse_bad()
        await self._check_others()
        await self._expect("the owner", self._owner.headers, self._line.good, shows=True)

    async def _check_admin(self) -> None:
        await self._refuse_bad()
        await self._expect("a user", self._owner.headers, NOT_ALLOWED)
        await self._expect("another user", self._stranger.headers, NOT_ALLOWED)
        await self._expect("an administrator", self._world.admin.headers, self._line.good, shows=True)

    async def _check_service(self) -> None:
        rpc, world = self._rpc, self._world
        caller = await world.caller_of(rpc.service)
        asks_itself = self._line.good == NOT_ALLOWED  # auth alone may, which makes its own tokens
        assert caller or asks_itself, f"{rpc.name}: no service may call {rpc.service}: name one in CALLERS of world.py"
        if self._is_edge:
            for name, headers in {
                "nobody": (), "a user": self._owner.headers, "an administrator": world.admin.headers,
                **({"a service": await world.as_service(caller, rpc.service)} if caller else {}),
            }.items():  # fmt: skip
                await self._expect(name, headers, UNROUTED | REFUSED)
            return
        await self._refuse_bad()
        await self._expect("a user", self._owner.headers, NOT_ALLOWED)
        await self._expect("an administrator", world.admin.headers, NOT_ALLOWED)
        other = "memory" if rpc.service != "memory" else "auth"
        for name, token in {
            "a service with a token for another": await world.service_token("chat", other),
            "a user's token as a service's": self._owner.token,
        }.items():
            await self._expect(name, (("x-parley-service-authorization", f"Bearer {token}"),), NO_IDENTITY)
        if caller is None:
            return
        if self._line.as_user:
            await self._expect("a service for nobody", await world.as_service(caller, rpc.service), REFUSED)
        user = self._owner if self._line.as_user else None
        await self._expect("a service", await world.as_service(caller, rpc.service, user), self._line.good, shows=True)

    async def _check_workload(self) -> None:
        """The credential in the request is the identity."""
        if self._is_edge:
            await self._expect("a workload", (), UNROUTED | REFUSED)
            return
        for name, headers in {"nobody": (), "an administrator": self._world.admin.headers}.items():
            await self._expect(f"{name} without the credential", headers, REFUSED, changed={"credential": "wrong {new}"})
        await self._expect("a workload", (), self._line.good)

    async def _check_provider(self) -> None:
        """Nobody who does not sign as the provider does, whoever they are here."""
        for name, headers in {
            "nobody": (),
            "a user": self._owner.headers,
            "an administrator": self._world.admin.headers,
        }.items():
            outcome = await self._outcome(headers)
            self._assert(outcome.code != "OK", name, outcome, "anything but OK")

    async def _refuse_bad(self) -> None:
        await self._expect("nobody", (), NO_IDENTITY)
        for name, make in self._world.bad.items():
            await self._expect(name, make(self._rpc), REFUSED)
        caller = await self._world.caller_of(self._rpc.service)
        if self._rpc.access != "SERVICE" and caller is not None:
            headers = await self._world.as_service(caller, self._rpc.service)
            await self._expect("a service for nobody", headers, REFUSED)

    async def _check_others(self) -> None:
        others, stranger = self._line.others, self._stranger.headers
        outcome = await self._outcome(stranger)
        if others != "ANY":
            expected = self._line.good if others == THEIRS else set(others.split())
            self._assert(outcome.code in expected, "another user", outcome, f"{sorted(expected)}")
        told = self._things.secrets if others != NOT_FOUND else [self._owner.marker, self._owner.username]
        for secret in told:
            self._assert(not outcome.holds(secret), "another user", outcome, "nothing of the owner's")
        for name in self._rpc.caller_fields:
            if name not in self._line.request and (not isinstance(self._door, RestDoor) or self._door.binding.names(name)):
                who = f"another user who says {name} is the owner's"
                await self._expect(who, stranger, NOT_ALLOWED, changed={name: "{owner}"})

    @property
    def _is_edge(self) -> bool:
        return "edge" in self._door.name or isinstance(self._door, RestDoor)

    async def _expect(
        self, who: str, headers: Metadata, expected: frozenset[str], *, shows: bool = False, changed: Mapping[str, str] = {}
    ) -> None:
        outcome = await self._outcome(headers, changed)
        self._assert(outcome.code in expected, who, outcome, f"one of {sorted(expected)}")
        if shows and self._line.shows and outcome.code == "OK":
            shown = await self._things.filled(self._line.shows)
            self._assert(outcome.holds(shown), who, outcome, f"an answer with {self._line.shows}")

    async def _outcome(self, headers: Metadata, changed: Mapping[str, str] = {}) -> Outcome:
        for wanted in (self._line.shows, *changed.values()):
            await self._things.filled(wanted)  # made before anybody asks
        fields: Mapping[str, Any] = await self._things.filled({**self._line.request, **changed})
        if isinstance(self._door, RestDoor):
            # A path that names the caller, in words that are the caller's own.
            own = {name: "me" for name in self._rpc.caller_fields if name not in fields and self._door.binding.names(name)}
            fields = {**fields, **own}
        return await self._door.call(self._rpc, self._rpc.message(fields), headers)

    def _assert(self, holds: bool, who: str, outcome: Outcome, expected: str) -> None:  # noqa: FBT001 - what is asserted
        self.tried.append(who)
        assert holds, f"{self._rpc.name} by {self._door.name}, as {who}: expected {expected}, got {outcome.code}"
