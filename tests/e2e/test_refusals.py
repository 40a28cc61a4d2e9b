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
    key = serialization.load_der_private_key(row[0], password=None)
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
