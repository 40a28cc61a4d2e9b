"""REST through a real edge: what reaches a service, and how its answer comes back."""

import httpx2
import pytest
from google.protobuf import field_mask_pb2

from gateway.settings import Address
from parley.auth.v1 import auth_pb2
from parley.chat.v1 import chat_pb2, conversation_pb2
from tests.gateway.backend import Script, Service, endpoints_of
from tests.gateway.conftest import ORIGIN
from tests.gateway.edge import Edge, running_edge
from tests.ports import free_ports


async def test_body_becomes_the_request(client: httpx2.AsyncClient, script: Script) -> None:
    script.answers("Login", auth_pb2.LoginResponse(user=auth_pb2.User(username="ana")))
    response = await client.post("/api/v1/auth/login", json={"username": "ana", "password": "correct horse"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert script.only_call("Login").request == auth_pb2.LoginRequest(username="ana", password="correct horse")


async def test_answers_are_snake_case_with_every_scalar_and_no_unset_message(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.answers("GetConversation", conversation_pb2.Conversation(id="c"))
    response = await client.get("/api/v1/chat/conversations/c", headers=signed_in)
    assert response.json() == {"id": "c", "title": "", "message_count": 0}


async def test_empty_lists_and_maps_are_printed(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.answers("ListMessages", conversation_pb2.ListMessagesResponse())
    response = await client.get("/api/v1/chat/conversations/c/messages", headers=signed_in)
    assert response.json() == {"messages": [], "next_page_token": ""}


async def test_path_and_query_become_fields(client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]) -> None:
    script.answers("ListMessages", conversation_pb2.ListMessagesResponse())
    url = "/api/v1/chat/conversations/c1/messages?page_size=7&page_token=a%2Bb"
    assert (await client.get(url, headers=signed_in)).status_code == 200
    expected = conversation_pb2.ListMessagesRequest(conversation_id="c1", page_size=7, page_token="a+b")
    assert script.only_call("ListMessages").request == expected


async def test_patch_takes_body_path_and_field_mask(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.answers("UpdateConversation", conversation_pb2.Conversation())
    body = {"title": "New", "update_mask": "title"}
    response = await client.patch("/api/v1/chat/conversations/c1", json=body, headers=signed_in)
    assert response.status_code == 200
    assert script.only_call("UpdateConversation").request == conversation_pb2.UpdateConversationRequest(
        conversation_id="c1", title="New", update_mask=field_mask_pb2.FieldMask(paths=["title"])
    )


async def test_additional_binding_reaches_the_same_rpc(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.answers("CreateCompletion", chat_pb2.Completion())
    for path in ("/api/v1/chat/completions", "/api/v1/chat/me"):
        assert (await client.post(path, json={"message": "Hi"}, headers=signed_in)).status_code == 200
    assert [call.request.user_id for call in script.calls["CreateCompletion"]] == ["", "me"]


async def test_empty_body_is_an_empty_request(client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]) -> None:
    script.answers("Logout", auth_pb2.LogoutResponse(ended_sessions=1))
    response = await client.post("/api/v1/auth/logout", headers=signed_in)
    assert response.json() == {"ended_sessions": 1}


async def test_body_just_below_the_limit_passes(client: httpx2.AsyncClient, script: Script) -> None:
    script.answers("Login", auth_pb2.LoginResponse())
    body = {"username": "a" * (2 * 1024 * 1024 - 100)}
    assert (await client.post("/api/v1/auth/login", json=body)).status_code == 200
    assert len(script.only_call("Login").request.username) == len(body["username"])


async def test_answer_of_several_megabytes_passes(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    text = "é" * 3_000_000
    answer = conversation_pb2.FullConversation(messages=[conversation_pb2.Message(text=text)])
    script.answers("GetFullConversation", answer)
    response = await client.get("/api/v1/chat/conversations/c/full", headers=signed_in)
    assert response.json()["messages"][0]["text"] == text


async def test_request_id_of_the_client_is_kept_and_returned(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.answers("GetMe", auth_pb2.User())
    identifier = "0199c0de-0000-4000-8000-00000000abcd"
    response = await client.get("/api/v1/auth/me", headers={**signed_in, "x-request-id": identifier})
    assert response.headers["x-request-id"] == identifier
    assert script.only_call("GetMe").metadata["x-request-id"] == identifier


@pytest.mark.parametrize("sent", [None, "", "two words", "<script>", "a" * 129, 'quote"'])
async def test_request_id_that_is_none_is_replaced(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str], sent: str | None
) -> None:
    script.answers("GetMe", auth_pb2.User())
    headers = signed_in if sent is None else {**signed_in, "x-request-id": sent}
    response = await client.get("/api/v1/auth/me", headers=headers)
    assert len(response.headers["x-request-id"]) == 36
    assert script.only_call("GetMe").metadata["x-request-id"] == response.headers["x-request-id"]


async def test_headers_that_only_the_suite_may_send_are_taken_out(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.answers("GetMe", auth_pb2.User())
    forged = {
        "x-parley-service-authorization": "Bearer forged",
        "X-Parley-Other": "1",
        "x-envoy-original-path": "/elsewhere",
        "x-envoy-upstream-rq-timeout-ms": "1",
    }
    response = await client.get("/api/v1/auth/me", headers={**signed_in, **forged, "idempotency-key": "k"})
    assert response.status_code == 200
    received = script.only_call("GetMe").metadata
    assert not [name for name in received if name.startswith("x-parley-")]
    assert "x-envoy-upstream-rq-timeout-ms" not in received
    assert received["x-envoy-original-path"] == "/api/v1/auth/me"
    assert received["idempotency-key"] == "k"
    assert received["authorization"] == signed_in["authorization"]


async def test_answers_carry_nosniff_and_no_trace_of_envoy(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.answers("GetMe", auth_pb2.User())
    for path in ("/api/v1/auth/me", "/nowhere", "/health", "/api"):
        response = await client.get(path, headers=signed_in)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert not [name for name in response.headers if name.startswith(("x-envoy", "grpc-"))]


async def test_paths_are_normalized(script: Script, edge: Edge) -> None:
    script.answers("Login", auth_pb2.LoginResponse())
    for path in ("/api/v1/x/../auth/login", "//api//v1/auth/login", "/api/v1/%61uth/login"):
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}"
        status, _headers, _body = await edge.raw(head.encode())
        assert status == 200, path
    assert len(script.calls["Login"]) == 3


async def test_allowed_origin_passes_its_preflight(client: httpx2.AsyncClient) -> None:
    headers = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    response = await client.options("/api/v1/chat/stream", headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in response.headers["access-control-allow-headers"]
    assert {"GET", "POST", "PATCH", "DELETE"} <= set(response.headers["access-control-allow-methods"].split(","))


async def test_other_origins_get_no_permission(client: httpx2.AsyncClient) -> None:
    for origin in ("https://evil.example.com", f"{ORIGIN}.evil.com", "null"):
        headers = {"origin": origin, "access-control-request-method": "POST"}
        response = await client.options("/api/v1/chat/stream", headers=headers)
        assert response.status_code == 405
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_a_preflight_that_asks_for_nothing_goes_no_further(client: httpx2.AsyncClient) -> None:
    grpc_call = {"content-type": "application/grpc", "te": "trailers"}
    headers = {**grpc_call, "origin": ORIGIN, "access-control-request-method": ""}
    for path in ("/parley.auth.v1.TokenService/IssueServiceToken", "/envoy.service.auth.v3.Authorization/Check"):
        answer = await client.request("OPTIONS", path, headers=headers, content=b"\0\0\0\0\0")
        assert answer.headers["grpc-status"] == "12", answer.headers


async def test_answers_and_refusals_to_an_allowed_origin_can_be_read(
    client: httpx2.AsyncClient, script: Script, signed_in: dict[str, str]
) -> None:
    script.answers("GetMe", auth_pb2.User())
    for headers, status in ((signed_in, 200), ({}, 401)):
        response = await client.get("/api/v1/auth/me", headers={**headers, "origin": ORIGIN})
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == ORIGIN
        exposed = response.headers["access-control-expose-headers"].split(",")
        assert {"x-request-id", "retry-after"} <= set(exposed)


async def test_a_dead_endpoint_beside_a_live_one_costs_no_call(services: dict[str, Service], script: Script) -> None:
    script.answers("Login", auth_pb2.LoginResponse())
    endpoints = endpoints_of(services)
    endpoints["auth"] = (*endpoints["auth"], Address("127.0.0.1", free_ports(1)[0]))
    async with running_edge(endpoints) as edge, edge.client() as client:
        statuses = [(await client.post("/api/v1/auth/login", json={})).status_code for _ in range(20)]
    assert statuses == [200] * 20
    assert len(script.calls["Login"]) == 20
