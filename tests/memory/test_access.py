"""Who may call memory, and which requests it refuses."""

from collections.abc import Awaitable, Callable

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from parley.memory.v1 import memory_pb2
from tests.issuer import Metadata
from tests.memory.service import MemoryService, fields_of, message, new_id, reason_of, turn

Invoke = Callable[[MemoryService, Metadata], Awaitable[object]]


async def _assemble(memory: MemoryService, metadata: Metadata) -> object:
    request = memory_pb2.AssembleContextRequest(conversation_id=new_id())
    return await memory.stub.AssembleContext(request, metadata=metadata, timeout=10)


async def _record(memory: MemoryService, metadata: Metadata) -> object:
    request = memory_pb2.RecordTurnRequest(conversation_id=new_id(), messages=turn(1))
    return await memory.stub.RecordTurn(request, metadata=metadata, timeout=10)


async def _invalidate(memory: MemoryService, metadata: Metadata) -> object:
    request = memory_pb2.InvalidateContextRequest(conversation_id=new_id())
    return await memory.stub.InvalidateContext(request, metadata=metadata, timeout=10)


every_rpc = pytest.mark.parametrize("invoke", [_assemble, _record, _invalidate])


async def _refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), reason_of(refused.value)


@every_rpc
async def test_nobody_is_refused(memory: MemoryService, invoke: Invoke) -> None:
    assert await _refusal(invoke(memory, ())) == (grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_MISSING")


@every_rpc
async def test_a_user_without_a_service_is_refused(memory: MemoryService, invoke: Invoke) -> None:
    refusal = await _refusal(invoke(memory, memory.issuer.as_user(memory.user_id)))
    assert refusal == (grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")


@every_rpc
async def test_a_service_without_a_user_is_refused(memory: MemoryService, invoke: Invoke) -> None:
    refusal = await _refusal(invoke(memory, memory.issuer.as_service("chat", audience="memory")))
    assert refusal == (grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_MISSING")


@every_rpc
async def test_a_token_for_another_service_is_refused(memory: MemoryService, invoke: Invoke) -> None:
    metadata = memory.issuer.as_service("chat", audience="sms", user_id=memory.user_id)
    assert await _refusal(invoke(memory, metadata)) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


@every_rpc
async def test_an_ended_session_is_refused(memory: MemoryService, invoke: Invoke) -> None:
    session_id = new_id()
    token = memory.issuer.user_token(memory.user_id, session_id=session_id)
    metadata = (*memory.issuer.as_service("chat", audience="memory"), ("authorization", f"Bearer {token}"))
    await invoke(memory, metadata)
    memory.issuer.ended.add(session_id)
    assert await _refusal(invoke(memory, metadata)) == (grpc.StatusCode.UNAUTHENTICATED, "SESSION_ENDED")


@every_rpc
async def test_the_forwarded_token_of_a_user_names_the_user(memory: MemoryService, invoke: Invoke) -> None:
    service = memory.issuer.as_service("chat", audience="memory")
    await invoke(memory, (*service, *memory.issuer.as_user(memory.user_id)))


async def test_the_same_conversation_id_of_another_user_is_another_conversation(memory: MemoryService) -> None:
    conversation_id, other = new_id(), new_id()
    await memory.record(conversation_id, turn(1, "mine"))
    assert await memory.texts(conversation_id, user_id=other) == []
    assert await memory.record(conversation_id, turn(1, "theirs"), user_id=other) == 2
    assert await memory.texts(conversation_id) == ["mine 1", "mine 2"]
    assert await memory.forget(conversation_id, user_id=other) == 2
    assert await memory.texts(conversation_id) == ["mine 1", "mine 2"]


async def test_a_guessed_message_id_of_another_user_changes_nothing(memory: MemoryService) -> None:
    conversation_id, mine = new_id(), message(1, "mine")
    await memory.record(conversation_id, [mine])
    forged = message(1, "forged", message_id=mine.message_id, revision=9)
    assert await memory.record(conversation_id, [forged], user_id=new_id()) == 1
    assert await memory.texts(conversation_id) == ["mine"]


FAR = message(1)
FAR.create_time.CopyFrom(Timestamp(seconds=10**15))
TWICE = message(1)
BAD_TURNS = {
    "nothing": ([], "messages"),
    "too many": ([message(n) for n in range(1, 102)], "messages"),
    "too long": ([message(1, "x" * 400_001)], "messages[0].text"),
    "NUL": ([message(1, "a\0b")], "messages[0].text"),
    "no place": ([message(0)], "messages[0].sequence"),
    "negative place": ([message(-1)], "messages[0].sequence"),
    "negative revision": ([message(1, revision=-1)], "messages[0].revision"),
    "one place twice": ([message(1), message(1)], "messages[1].sequence"),
    "one message twice": ([TWICE, message(2, message_id=TWICE.message_id)], "messages[1].message_id"),
    "one message twice, in capitals": (
        [TWICE, message(2, message_id=TWICE.message_id.upper())],
        "messages[1].message_id",
    ),
    "no uuid": ([message(1, message_id="first")], "messages[0].message_id"),
    "a time that is none": ([FAR], "messages[0].create_time"),
    "no time": ([memory_pb2.ContextMessage(message_id=new_id(), sequence=1, role="user")], "messages[0].create_time"),
    "another role": (
        [memory_pb2.ContextMessage(message_id=new_id(), sequence=1, role="system", create_time=Timestamp(seconds=1))],
        "messages[0].role",
    ),
}


@pytest.mark.parametrize("name", BAD_TURNS)
async def test_a_bad_turn_is_refused_by_its_field(memory: MemoryService, name: str) -> None:
    messages, field = BAD_TURNS[name]
    conversation_id = new_id()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await memory.record(conversation_id, messages)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(refused.value) == "INVALID_REQUEST"
    assert field in fields_of(refused.value)
    assert (await memory.assemble(conversation_id)).last_sequence == 0


@pytest.mark.parametrize("conversation_id", ["", "c", "0199c3f27d417a6e9d0b3c5e8f1a2b4d"])
async def test_a_bad_conversation_id_is_refused(memory: MemoryService, conversation_id: str) -> None:
    for call in (memory.assemble(conversation_id), memory.record(conversation_id, turn(1)), memory.forget(conversation_id)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert (refused.value.code(), fields_of(refused.value)) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            {"conversation_id"},
        )


async def test_negative_numbers_are_refused(memory: MemoryService) -> None:
    for call, field in (
        (memory.assemble(new_id(), budget=-1), "token_budget"),
        (memory.forget(new_id(), -1), "from_sequence"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert fields_of(refused.value) == {field}


async def test_the_case_of_a_conversation_id_does_not_matter(memory: MemoryService) -> None:
    conversation_id = new_id()
    await memory.record(conversation_id.upper(), turn(1))
    assert len(await memory.texts(conversation_id)) == 2
    assert await memory.forget(conversation_id.upper()) == 2
    assert await memory.texts(conversation_id) == []
