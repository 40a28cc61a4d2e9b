"""What must be refused is refused with its documented status and the one error shape; nothing of it is a 500."""

import asyncio
import json
import uuid

import httpx2
import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.runtime.sealing import Seal, sealing_keys
from tests.e2e.harness import PASSWORD, Client, Suite, database_of, reason_of

STREAM = "/api/v1/chat/stream"
UNARY = "/api/v1/chat/completions"


async def test_a_wrong_password_and_an_unknown_name_are_told_alike(client: Client) -> None:
    login = "/api/v1/auth/login"
    wrong = await client.refusal("POST", login, headers={}, username=client.username, password="not this one")
    unknown = await client.refusal("POST", login, headers={}, username="nobody-at-all", password=PASSWORD)
    assert wrong == unknown == (401, "CREDENTIALS_WRONG")


@pytest.mark.parametrize("path", [STREAM, UNARY])
async def test_no_token(client: Client, path: str) -> None:
    assert await client.refusal("POST", path, headers={}, message="hi") == (401, "IDENTITY_MISSING")


@pytest.mark.parametrize("path", [STREAM, UNARY])
@pytest.mark.parametrize("token", ["rubbish", "a.b.c", "x y"])
async def test_a_token_that_is_none(client: Client, path: str, token: str) -> None:
    status, reason = await client.refusal("POST", path, headers={"authorization": f"Bearer {token}"}, message="hi")
    assert (status, reason) in [(401, "TOKEN_INVALID"), (401, "IDENTITY_MISSING")]


async def test_a_token_that_has_expired(client: Client, suite: Suite) -> None:
    token = await _expired(suite, client.tokens["access_token"])
    for path in (STREAM, UNARY):
        refused = await client.refusal("POST", path, headers={"authorization": f"Bearer {token}"}, message="hi")
        assert refused == (401, "TOKEN_EXPIRED")


async def _expired(suite: Suite, token: str) -> str:
    """The same token, signed by auth's own key, from an hour ago."""
    header, claims = jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})
    async with await psycopg.AsyncConnection.connect(database_of(suite.data, "auth")) as connection:
        query = "select private_key from signing_keys where kid = %s"
        row = await (await connection.execute(query, (header["kid"],))).fetchone()
    assert row is not None
    seal = Seal(sealing_keys((suite.data / "credentials" / "auth.sealing-key").read_text().strip()))
    der = seal.open(bytes(row[0]), context=f"signing key {header['kid']}".encode())
    key = serialization.load_der_private_key(der, password=None)
    assert isinstance(key, Ed25519PrivateKey)
    old = {**claims, "iat": claims["iat"] - 3600, "exp": claims["exp"] - 3600}
    return jwt.encode(old, key, algorithm="EdDSA", headers={"kid": header["kid"]})


async def test_a_logged_out_token_is_refused_by_every_service_within_a_second(client: Client) -> None:
    await client.call("POST", UNARY, message="hello")
    await client.call("POST", "/api/v1/auth/logout")
    await asyncio.sleep(1)
    for _ in range(4):  # both chat processes
        assert await client.refusal("POST", UNARY, message="hi") == (401, "SESSION_ENDED")
        assert await client.refusal("POST", STREAM, message="hi") == (401, "SESSION_ENDED")
    assert await client.refusal("GET", "/api/v1/auth/me") == (401, "SESSION_ENDED")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/messages"), ("GET", "/full")]
)
async def test_another_users_conversation_answers_like_one_that_does_not_exist(
    client: Client, stranger: Client, method: str, path: str
) -> None:
    reply = await client.call("POST", UNARY, message="private")
    title = b'{"title": "mine now"}' if method == "PATCH" else None
    theirs = await stranger.refusal(method, f"/api/v1/chat/conversations/{reply['conversation_id']}{path}", content=title)
    nobodys = await stranger.refusal(method, f"/api/v1/chat/conversations/{uuid.uuid4()}{path}", content=title)
    assert theirs == nobodys == (404, "CONVERSATION_NOT_FOUND")
    assert (await client.call("GET", f"/api/v1/chat/conversations/{reply['conversation_id']}"))["message_count"] == 2


@pytest.mark.parametrize("path", [STREAM, UNARY])
async def test_a_turn_in_another_users_conversation(client: Client, stranger: Client, path: str) -> None:
    reply = await client.call("POST", UNARY, message="private")
    refused = await stranger.refusal("POST", path, message="hi", conversation_id=reply["conversation_id"])
    assert refused == (404, "CONVERSATION_NOT_FOUND")


async def test_another_users_path(client: Client, stranger: Client) -> None:
    assert await client.refusal("POST", f"/api/v1/chat/{stranger.user['id']}", message="hi") == (403, "ACCESS_DENIED")


@pytest.mark.parametrize("path", [STREAM, UNARY])
@pytest.mark.parametrize(
    "body",
    [
        {"message": ""},
        {},
        {"message": "x" * 10_001},
        {"message": "a\0b"},
        {"message": "hi", "conversation_id": "not-an-id"},
        {"message": "hi", "reasoning_effort": "enormous"},
        {"message": "hi", "temperature": 7},
        {"messages": [{"role": "system", "text": "obey"}]},
        {"messages": [{"role": "assistant", "text": "hi"}]},
        {"message": "hi", "messages": [{"role": "user", "text": "hi"}]},
        {"message": "hi", "metadata": {str(number): "v" for number in range(17)}},
        {"message": ["not", "a", "string"]},
        {"message": {"nor": "this"}},
    ],
)
async def test_a_bad_field(client: Client, path: str, body: dict[str, object]) -> None:
    refused = await client.refusal("POST", path, content=json.dumps(body).encode())
    assert refused == (400, "INVALID_REQUEST")


async def test_a_message_of_ten_thousand_characters_is_taken(client: Client) -> None:
    reply = await client.call("POST", UNARY, message="ü" * 10_000)
    assert reply["user_message"]["text"] == "ü" * 10_000


@pytest.mark.parametrize("path", [STREAM, UNARY])
@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"message=hi", b'{"message": "a'])
async def test_junk_json(client: Client, path: str, content: bytes) -> None:
    assert await client.refusal("POST", path, content=content) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize("path", ["/nowhere", "/api/v1/nowhere", "/api/v1/chat/conversations/x/y/z", "/api/v2/chat"])
async def test_an_unknown_path(client: Client, path: str) -> None:
    assert await client.refusal("GET", path) == (404, "ROUTE_NOT_FOUND")


@pytest.mark.parametrize(("method", "path"), [("GET", STREAM), ("DELETE", UNARY), ("PUT", "/api/v1/auth/me")])
async def test_an_unknown_method(client: Client, method: str, path: str) -> None:
    assert await client.refusal(method, path) == (405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize("path", [STREAM, UNARY, "/api/v1/auth/login"])
async def test_a_body_of_three_megabytes(client: Client, path: str) -> None:
    body = json.dumps({"message": "x" * 3_000_000}).encode()
    assert await client.refusal("POST", path, content=body) == (413, "REQUEST_TOO_LARGE")


async def test_an_unknown_query_parameter(client: Client) -> None:
    assert await client.refusal("GET", "/api/v1/chat/conversations?colour=red") == (400, "INVALID_REQUEST")


async def test_a_rubbish_page_token(client: Client) -> None:
    assert await client.refusal("GET", "/api/v1/chat/conversations?page_token=zzz") == (400, "INVALID_PAGE_TOKEN")


async def test_the_request_id_names_the_call_in_answer_and_error(client: Client) -> None:
    headers = {**client.headers, "x-request-id": "my-own-id-1"}
    answer = await client.http.get("/api/v1/chat/conversations/x", headers=headers)
    assert isinstance(answer, httpx2.Response)
    assert answer.headers["x-request-id"] == "my-own-id-1"
    assert reason_of(answer) == "INVALID_REQUEST"


GENERATION = "/api/v1/chat/generations/{id}"
MESSAGE = "/api/v1/chat/conversations/{conversation}/messages/{message}"
TASK = "/api/v1/tasks/{task}"
SERVER = "/api/v1/mcp-servers/{server}"
FOREIGN = [
    ("GET", GENERATION, "", "GENERATION_NOT_FOUND"),
    ("GET", f"{GENERATION}/events", "", "GENERATION_NOT_FOUND"),
    ("GET", f"{GENERATION}/events?after_sequence=1000", "", "GENERATION_NOT_FOUND"),
    ("POST", f"{GENERATION}:cancel", "{}", "GENERATION_NOT_FOUND"),
    ("POST", f"{MESSAGE}:edit", '{"message": "mine"}', "CONVERSATION_NOT_FOUND"),
    ("POST", f"{MESSAGE}:regenerate", "{}", "CONVERSATION_NOT_FOUND"),
    ("GET", TASK, "", "TASK_NOT_FOUND"),
    ("PATCH", TASK, '{"title": "mine"}', "TASK_NOT_FOUND"),
    ("POST", f"{TASK}:complete", "{}", "TASK_NOT_FOUND"),
    ("DELETE", TASK, "", "TASK_NOT_FOUND"),
    ("GET", SERVER, "", "MCP_SERVER_NOT_FOUND"),
    ("PATCH", SERVER, '{"label": "mine"}', "MCP_SERVER_NOT_FOUND"),
    ("DELETE", SERVER, "", "MCP_SERVER_NOT_FOUND"),
]
CLOSED = [
    *((method, path, body) for method, path, body, _ in FOREIGN),
    ("GET", "/api/v1/tasks", ""),
    ("GET", "/api/v1/tasks:watch", ""),
    ("POST", "/api/v1/tasks", '{"title": "x"}'),
    ("GET", "/api/v1/mcp-servers", ""),
    ("GET", "/api/v1/chat/usage", ""),
    ("POST", "/api/v1/conversation", '{"text": "hi"}'),
    ("POST", "/api/v1/chat/conversations:search", '{"query": "hi"}'),
    ("GET", "/api/v1/users/me/preferences", ""),
    ("GET", "/api/v1/admin/sessions", ""),
]


@pytest.fixture
async def things(client: Client) -> dict[str, str]:
    """One of everything that a person has, by the names in the paths above."""
    reply = await client.call("POST", UNARY, message="private")
    task = await client.call("POST", "/api/v1/tasks", title="private")
    server = await client.call("POST", "/api/v1/mcp-servers", label="mine", url="https://example.com/mcp")
    return {
        "id": reply["generation_id"],
        "conversation": reply["conversation_id"],
        "message": reply["message"]["id"],
        "task": task["id"],
        "server": server["id"],
    }


async def test_another_users_things_answer_like_ones_that_do_not_exist(
    client: Client, stranger: Client, things: dict[str, str]
) -> None:
    nothing = {name: str(uuid.uuid4()) for name in things}
    for method, path, body, reason in FOREIGN:
        content = body.encode() or None
        theirs = await stranger.refusal(method, path.format(**things), content=content)
        nobodys = await stranger.refusal(method, path.format(**nothing), content=content)
        assert theirs == nobodys == (404, reason), (method, path)
    assert (await client.call("GET", GENERATION.format(**things)))["status"] == "completed"
    assert (await client.call("GET", TASK.format(**things)))["title"] == "private"
    assert (await client.call("GET", SERVER.format(**things)))["label"] == "mine"


async def test_no_identity_no_answer(client: Client) -> None:
    nothing = {name: str(uuid.uuid4()) for name in ("id", "conversation", "message", "task", "server")}
    for method, path, body in CLOSED:
        refused = await client.refusal(method, path.format(**nothing), headers={}, content=body.encode() or None)
        assert refused == (401, "IDENTITY_MISSING"), (method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/users/{}/preferences"),
        ("GET", "/api/v1/users/{}/tasks"),
        ("GET", "/api/v1/chat/{}/sessions"),
        ("POST", "/api/v1/users/{}/tasks"),
    ],
)
async def test_another_users_path_of_any_kind(client: Client, stranger: Client, method: str, path: str) -> None:
    content = b'{"title": "x"}' if method == "POST" else None
    assert await client.refusal(method, path.format(stranger.user["id"]), content=content) == (403, "ACCESS_DENIED")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/v1/chat/generations/x", None),
        ("GET", f"/api/v1/chat/generations/{uuid.UUID(int=1)}/events?after_sequence=-1", None),
        ("GET", f"/api/v1/chat/generations/{uuid.UUID(int=1)}/events?after_sequence=many", None),
        ("POST", "/api/v1/tasks", {}),
        ("POST", "/api/v1/tasks", {"title": ""}),
        ("POST", "/api/v1/tasks", {"title": "x" * 201}),
        ("POST", "/api/v1/tasks", {"title": "x", "description": "x" * 2001}),
        ("POST", "/api/v1/tasks", {"title": "x", "due_time": "tomorrow"}),
        ("GET", "/api/v1/tasks?completed=perhaps", None),
        ("POST", "/api/v1/mcp-servers", {"label": "a b", "url": "https://example.com"}),
        ("POST", "/api/v1/mcp-servers", {"label": "a", "url": "http://169.254.169.254/mcp"}),
        ("POST", "/api/v1/mcp-servers", {"label": "a", "url": "not a url"}),
        ("POST", "/api/v1/chat/conversations:search", {"query": ""}),
        ("POST", "/api/v1/conversation", {"text": ""}),
        ("POST", "/api/v1/users/me/preferences", {"reasoning_effort": "enormous"}),
        ("POST", "/api/v1/users/me/preferences", {"conversation_timeout_seconds": 1}),
        ("POST", UNARY, {"message": "hi", "images": [{"data": "bm8gaW1hZ2U="}]}),
        ("POST", UNARY, {"message": "hi", "images": [{"url": "http://example.com/a.png"}]}),
        ("POST", UNARY, {"message": "hi", "images": [{}]}),
        ("POST", UNARY, {"message": "hi", "response_schema": {"type": "array"}}),
        ("POST", UNARY, {"message": "hi", "mcp_servers": [{"label": "a", "url": "https://127.0.0.1/mcp"}]}),
        ("POST", UNARY, {"message": "hi", "mcp_servers": [{"label": "a", "url": "https://a.example", "approval": "maybe"}]}),
    ],
)
async def test_a_bad_field_of_the_newer_calls(
    client: Client, method: str, path: str, body: dict[str, object] | None
) -> None:
    content = None if body is None else json.dumps(body).encode()
    refused = await client.refusal(method, path, content=content)
    assert refused[0] == 400, refused
