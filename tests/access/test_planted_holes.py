"""The matrix finds what it is for: a service with a check missing, planted between the matrix and the real one."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.access.doors import GrpcDoor
from tests.access.matrix import Trial
from tests.access.world import RPCS, Person, World
from tests.issuer import Metadata

GET_TASK = "parley.chat.v1.TaskService.GetTask"
LIST_TASKS = "parley.chat.v1.TaskService.ListTasks"
SESSIONS = "parley.chat.v1.AdminService.ListSessions"
TURNS = "parley.memory.v1.MemoryService.RecordTurns"
KEYS = ("authorization", "x-parley-service-authorization")
Hole = Callable[[Metadata], Awaitable[Metadata]]


class Probe(grpc.GenericRpcHandler):
    """Hands calls on to the real service, with the identity that a hole makes of theirs."""

    def __init__(self, target: str, hole: Hole) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self._hole = hole

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            said = tuple((key, str(value)) for key, value in context.invocation_metadata() or () if key in KEYS)
            call: Any = self._channel.unary_unary(details.method)
            try:
                return bytes(await call(request, metadata=await self._hole(said), timeout=20))
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def probe(world: World, service: str, hole: Hole) -> AsyncIterator[GrpcDoor]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Probe(f"127.0.0.1:{world.suite.port(service.upper())}", hole),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield GrpcDoor("the probe", channel)
    await server.stop(1)


async def found(world: World, name: str, owner: Person, stranger: Person, hole: Hole) -> str:
    """What the matrix says of an RPC with a hole."""
    async with probe(world, RPCS[name].service, hole) as door:
        with pytest.raises(AssertionError) as caught:
            await Trial(world, RPCS[name], door, owner=owner, stranger=stranger).check()
    return str(caught.value).splitlines()[0]


@pytest.mark.parametrize("name", [GET_TASK, LIST_TASKS, SESSIONS, TURNS])
async def test_a_probe_without_a_hole_passes(world: World, owner: Person, stranger: Person, name: str) -> None:
    async def none(said: Metadata) -> Metadata:
        return said

    async with probe(world, RPCS[name].service, none) as door:
        await Trial(world, RPCS[name], door, owner=owner, stranger=stranger).check()


async def test_nobody_is_let_in(world: World, owner: Person, stranger: Person) -> None:
    async def hole(said: Metadata) -> Metadata:
        return said or owner.headers

    assert f"{GET_TASK} by the probe, as nobody: expected one of ['UNAUTHENTICATED'], got OK" in await found(
        world, GET_TASK, owner, stranger, hole
    )


@pytest.mark.parametrize(
    "kind",
    [
        *("an expired token", "alg none", "HS256 with the public key", "another key under our key id"),
        *("a token for another audience", "a session that ended", "a service's token as a user's"),
    ],
)
async def test_one_kind_of_bad_identity_is_let_in(world: World, owner: Person, stranger: Person, kind: str) -> None:
    async def hole(said: Metadata) -> Metadata:
        return owner.headers if said == world.bad[kind](RPCS[GET_TASK]) else said

    assert f"{GET_TASK} by the probe, as {kind}: " in await found(world, GET_TASK, owner, stranger, hole)


async def test_another_user_gets_the_owners(world: World, owner: Person, stranger: Person) -> None:
    async def hole(said: Metadata) -> Metadata:
        return owner.headers if said == stranger.headers else said

    assert "as another user: expected ['NOT_FOUND'], got OK" in await found(world, GET_TASK, owner, stranger, hole)
    assert "as another user: expected nothing of the owner's, got OK" in await found(
        world, LIST_TASKS, owner, stranger, hole
    )


async def test_a_user_is_let_in_as_an_administrator(world: World, owner: Person, stranger: Person) -> None:
    async def hole(said: Metadata) -> Metadata:
        return world.admin.headers if said == owner.headers else said

    assert "as a user: expected one of ['PERMISSION_DENIED'], got OK" in await found(world, SESSIONS, owner, stranger, hole)


async def test_a_user_is_let_in_as_a_service(world: World, owner: Person, stranger: Person) -> None:
    service = await world.as_service("chat", "memory")

    async def hole(said: Metadata) -> Metadata:
        return service if said == owner.headers else said

    assert "as a user: expected one of ['PERMISSION_DENIED'], got OK" in await found(world, TURNS, owner, stranger, hole)


async def test_an_rpc_that_shuts_its_owner_out_is_not_taken_for_a_safe_one(
    world: World, owner: Person, stranger: Person
) -> None:
    async def hole(_said: Metadata) -> Metadata:
        return ()

    assert "as another user: expected ['NOT_FOUND'], got UNAUTHENTICATED" in await found(
        world, GET_TASK, owner, stranger, hole
    )


async def test_a_service_that_answers_everybody_is_found(world: World, stranger: Person) -> None:
    """Every RPC of a user: whatever it is, a service that looks at nothing does not pass."""
    users = [name for name, rpc in RPCS.items() if rpc.access == "USER" and not rpc.is_stream]
    for name in users:
        owner = await world.register()  # of before, some RPCs end the session

        async def hole(_said: Metadata, owner: Person = owner) -> Metadata:
            return owner.headers

        assert f"{name} by the probe, as nobody: " in await found(world, name, owner, stranger, hole)
