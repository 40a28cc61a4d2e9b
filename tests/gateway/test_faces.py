"""Every REST face of every RPC leads to that RPC, whatever its neighbours look like, and JSON of every kind arrives."""

import base64
import json

import httpx2
import pytest
from google.protobuf import json_format

from gateway.contract import DESCRIPTORS, Binding, Rpc, exposed_rpcs, read_descriptors
from parley.chat.v1 import chat_pb2, mcp_server_pb2, task_pb2
from tests.gateway.backend import Script
from tests.gateway.test_exports import export
from tests.gateway.test_streams import events

RPCS = exposed_rpcs(read_descriptors(DESCRIPTORS))
FACES = [(rpc, binding) for rpc in RPCS for binding in rpc.bindings]
VALUES = ("01990000-0000-7000-8000-00000000000a", "me")


@pytest.mark.parametrize(("rpc", "binding"), FACES, ids=[f"{b.method} {b.template}" for _, b in FACES])
async def test_a_face_reaches_its_rpc(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], rpc: Rpc, binding: Binding
) -> None:
    if rpc.is_stream:
        script.streams[rpc.name] = events if rpc.stream_form == "events" else export
    for value in VALUES:
        script.calls.pop(rpc.name, None)
        path = binding.template
        for variable in binding.variables:
            path = path.replace(f"{{{variable}}}", value)
        answer = await client.request(binding.method, path, json={} if binding.body else None, headers=signed_in)
        assert answer.status_code in {200, 500}, answer.text  # 500: the RPC was reached and is not scripted
        request = script.calls[rpc.name][-1].request
        assert [getattr(request, variable) for variable in binding.variables] == [value] * len(binding.variables)


@pytest.mark.parametrize(
    ("path", "rpc"),
    [
        ("/api/v1/chat/generations/sessions", "GetGeneration"),
        ("/api/v1/chat/conversations/sessions", "GetConversation"),
        ("/api/v1/chat/usage/sessions", "ListConversations"),
        ("/api/v1/users/me/tasks/preferences", "GetTask"),
    ],
)
async def test_a_literal_path_goes_before_a_variable(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], path: str, rpc: str
) -> None:
    await client.get(path, headers=signed_in)
    assert set(script.calls) - {"GetJwks"} == {rpc}


async def test_every_kind_of_field_arrives(client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]) -> None:
    script.answers("CreateCompletion", chat_pb2.Completion())
    image = bytes(range(256))
    schema = {
        "type": "object",
        "properties": {"n": {"type": "number", "minimum": 1.5}},
        "required": ["n"],
        "x": [None, True],
    }
    body = {
        "message": "look",
        "images": [{"data": base64.b64encode(image).decode()}, {"url": "https://example.com/a.png"}],
        "response_schema": schema,
        "mcp_servers": [{"label": "a", "url": "https://mcp.example.com", "headers": {"Authorization": "Bearer s"}}],
        "memory_enabled": False,
        "use_tasks": True,
    }
    answer = await client.post("/api/v1/chat/completions", json=body, headers=signed_in)
    assert answer.status_code == 200, answer.text
    request = script.only_call("CreateCompletion").request
    assert request.images[0].data == image
    assert request.images[1].url == "https://example.com/a.png"
    assert json_format.MessageToDict(request.response_schema) == schema
    assert dict(request.mcp_servers[0].headers) == {"Authorization": "Bearer s"}
    assert request.HasField("memory_enabled")
    assert request.memory_enabled is False
    assert request.use_tasks is True


async def test_an_image_of_the_greatest_size_passes(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.answers("CreateCompletion", chat_pb2.Completion())
    image = base64.b64encode(b"\xff" * (1280 * 1024)).decode()
    body = json.dumps({"message": "x" * 10_000, "images": [{"data": image}]}).encode()
    answer = await client.post("/api/v1/chat/completions", content=body, headers=signed_in)
    assert answer.status_code == 200, answer.text


async def test_filters_and_masks_arrive(client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]) -> None:
    script.answers("ListTasks", task_pb2.ListTasksResponse())
    script.answers("UpdateMcpServer", mcp_server_pb2.McpServer())
    query = "completed=false&due_before=2026-11-22T10%3A00%3A00Z&text=milk"
    assert (await client.get(f"/api/v1/tasks?{query}", headers=signed_in)).status_code == 200
    request = script.only_call("ListTasks").request
    assert (request.HasField("completed"), request.completed, request.text) == (True, False, "milk")
    assert request.due_before.ToJsonString() == "2026-11-22T10:00:00Z"
    assert not request.HasField("due_from")
    body = {"label": "b", "update_mask": "label"}
    assert (await client.patch("/api/v1/mcp-servers/x", json=body, headers=signed_in)).status_code == 200
    assert list(script.only_call("UpdateMcpServer").request.update_mask.paths) == ["label"]
