"""Basic and cookies at the door: a real Envoy before a real auth, so that what is traded is what auth trades."""

import base64
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status

from gateway.settings import Address
from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from parley.chat.v1 import chat_pb2, conversation_pb2
from suite.databases import ServiceDatabase
from tests.auth.front_end import AUDIENCE, ISSUER, SECRET, FrontEnd, forged, raw, running_front_end
from tests.auth.harness import PASSWORD, Person, RunningAuth, make_settings, new_name, running_auth
from tests.gateway.backend import Script, Service, endpoints_of
from tests.gateway.conftest import ORIGIN
from tests.gateway.edge import Edge, error_of, running_edge
from tests.gateway.test_limits import address, until_counted
from tests.limiter.harness import running_limiter
from tests.ports import free_ports

ME, VERIFY, CONVERSATIONS = "/api/v1/auth/me", "/api/v1/auth/verify", "/api/v1/chat/conversations"
WRONG = (401, code_pb2.UNAUTHENTICATED, "CREDENTIALS_WRONG")
MISSING = (401, code_pb2.UNAUTHENTICATED, "IDENTITY_MISSING")
FORBIDDEN = (403, code_pb2.PERMISSION_DENIED, "ORIGIN_NOT_ALLOWED")


@pytest.fixture(scope="module")
async def auth(auth_database: ServiceDatabase, run_folder: Path) -> AsyncIterator[RunningAuth]:
    async with running_auth(auth_database, make_settings(auth_database, run_folder)) as running:
        yield running


def endpoints(services: dict[str, Service], auth: RunningAuth) -> dict[str, tuple[Address, ...]]:
    return endpoints_of(services) | {"auth": (Address.parse(auth.target),)}


@pytest.fixture(scope="module")
async def door(services: dict[str, Service], auth: RunningAuth) -> AsyncIterator[Edge]:
    async with running_edge(endpoints(services, auth), cors_allowed_origins=(ORIGIN,), jwks_refresh_seconds=1) as edge:
        await edge.until_answers("/health", 200)
        await edge.until_verifies({"authorization": f"Bearer {(await auth.register()).tokens.access_token}"})
        yield edge


@pytest.fixture
async def client(door: Edge) -> AsyncIterator[httpx2.AsyncClient]:
    async with door.client() as client:
        yield client


@pytest.fixture
async def person(auth: RunningAuth) -> Person:
    return await auth.register()


def basic(name: str, password: str = PASSWORD, *, scheme: str = "Basic") -> dict[str, str]:
    return {"authorization": f"{scheme} " + base64.b64encode(f"{name}:{password}".encode()).decode()}


async def test_basic_is_an_identity_like_any_other(client: httpx2.AsyncClient, person: Person, script: Script) -> None:
    assert (await client.get(ME, headers=basic(person.username))).json()["id"] == person.id
    verified = await client.post(VERIFY, json={}, headers=basic(person.email, scheme="BASIC"))
    assert verified.json()["valid"] is True
    script.answers("ListConversations", conversation_pb2.ListConversationsResponse())
    answer = await client.get(CONVERSATIONS, headers=basic(person.username))
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    passed_on = script.only_call("ListConversations").metadata["authorization"]
    assert passed_on.startswith("Bearer ")
    claims = jwt.decode(passed_on.removeprefix("Bearer "), options={"verify_signature": False})
    assert claims["sub"] == person.id
    assert PASSWORD not in str(script.only_call("ListConversations").metadata)


async def test_no_password_no_entrance(client: httpx2.AsyncClient, person: Person, script: Script) -> None:
    for headers in (basic(person.username, "wrong"), basic("nobody-at-all"), {"authorization": "Basic %%%"}):
        answer = await client.get(ME, headers=headers)
        assert error_of(answer) == WRONG
        assert answer.headers["x-request-id"]
        # No challenge: a browser would ask for a password, and keep it.
        assert "basic" not in answer.headers.get("www-authenticate", "").lower()
    assert error_of(await client.get(CONVERSATIONS, headers=basic(person.username, "wrong"))) == WRONG
    assert "ListConversations" not in script.calls


async def test_public_rpcs_do_not_look_at_it(client: httpx2.AsyncClient, person: Person) -> None:
    body = {"username": person.username, "password": PASSWORD}
    assert (await client.post("/api/v1/auth/login", json=body, headers=basic("nobody", "x"))).status_code == 200


async def test_native_grpc_and_grpc_web(door: Edge, client: httpx2.AsyncClient, person: Person) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        user = await stub.GetMe(auth_pb2.GetMeRequest(), metadata=tuple(basic(person.username).items()))
        assert user.id == person.id
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetMe(auth_pb2.GetMeRequest(), metadata=tuple(basic(person.username, "wrong").items()))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.details() == "Unknown user or wrong password."
    info = error_details_pb2.ErrorInfo()
    rpc_status.from_call(caught.value).details[0].Unpack(info)  # type: ignore[arg-type]
    assert info.reason == "CREDENTIALS_WRONG"
    web = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    path = "/parley.auth.v1.AuthService/GetMe"
    good = await client.post(path, content=b"\0\0\0\0\0", headers={**web, **basic(person.username)})
    assert b"grpc-status:0" in good.content
    bad = await client.post(path, content=b"\0\0\0\0\0", headers={**web, **basic(person.username, "wrong")})
    assert bad.headers.get("grpc-status") == "16" or b"grpc-status:16" in bad.content.replace(b" ", b"")


async def test_a_page_of_another_site_cannot_use_the_password_that_a_browser_keeps(
    client: httpx2.AsyncClient, person: Person, script: Script
) -> None:
    script.answers("CreateConversation", conversation_pb2.Conversation())
    headers = basic(person.username)
    evil = await client.post(CONVERSATIONS, json={}, headers={**headers, "origin": "https://evil.example"})
    assert error_of(evil) == FORBIDDEN
    assert "CreateConversation" not in script.calls
    for origin in ({}, {"origin": ORIGIN}, {"origin": f"http://127.0.0.1:{client.base_url.port}"}):
        assert (await client.post(CONVERSATIONS, json={}, headers={**headers, **origin})).status_code == 200


async def test_auth_that_is_away_is_not_the_callers_fault(services: dict[str, Service]) -> None:
    away = endpoints_of(services) | {"auth": (Address("127.0.0.1", free_ports(1)[0]),)}
    async with running_edge(away) as edge, edge.client() as client:
        answer = await client.get(CONVERSATIONS, headers=basic("somebody"))
        assert error_of(answer) == (503, code_pb2.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
        assert answer.headers["retry-after"] == "1"


async def test_each_can_be_switched_off(services: dict[str, Service], auth: RunningAuth, person: Person) -> None:
    settings = {"basic_auth_enabled": False, "cookie_auth_enabled": False, "cors_allowed_origins": (ORIGIN,)}
    async with running_edge(endpoints(services, auth), **settings) as edge, edge.client() as client:
        token = person.tokens.access_token
        await edge.until_verifies({"authorization": f"Bearer {token}"})
        assert error_of(await client.get(ME, headers=basic(person.username))) == MISSING
        cookie = {"cookie": f"session_token={token}", "origin": ORIGIN}
        assert error_of(await client.get(ME, headers=cookie)) == MISSING
        assert error_of(await client.post(VERIFY, json={}, headers=cookie)) == MISSING


@pytest.fixture
def cookie(person: Person) -> dict[str, str]:
    return {"cookie": f"session_token={person.tokens.access_token}"}


# What a page says of itself, made of the edge's own host and port.
ALLOWED: dict[str, Callable[[str], dict[str, str]]] = {
    "a listed origin": lambda _: {"origin": ORIGIN},
    "a listed origin on another site": lambda _: {"origin": ORIGIN, "sec-fetch-site": "cross-site"},
    "the edge's own": lambda own: {"origin": f"http://{own}"},
    "the edge's own, and the browser agrees": lambda own: {"origin": f"http://{own}", "sec-fetch-site": "same-origin"},
    "behind a proxy that ends TLS": lambda own: {"origin": f"https://{own}"},
    "no origin, but the browser's word": lambda _: {"sec-fetch-site": "same-origin"},
}
REFUSED: dict[str, Callable[[str], dict[str, str]]] = {
    "nothing": lambda _: {},
    "another origin": lambda _: {"origin": "https://evil.example"},
    "a sandboxed page": lambda _: {"origin": "null"},
    "another port": lambda own: {"origin": f"http://{own}0"},
    "a name that begins alike": lambda own: {"origin": f"http://{own}.evil.example"},
    "a listed one with a path": lambda _: {"origin": f"{ORIGIN}/"},
    "a listed one in part": lambda _: {"origin": f"{ORIGIN}.evil.example"},
    "our own, but the browser says otherwise": lambda own: {"origin": f"http://{own}", "sec-fetch-site": "same-site"},
    "another site, without an origin": lambda _: {"sec-fetch-site": "cross-site"},
    "an address bar": lambda _: {"sec-fetch-site": "none"},
}
WRITES = [
    ("POST", CONVERSATIONS),
    ("PATCH", f"{CONVERSATIONS}/01990000-0000-7000-8000-00000000000a"),
    ("DELETE", f"{CONVERSATIONS}/01990000-0000-7000-8000-00000000000a"),
    ("POST", "/api/v1/chat/completions"),
]


@pytest.mark.parametrize("page", ALLOWED)
async def test_a_cookie_writes_from_pages_that_may(
    client: httpx2.AsyncClient, cookie: dict[str, str], script: Script, page: str
) -> None:
    script.answers("CreateConversation", conversation_pb2.Conversation())
    script.answers("UpdateConversation", conversation_pb2.Conversation())
    script.answers("DeleteConversation", conversation_pb2.DeleteConversationResponse())
    script.answers("CreateCompletion", chat_pb2.Completion())
    headers = {**cookie, **ALLOWED[page](f"127.0.0.1:{client.base_url.port}")}
    for method, path in WRITES:
        answer = await client.request(method, path, content=b"{}", headers=headers)
        assert answer.status_code == 200, (method, path, answer.text)
    assert "cookie" not in script.only_call("CreateConversation").metadata


@pytest.mark.parametrize("page", REFUSED)
async def test_a_cookie_does_not_write_from_others(
    client: httpx2.AsyncClient, cookie: dict[str, str], script: Script, page: str
) -> None:
    headers = {**cookie, **REFUSED[page](f"127.0.0.1:{client.base_url.port}")}
    for method, path in WRITES:
        answer = await client.request(method, path, content=b"{}", headers=headers)
        assert error_of(answer) == FORBIDDEN, (method, path)
    assert set(script.calls) <= {"GetJwks"}


async def test_an_open_edge_takes_cookies_from_its_own_pages_only(
    services: dict[str, Service], auth: RunningAuth, cookie: dict[str, str], script: Script
) -> None:
    script.answers("CreateConversation", conversation_pb2.Conversation())
    async with running_edge(endpoints(services, auth), cors_allowed_origins=("*",)) as edge, edge.client() as client:
        await edge.until_answers("/health", 200)
        listed = await client.post(CONVERSATIONS, json={}, headers={**cookie, "origin": ORIGIN})
        assert error_of(listed) == FORBIDDEN
        await edge.until_verifies({"authorization": cookie["cookie"].replace("session_token=", "Bearer ")})
        own = await client.post(CONVERSATIONS, json={}, headers={**cookie, "origin": edge.url})
        assert own.status_code == 200


async def test_over_https_a_page_without_it_is_another(
    services: dict[str, Service], auth: RunningAuth, cookie: dict[str, str]
) -> None:
    async with running_edge(endpoints(services, auth), edge_proxies=1) as edge, edge.client() as client:
        await edge.until_answers("/health", 200)
        forwarded = {**cookie, "x-forwarded-proto": "https", "origin": edge.url}
        assert error_of(await client.post(CONVERSATIONS, json={}, headers=forwarded)) == FORBIDDEN


@pytest.fixture
async def front_end() -> AsyncIterator[FrontEnd]:
    async with running_front_end() as served:
        yield served


@pytest.fixture
async def federated_auth(auth_database: ServiceDatabase, front_end: FrontEnd, tmp_path: Path) -> AsyncIterator[RunningAuth]:
    """An auth that knows a Better Auth front end."""
    (tmp_path / "secret").write_text(SECRET)
    session = {"kind": "better_auth_session", "issuer": "app", "secret_file": str(tmp_path / "secret")}
    published = {"kind": "jwks", "issuer": ISSUER, "jwks_url": front_end.url, "audiences": [AUDIENCE]}
    path = tmp_path / "issuers.json"
    path.write_text(json.dumps([{**session, "accounts": "create"}, {**published, "accounts": "create"}]))
    async with running_auth(auth_database, make_settings(auth_database, tmp_path, external_issuers_file=path)) as auth:
        yield auth


@pytest.fixture
async def federated(services: dict[str, Service], federated_auth: RunningAuth, person: Person) -> AsyncIterator[Edge]:
    """An edge that knows it too."""
    names = ("session_token", "better-auth.session_data")
    settings = {"external_tokens_enabled": True, "session_cookies": names, "cors_allowed_origins": (ORIGIN,)}
    async with running_edge(endpoints(services, federated_auth), **settings) as edge:
        await edge.until_answers("/health", 200)
        await edge.until_verifies({"authorization": f"Bearer {person.tokens.access_token}"})
        yield edge


async def test_a_better_auth_front_end_is_let_in(
    federated: Edge, front_end: FrontEnd, person: Person, script: Script
) -> None:
    script.answers("CreateConversation", conversation_pb2.Conversation())
    email = f"{new_name()}@example.com"
    bearer = {"authorization": front_end.sign(front_end.claims(email=email, email_verified=True))}
    cached = front_end.session(email=f"{new_name()}@example.com").removeprefix("Bearer ")
    cookie = {"cookie": f"better-auth.session_token=opaque.value; better-auth.session_data={cached}"}
    async with federated.client() as client:
        assert (await client.get(ME, headers=bearer)).json()["email"] == email
        mine = await client.get(ME, headers=cookie)
        assert mine.status_code == 200
        written = await client.post(CONVERSATIONS, json={}, headers={**cookie, "origin": ORIGIN})
        assert written.status_code == 200
        passed_on = script.only_call("CreateConversation").metadata
        claims = jwt.decode(passed_on["authorization"].removeprefix("Bearer "), options={"verify_signature": False})
        assert (claims["iss"], claims["sub"]) == ("parley", mine.json()["id"])
        assert cached not in str(passed_on)
        assert error_of(await client.post(CONVERSATIONS, json={}, headers=cookie)) == FORBIDDEN
        # Our own are verified at the door as ever, without asking anybody.
        ours = {"authorization": f"Bearer {person.tokens.access_token}"}
        assert (await client.get(ME, headers=ours)).status_code == 200


async def test_forgeries_of_every_kind_are_refused(federated: Edge, front_end: FrontEnd) -> None:
    claims = front_end.claims(email="a@example.com", email_verified=True)
    invalid = (401, code_pb2.UNAUTHENTICATED, "TOKEN_INVALID")
    other = Ed25519PrivateKey.generate()
    as_ours = {**claims, "iss": "parley", "aud": "parley", "sid": "s", "roles": ["admin"]}
    forgeries = {
        "none": jwt.encode(claims, "", "none"),
        "the public key as a secret": forged(claims, raw(front_end), {"alg": "HS256", "kid": "one"}).removeprefix("Bearer "),
        "another key": jwt.encode(claims, other, "EdDSA", {"kid": "one"}),
        "their key for our token": jwt.encode(as_ours, front_end.keys["one"], "EdDSA", {"kid": "one"}),
        "their secret for our token": jwt.encode(as_ours, SECRET, "HS256"),
        "none for our token": jwt.encode(as_ours, "", "none"),
        "two issuers": jwt.encode({**as_ours, "x": {"iss": "parley"}, "iss": ISSUER}, other, "EdDSA", {"kid": "one"}),
    }
    async with federated.client() as client:
        for name, token in forgeries.items():
            answer = await client.get(ME, headers={"authorization": f"Bearer {token}"})
            assert error_of(answer) == invalid, name
        expired = front_end.sign({**claims, "exp": claims["iat"] - 60})
        answer = await client.get(ME, headers={"authorization": expired})
        assert error_of(answer) == (401, code_pb2.UNAUTHENTICATED, "TOKEN_EXPIRED")


async def test_behind_a_proxy_who_guesses_is_slowed_where_they_are(
    services: dict[str, Service], auth_database: ServiceDatabase, run_folder: Path
) -> None:
    settings = make_settings(auth_database, run_folder, edge_proxies=1, sign_in_free_failures_per_address=2)
    async with (
        running_auth(auth_database, settings) as proxied,
        running_edge(endpoints(services, proxied), edge_proxies=1, jwks_refresh_seconds=1) as edge,
        edge.client() as client,
    ):
        person = await proxied.register()
        await edge.until_verifies({"authorization": f"Bearer {person.tokens.access_token}"})
        for _ in range(4):
            wrong = {**basic(new_name()), "x-forwarded-for": "198.51.100.66, 203.0.113.9"}
            await client.get(ME, headers=wrong)
        told = await proxied.execute("select count(*) from audit_events where address = '203.0.113.9'")
        assert told[0][0] >= 3
        elsewhere = {**basic(person.username), "x-forwarded-for": "203.0.113.10"}
        assert (await client.get(ME, headers=elsewhere)).status_code == 200


@pytest.fixture
async def limited(
    services: dict[str, Service], federated_auth: RunningAuth, redis_url: str, person: Person
) -> AsyncIterator[Edge]:
    """Behind a proxy, with a limiter that lets an address show four credentials a minute that are traded."""
    settings = {"external_tokens_enabled": True, "edge_proxies": 1, "limits_enabled": True}
    async with running_limiter(redis_url=redis_url, limit_exchange="4/minute", limit_general="50/minute") as limiter:
        where = endpoints(services, federated_auth) | {"limiter": (Address("127.0.0.1", limiter.port),)}
        async with running_edge(where, **settings) as edge:
            await edge.until_verifies({"authorization": f"Bearer {person.tokens.access_token}"})
            await until_counted(edge)
            yield edge


async def statuses(client: httpx2.AsyncClient, wanted: int, headers: dict[str, str]) -> None:
    """Every face that asks for an identity answers with a status."""
    for method, path in (("GET", ME), ("GET", "/health"), ("GET", "/api/v1/health"), ("POST", "/mcp"), *WRITES):
        answer = await client.request(method, path, content=b"{}" if method != "GET" else None, headers=headers)
        assert answer.status_code == wanted, (method, path, answer.text)


async def test_what_is_traded_is_counted_by_address_before_auth_is_asked(
    limited: Edge, front_end: FrontEnd, person: Person
) -> None:
    place = address()
    forged = jwt.encode(front_end.claims(), Ed25519PrivateKey.generate(), "EdDSA", {"kid": "one"})
    foreign = {"authorization": f"Bearer {forged}"}
    shown = [basic(new_name()), basic(person.username, "wrong"), foreign, basic(person.username)]
    async with limited.client() as client:
        for headers, wanted in zip(shown, (401, 401, 401, 200), strict=True):
            assert (await client.get(ME, headers={**headers, **place})).status_code == wanted
        for headers in shown:
            refused = await client.get(ME, headers={**headers, **place})
            assert error_of(refused) == (429, code_pb2.RESOURCE_EXHAUSTED, "RATE_LIMITED")
            assert refused.json()["details"][0]["metadata"]["limit_class"] == "exchange"
            assert refused.headers["ratelimit-limit"] == "4"
            await statuses(client, 429, {**headers, **place})
        web = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", **shown[0], **place}
        answer = await client.post("/parley.auth.v1.AuthService/GetMe", content=b"\0\0\0\0\0", headers=web)
        assert answer.headers["grpc-status"] == "8"
        # Who is elsewhere has calls of their own.
        assert (await client.get(ME, headers={**basic(person.username), **address()})).status_code == 200
    async with grpc.aio.insecure_channel(f"127.0.0.1:{limited.port}") as channel:
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetMe(auth_pb2.GetMeRequest(), metadata=tuple({**shown[0], **place}.items()))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_only_what_is_traded_is_counted_by_address(limited: Edge, person: Person) -> None:
    place = address()
    ours = {"authorization": f"Bearer {person.tokens.access_token}", **place}
    as_ours = jwt.encode({"iss": "parley", "sub": person.id}, Ed25519PrivateKey.generate(), "EdDSA")
    login = {"username": person.username, "password": PASSWORD}
    async with limited.client() as client:
        for _ in range(6):
            assert (await client.get(ME, headers=ours)).status_code == 200
            assert (await client.get(ME, headers=place)).status_code == 401
            for token in (as_ours, "none-of-anybody"):
                forged = {"authorization": f"Bearer {token}", **place}
                assert (await client.get(ME, headers=forged)).status_code == 401
            assert (await client.get("/health", headers=place)).status_code == 200
            public = await client.post("/api/v1/auth/login", json=login, headers={**basic("nobody"), **place})
            assert public.status_code == 200
        for _ in range(4):
            assert (await client.get(ME, headers={**basic(person.username), **place})).status_code == 200
        assert (await client.get(ME, headers={**basic(person.username), **place})).status_code == 429
        assert (await client.get(ME, headers=ours)).status_code == 200


async def test_who_is_let_in_reads_of_their_own_limit_alone(limited: Edge, auth: RunningAuth) -> None:
    person = await auth.register()
    async with limited.client() as client:
        for left in ("49", "48"):
            told = (await client.get(ME, headers={**basic(person.username), **address()})).headers
            assert [told[f"ratelimit-{name}"] for name in ("limit", "remaining", "policy")] == ["50", left, "50;w=60"]
