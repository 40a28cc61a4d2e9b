"""Every RPC of every service, by every door, tried by everybody who may not."""

import pytest

from parley.options.v1 import options_pb2
from services.runtime.rules import field_rules
from tests.access.contract import Rpc
from tests.access.doors import Door, RestDoor
from tests.access.matrix import NOT_ALLOWED, Trial, line_of
from tests.access.table import ADMIN, FORBIDDEN_VALUES, ROLES, SERVICE, USER, WRITERS
from tests.access.world import RPCS, Person, Things, World

FORGERIES = 8


def doors(world: World, rpc: Rpc) -> list[Door]:
    return [world.direct(rpc.service), world.edge, *(RestDoor(world.http, one) for one in rpc.bindings)]


@pytest.mark.parametrize("name", sorted(RPCS))
async def test_nobody_reaches_what_is_not_theirs(world: World, name: str) -> None:
    rpc = RPCS[name]
    for door in doors(world, rpc):
        trial = Trial(world, rpc, door, owner=await world.register(), stranger=await world.register())
        await trial.check()
        assert trial.tried, "nothing was tried"


def test_every_rpc_has_its_line() -> None:
    missing = []
    for rpc in RPCS.values():
        try:
            line_of(rpc)
        except AssertionError as error:
            missing.append(str(error))
    assert missing == []


async def test_every_kind_of_bad_identity_is_tried(world: World, owner: Person, stranger: Person) -> None:
    """That the matrix is not empty: what a call to a user's RPC is tried with."""
    rpc = RPCS["parley.auth.v1.AuthService.GetMe"]
    trial = Trial(world, rpc, world.direct("auth"), owner=owner, stranger=stranger)
    await trial.check()
    tried = set(trial.tried)
    assert len(world.bad) >= FORGERIES + 4
    assert {"nobody", "an expired token", "alg none", "a session that ended", "another user", "the owner"} <= tried
    assert {"a token for another audience", "a service's token as a user's", "a service for nobody"} <= tried


def writers() -> list[str]:
    """RPCs that write what their caller says, other services' apart."""
    return sorted(
        name
        for name, rpc in RPCS.items()
        if rpc.access in {"USER", "ADMIN", "PUBLIC"} and rpc.method.name.startswith(WRITERS)
    )


@pytest.mark.parametrize("name", writers())
def test_every_writable_field_has_a_role(name: str) -> None:
    roles = ROLES.get(name)
    fields = [field for field, _ in RPCS[name].writable()]
    assert roles is not None, f"{name} is not in ROLES of tests/access/table.py: say who may set each of {fields}"
    missing = [one for one in fields if one not in roles and f"{one.partition('.')[0]}.*" not in roles]
    assert missing == [], f"{name}: say in ROLES of tests/access/table.py who may set {missing}"


def forbidden() -> list[tuple[str, str]]:
    """Fields that the RPC's own callers may not set."""
    return [
        (name, field)
        for name in writers()
        for field, role in ROLES.get(name, {}).items()
        if role != (ADMIN if RPCS[name].access == "ADMIN" else USER) and field in dict(RPCS[name].writable())
    ]


@pytest.mark.parametrize(("name", "field"), forbidden())
async def test_a_field_that_is_not_the_callers_is_refused_or_left_alone(
    world: World, owner: Person, stranger: Person, name: str, field: str
) -> None:
    rpc, things = RPCS[name], Things(world, owner, stranger)
    value = await things.filled(FORBIDDEN_VALUES[field])
    request = dict(await things.filled(line_of(rpc).request))
    outer, _, inner = field.rpartition(".")
    request[outer or inner] = {**request.get(outer, {}), inner: value} if outer else value
    outcome = await world.direct(rpc.service).call(rpc, rpc.message(request), owner.headers)
    if outcome.code == "OK":
        assert ROLES[name][field] not in {ADMIN, SERVICE} or not outcome.holds(str(value)), f"{name} took {field}"
        assert not outcome.holds(str(value)), f"{name} took {field}"
        return
    assert outcome.code in NOT_ALLOWED | {"INVALID_ARGUMENT"}, outcome


def test_roles_are_those_of_the_contract() -> None:
    """Where the contract says who may change a field, the table says the same."""
    if "changed_by" not in options_pb2.FieldRules.DESCRIPTOR.fields_by_name:
        pytest.skip("the contract has no such rule yet")
    for name in writers():
        for path, field in RPCS[name].writable():
            said = getattr(field_rules(field), "changed_by")  # noqa: B009 - of a later contract
            if said:
                role = "admin" if said == options_pb2.ACCESS_ADMIN else "nobody"
                assert ROLES[name][path] == role, f"{name}: {path}"
