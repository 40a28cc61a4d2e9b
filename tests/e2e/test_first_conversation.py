"""The first conversation, as a newcomer holds it: through REST and through gRPC, by what the edge and reflection tell."""

import asyncio
import uuid
from typing import Any

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from parley.chat.v1 import chat_pb2, chat_pb2_grpc, conversation_pb2, conversation_pb2_grpc
from simulator.control import Control, ScriptedAnswer
from tests.e2e.harness import Client, Suite, check_sequence, text_of


async def test_a_streamed_reply_comes_as_it_is_written(client: Client, control: Control) -> None:
    """The third token is held back by the model until the client has seen the second."""
    await control.script(ScriptedAnswer(deltas=["one ", "two ", "three"], hold_after_tokens=2))
    async with client.stream("count") as events:
        seen = []
        async for event in events:
            seen.append(event)
            if text_of(seen) == "one two ":
                break
        await control.wait(held=1)
        await control.release()
        seen += [event async for event in events]
    check_sequence(seen)
    assert seen[0].kind == "started"
    assert text_of(seen) == "one two three"
    assert seen[-1].data["completed"]["message"]["text"] == "one two three"


async def test_the_model_receives_the_earlier_turns(client: Client, control: Control) -> None:
    first = await client.streamed("My name is Ana.")
    conversation = first[0].data["started"]["conversation_id"]
    await client.streamed("What is my name?", conversation_id=conversation)
    requests = await control.requests("responses")
    told = [(item["role"], item["content"]) for item in requests[-1].body["input"]]
    assert told == [("user", "My name is Ana."), ("assistant", text_of(first)), ("user", "What is my name?")]


async def test_a_unary_reply_carries_what_a_streamed_one_does(client: Client) -> None:
    reply = await client.call("POST", "/api/v1/chat/completions", message="hello")
    assert reply["message"]["status"] == "complete"
    assert reply["usage"]["output_tokens"] > 0
    assert reply["processing_time_ms"] >= 0
    again = await client.call("POST", "/api/v1/chat/me", message="hello again", conversation_id=reply["conversation_id"])
    assert again["message"]["sequence"] == 4


async def test_conversations_are_listed_read_renamed_and_deleted(client: Client) -> None:
    reply = await client.call("POST", "/api/v1/chat/completions", message="Plan a trip to Porto")
    path = f"/api/v1/chat/conversations/{reply['conversation_id']}"
    listed = await client.call("GET", "/api/v1/chat/conversations")
    assert [row["id"] for row in listed["conversations"]] == [reply["conversation_id"]]
    assert listed["conversations"][0]["title"] == "Plan a trip to Porto"
    assert (await client.call("PATCH", path, title="Porto"))["title"] == "Porto"
    messages = (await client.call("GET", f"{path}/messages"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    full = await client.call("GET", f"{path}/full")
    assert full["messages"] == messages
    assert full["conversation"]["message_count"] == 2
    assert (await client.call("DELETE", path))["deleted_messages"] == 2
    assert await client.refusal("GET", path) == (404, "CONVERSATION_NOT_FOUND")


async def test_native_grpc_through_the_edge(client: Client, suite: Suite) -> None:
    metadata = (("authorization", client.headers["authorization"]),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{suite.port('EDGE')}") as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        stream = stub.StreamCompletion(chat_pb2.CompletionRequest(message="hello"), metadata=metadata, timeout=30)
        events = [event async for event in stream]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert events[-1].WhichOneof("event") == "completed"
        conversations = conversation_pb2_grpc.ConversationServiceStub(channel)
        listed = await conversations.ListConversations(
            conversation_pb2.ListConversationsRequest(), metadata=metadata, timeout=30
        )
        assert [row.id for row in listed.conversations] == [events[0].started.conversation_id]


async def test_straight_at_the_service_by_reflection_alone(client: Client, suite: Suite) -> None:
    reply = await asyncio.to_thread(_ask_by_reflection, suite.port("CHAT"), client.headers["authorization"])
    assert reply["message"]["status"] == "complete"


def _ask_by_reflection(port: int, authorization: str) -> dict[str, Any]:
    """What grpcurl does: no stub, everything learned from the server."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        method = pool.FindServiceByName("parley.chat.v1.ChatService").methods_by_name["CreateCompletion"]
        request = message_factory.GetMessageClass(method.input_type)(message="hello", request_id=str(uuid.uuid4()))
        call: Any = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        answer = call(request, metadata=(("authorization", authorization),), timeout=30)
    found: dict[str, Any] = json_format.MessageToDict(answer, preserving_proto_field_name=True)
    return found
