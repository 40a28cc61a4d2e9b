"""Every access rule against every kind of identity, as one table."""

import asyncio
import base64
import json
import time
import uuid
from collections.abc import Callable

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.issuer import Issuer, Metadata
from tests.runtime import probe
from tests.runtime.conftest import Serve
from tests.runtime.status import refused

USER = str(uuid.uuid4())
NEVER = ("TOKEN_INVALID",) * 4


def _bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def _as_service(token: str) -> Metadata:
    return (("x-parley-service-authorization", f"Bearer {token}"),)


def _claims(**changes: object) -> dict[str, object]:
    now = int(time.time())
    claims: dict[str, object] = {"iss": "parley", "aud": "parley", "sub": USER, "sid": str(uuid.uuid4()), "iat": now}
    return {**claims, "exp": now + 300, "roles": ["user", "admin"], **changes}


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _unsigned(issuer: Issuer) -> Metadata:
    return _bearer(f"{_part({'alg': 'none', 'kid': issuer.key_id})}.{_part(_claims())}.")


def _signed_with_public_key(issuer: Issuer) -> Metadata:
    public = issuer.key.public_key()
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return _bearer(jwt.encode(_claims(), raw, algorithm="HS256", headers={"kid": issuer.key_id}))


def _signed_by_stranger(issuer: Issuer) -> Metadata:
    stranger = Ed25519PrivateKey.generate()
    return _bearer(jwt.encode(_claims(), stranger, algorithm="EdDSA", headers={"kid": issuer.key_id}))


def _altered(issuer: Issuer) -> Metadata:
    header, _, signature = issuer.user_token(USER).split(".")
    return _bearer(f"{header}.{_part(_claims())}.{signature}")


def _ended(issuer: Issuer) -> Metadata:
    session_id = str(uuid.uuid4())
    issuer.ended.add(session_id)
    return _bearer(issuer.user_token(USER, session_id=session_id))


def _unknown_currency(issuer: Issuer) -> Metadata:
    issuer.current = False
    return issuer.as_user(USER)


def _without(issuer: Issuer, claim: str) -> Metadata:
    claims = {name: value for name, value in _claims().items() if name != claim}
    return _bearer(jwt.encode(claims, issuer.key, algorithm="EdDSA", headers={"kid": issuer.key_id}))


Identity = Callable[[Issuer], Metadata]
# What each rule answers, after the public one, which never looks: "" lets the call through, else the error's reason.
TABLE: dict[str, tuple[Identity, tuple[str, str, str, str]]] = {
    # Its metadata, and the verdicts for users, admins, services and workloads.
    "nobody": (lambda _: (), ("IDENTITY_MISSING", "IDENTITY_MISSING", "IDENTITY_MISSING", "")),
    "a user": (lambda i: i.as_user(USER), ("", "ACCESS_DENIED", "ACCESS_DENIED", "")),
    "bearer in any case": (
        lambda i: (("authorization", f"bEARER {i.user_token(USER)}"),),
        ("", "ACCESS_DENIED", "ACCESS_DENIED", ""),
    ),
    "an administrator": (
        lambda i: _bearer(i.user_token(USER, roles=("user", "admin"))),
        ("", "", "ACCESS_DENIED", ""),
    ),
    "a service": (lambda i: i.as_service("chat", audience="probe"), ("ACCESS_DENIED", "ACCESS_DENIED", "", "")),
    "a service for a user": (lambda i: i.as_service("chat", audience="probe", user_id=USER), ("", "ACCESS_DENIED", "", "")),
    "a service with the user's own token": (
        lambda i: (*i.as_service("chat", audience="probe"), *i.as_user(USER)),
        ("", "ACCESS_DENIED", "", ""),
    ),
    "an on-behalf token alone": (
        lambda i: _bearer(i.on_behalf_token(USER, service="chat", audience="probe")),
        ("", "ACCESS_DENIED", "", ""),
    ),
    "an on-behalf token of another service": (
        lambda i: (
            *i.as_service("sms", audience="probe"),
            *_bearer(i.on_behalf_token(USER, service="chat", audience="probe")),
        ),
        NEVER,
    ),
    "an on-behalf token for another service": (
        lambda i: _bearer(i.on_behalf_token(USER, service="chat", audience="memory")),
        NEVER,
    ),
    "a service token for another service": (lambda i: i.as_service("chat", audience="memory"), NEVER),
    "a service token where a user's belongs": (lambda i: _bearer(i.service_token("chat", audience="probe")), NEVER),
    "a user's token where a service's belongs": (lambda i: _as_service(i.user_token(USER)), NEVER),
    "a good user, a bad service": (lambda i: (*i.as_user(USER), *_as_service("x.y.z")), NEVER),
    "an expired token": (
        lambda i: _bearer(i.sign({"aud": "parley", "sub": USER, "sid": "s", "roles": ["user"]}, expires_in=-1)),
        ("TOKEN_EXPIRED",) * 4,
    ),
    "a stranger's key under our key id": (_signed_by_stranger, NEVER),
    "an unknown key id": (lambda i: _bearer(i.sign(_claims(), kid="another")), NEVER),
    "no key id": (lambda i: _bearer(jwt.encode(_claims(), i.key, algorithm="EdDSA")), NEVER),
    "alg none": (_unsigned, NEVER),
    "HS256 with the public key": (_signed_with_public_key, NEVER),
    "altered claims": (_altered, NEVER),
    "another issuer": (lambda i: _bearer(i.sign(_claims(iss="mallory"))), NEVER),
    "another audience": (lambda i: _bearer(i.sign(_claims(aud="elsewhere"))), NEVER),
    "two audiences": (lambda i: _bearer(i.sign(_claims(aud=["parley", "probe"]))), NEVER),
    "no audience": (lambda i: _without(i, "aud"), NEVER),
    "no end": (lambda i: _without(i, "exp"), NEVER),
    "no subject": (lambda i: _without(i, "sub"), NEVER),
    "no session": (lambda i: _without(i, "sid"), NEVER),
    "not begun yet": (lambda i: _bearer(i.sign(_claims(nbf=int(time.time()) + 300))), NEVER),
    "an ended session": (_ended, ("SESSION_ENDED",) * 4),
    "a feed that is not current": (_unknown_currency, ("IDENTITY_UNAVAILABLE",) * 4),
    "rubbish": (lambda _: _bearer("rubbish"), NEVER),
    "rubbish in three parts": (lambda _: _bearer("a.b.c"), NEVER),
    "an empty token": (lambda _: (("authorization", "Bearer "),), NEVER),
    "another scheme": (lambda _: (("authorization", "Basic YTpi"),), NEVER),
    "an endless token": (lambda _: _bearer("a" * 5000), NEVER),
}
CODES = {
    "IDENTITY_MISSING": grpc.StatusCode.UNAUTHENTICATED,
    "TOKEN_INVALID": grpc.StatusCode.UNAUTHENTICATED,
    "TOKEN_EXPIRED": grpc.StatusCode.UNAUTHENTICATED,
    "SESSION_ENDED": grpc.StatusCode.UNAUTHENTICATED,
    "ACCESS_DENIED": grpc.StatusCode.PERMISSION_DENIED,
    "IDENTITY_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
}


@pytest.mark.parametrize("identity", TABLE)
async def test_each_rule_lets_in_whom_it_names(serve: Serve, identity: str) -> None:
    client = await serve()
    make, verdicts = TABLE[identity]
    metadata = make(client.issuer)
    expected = dict(zip(probe.UNARY, ("", *verdicts), strict=True))
    for method, reason in expected.items():
        call = client.call(method, probe.request(text="hello"), metadata)
        if not reason:
            assert (await call).text == "hello", method
            continue
        error = await refused(call)
        assert (error.code, error.info.reason) == (CODES[reason], reason), method
        assert (error.retry_delay is not None) == (reason == "IDENTITY_UNAVAILABLE")


async def test_streams_are_held_to_the_same_rule(serve: Serve) -> None:
    client = await serve()
    assert (await refused(client.follow(probe.request()))).info.reason == "IDENTITY_MISSING"
    assert len([one async for one in client.follow(probe.request(), client.issuer.as_user(USER))]) == 3


async def test_handlers_see_who_calls(serve: Serve) -> None:
    client = await serve(probe.Probe(probe.caller_as_reply))
    seen = {
        "user": client.issuer.as_user(USER),
        "service": client.issuer.as_service("chat", audience="probe", user_id=USER),
    }
    answers = {name: (await client.call("ForUsers", probe.request(), metadata)).text for name, metadata in seen.items()}
    assert answers == {"user": f"{USER}/None/user", "service": f"{USER}/chat/"}


async def test_a_public_method_sees_nobody_even_with_a_good_token(serve: Serve) -> None:
    client = await serve(probe.Probe(probe.caller_as_reply))
    answer = await client.call("ForAnybody", probe.request(), client.issuer.as_user(USER))
    assert answer.text == "None/None/"


async def test_a_remembered_token_ends_with_its_session_and_with_its_time(serve: Serve) -> None:
    client = await serve()
    session_id = str(uuid.uuid4())
    claims = {"aud": "parley", "sub": USER, "sid": session_id, "roles": ["user"]}
    metadata, brief = _bearer(client.issuer.sign(claims)), _bearer(client.issuer.sign(claims, expires_in=2))
    for one in (metadata, brief):
        await client.call("ForUsers", probe.request(), one)
    await asyncio.sleep(2.1)
    assert (await refused(client.call("ForUsers", probe.request(), brief))).info.reason == "TOKEN_EXPIRED"
    client.issuer.ended.add(session_id)
    assert (await refused(client.call("ForUsers", probe.request(), metadata))).info.reason == "SESSION_ENDED"
