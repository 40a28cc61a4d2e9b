"""Tokens of other issuers at the door: whose keys, which algorithms, whose account; and everything that is no such token."""

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import ECAlgorithm
from pydantic import ValidationError

from services.auth.door import published_keys
from services.auth.settings import AuthSettings
from services.runtime.errors import Unauthenticated, Unavailable
from tests.auth.front_end import AUDIENCE, ISSUER, SECRET, FrontEnd, forged, pem, raw, running_front_end
from tests.auth.harness import RunningAuth, make_settings, new_name
from tests.auth.test_door import reason, session_of, token

StartAuth = Callable[..., Awaitable[RunningAuth]]
INVALID, UNKNOWN = (401, "TOKEN_INVALID"), (403, "EXTERNAL_IDENTITY_UNKNOWN")


@pytest.fixture
async def front_end() -> AsyncIterator[FrontEnd]:
    async with running_front_end() as served:
        yield served


@pytest.fixture
def issuers_file(front_end: FrontEnd, tmp_path: Path) -> Callable[..., Path]:
    """The file of both kinds, with what becomes of who is not linked."""

    def write(accounts: str = "refuse", **jwks: Any) -> Path:
        (tmp_path / "secret").write_text(SECRET + "\n")
        published = {"kind": "jwks", "issuer": ISSUER, "jwks_url": front_end.url, "audiences": [AUDIENCE], **jwks}
        session = {"kind": "better_auth_session", "issuer": "app", "secret_file": str(tmp_path / "secret")}
        path = tmp_path / f"issuers-{uuid.uuid4().hex}.json"
        path.write_text(json.dumps([{**published, "accounts": accounts}, {**session, "accounts": accounts}]))
        return path

    return write


@pytest.fixture
async def creating(start_auth: StartAuth, issuers_file: Callable[..., Path]) -> RunningAuth:
    return await start_auth(external_issuers_file=issuers_file("create"))


def verified(email: str) -> dict[str, Any]:
    return {"email": email, "email_verified": True}


async def test_nothing_is_taken_unless_it_was_configured(auth: RunningAuth, front_end: FrontEnd) -> None:
    for authorization in (front_end.sign(front_end.claims()), front_end.session()):
        assert await reason(auth, authorization) == INVALID


async def test_first_use_creates_an_account_and_later_ones_find_it(creating: RunningAuth, front_end: FrontEnd) -> None:
    claims = front_end.claims(**verified(f"{new_name()}@example.com"))
    first = await token(creating, front_end.sign(claims))
    user = await creating.me(first)
    assert user.email == claims["email"]
    assert not user.is_admin
    again = await token(creating, front_end.sign({**claims, "iat": claims["iat"] + 1}))
    assert (await creating.me(again)).id == user.id
    assert session_of(again) == session_of(first)


async def test_first_uses_at_once_create_one_account(creating: RunningAuth, front_end: FrontEnd) -> None:
    claims = front_end.claims(**verified(f"{new_name()}@example.com"))
    tokens = await asyncio.gather(*(token(creating, front_end.sign(claims)) for _ in range(8)))
    assert len({session_of(one) for one in tokens}) == 1


async def test_a_better_auth_session_is_an_identity(creating: RunningAuth, front_end: FrontEnd) -> None:
    email = f"{new_name()}@example.com"
    first = await token(creating, front_end.session(id="u1" + email, email=email))
    assert (await creating.me(first)).email == email


async def test_by_default_nobody_is_let_in_who_was_not_linked(
    start_auth: StartAuth, issuers_file: Callable[..., Path], front_end: FrontEnd
) -> None:
    auth = await start_auth(external_issuers_file=issuers_file())
    person = await auth.register()
    claims = front_end.claims(**verified(person.email))
    assert await reason(auth, front_end.sign(claims)) == UNKNOWN
    # What an operator does for somebody in person.
    await auth.execute("insert into external_identities values (%s, %s, %s)", ISSUER, claims["sub"], person.id)
    assert (await auth.me(await token(auth, front_end.sign(claims)))).id == person.id


async def test_a_verified_address_links_where_that_is_chosen(
    start_auth: StartAuth, issuers_file: Callable[..., Path], front_end: FrontEnd
) -> None:
    auth = await start_auth(external_issuers_file=issuers_file("link"))
    person = await auth.register()
    for email in ({"email": person.email}, {"email": person.email, "email_verified": "true"}, {"email_verified": True}):
        assert await reason(auth, front_end.sign(front_end.claims(**email))) == UNKNOWN
    assert await reason(auth, front_end.session(email=person.email, emailVerified=False)) == UNKNOWN
    assert await reason(auth, front_end.sign(front_end.claims(**verified("nobody@example.com")))) == UNKNOWN
    linked = await token(auth, front_end.sign(front_end.claims(**verified(person.email.upper()))))
    assert (await auth.me(linked)).id == person.id


async def test_an_account_is_not_created_over_another(creating: RunningAuth, front_end: FrontEnd) -> None:
    person = await creating.register()
    assert await reason(creating, front_end.sign(front_end.claims(**verified(person.email)))) == UNKNOWN


async def test_an_address_that_is_taken_costs_no_hash(
    creating: RunningAuth, front_end: FrontEnd, hashings: list[str]
) -> None:
    person = await creating.register()
    authorization = front_end.sign(front_end.claims(**verified(person.email)))
    hashings.clear()
    assert await reason(creating, authorization) == UNKNOWN
    assert hashings == []
    await creating.login(person.username)
    assert hashings == ["verify"]


async def test_a_deactivated_user_is_refused_at_once(creating: RunningAuth, front_end: FrontEnd) -> None:
    authorization = front_end.sign(front_end.claims(**verified(f"{new_name()}@example.com")))
    user = await creating.me(await token(creating, authorization))
    await creating.execute("update users set is_active = false where id = %s", user.id)
    assert await reason(creating, authorization) == (403, "USER_INACTIVE")


async def test_a_token_of_ours_does_not_outlive_theirs(creating: RunningAuth, front_end: FrontEnd) -> None:
    claims = front_end.claims(**verified(f"{new_name()}@example.com"), exp=int(time.time()) + 30)
    ours = jwt.decode(await token(creating, front_end.sign(claims)), options={"verify_signature": False})
    assert ours["exp"] <= claims["exp"]
    late = front_end.claims(**verified(f"{new_name()}@example.com"), exp=int(time.time()) - 10)
    assert await reason(creating, front_end.sign(late)) == (401, "TOKEN_EXPIRED")


async def test_algorithms_cannot_be_confused(creating: RunningAuth, front_end: FrontEnd) -> None:
    claims = front_end.claims(**verified(f"{new_name()}@example.com"))
    without_issuer = {name: value for name, value in claims.items() if name != "iss"}
    user = {"user": {"id": "x", "email": claims["email"], "emailVerified": True}}
    curve = ec.generate_private_key(ec.SECP256R1())
    front_end.extra_keys = [
        {**json.loads(ECAlgorithm.to_jwk(curve.public_key())), "kid": "curve"},
        {"kty": "oct", "k": base64.urlsafe_b64encode(b"x" * 32).decode(), "kid": "shared", "alg": "HS256"},
    ]
    hs256 = {"alg": "HS256", "typ": "JWT", "kid": "one"}
    attempts = {
        "none": "Bearer " + jwt.encode(claims, "", "none", {"kid": "one"}),
        "none, for a session": "Bearer " + jwt.encode({**without_issuer, **user}, "", "none"),
        "the public key as a secret, raw": forged(claims, raw(front_end), hs256),
        "the public key as a secret, PEM": forged(claims, pem(front_end), hs256),
        "a published symmetric key": forged(claims, b"x" * 32, {**hs256, "kid": "shared"}),
        "the session secret for the issuer": forged(claims, SECRET.encode(), hs256),
        "the issuer's key for a session": "Bearer "
        + jwt.encode({**without_issuer, **user}, front_end.keys["one"], "EdDSA", {"kid": "one"}),
        "a session with an empty secret": forged({**without_issuer, **user}, b"", {"alg": "HS256"}),
        "an algorithm that was not listed": "Bearer " + jwt.encode(claims, curve, "ES256", {"kid": "curve"}),
        "an algorithm that the key is not for": forged(claims, b"x", {"alg": "EdDSA", "typ": "JWT", "kid": "curve"}),
        "a key of its own": "Bearer " + jwt.encode(claims, Ed25519PrivateKey.generate(), "EdDSA", {"kid": "one"}),
        "a key in its header": "Bearer "
        + jwt.encode(claims, curve, "ES256", {"kid": "one", "jwk": json.loads(ECAlgorithm.to_jwk(curve.public_key()))}),
        "no key id": "Bearer " + jwt.encode(claims, front_end.keys["one"], "EdDSA"),
    }
    for name, authorization in attempts.items():
        assert await reason(creating, authorization) == INVALID, name
    assert await reason(creating, front_end.session(secret=SECRET[:-1])) == INVALID


async def test_a_key_of_another_kind_is_a_token_that_is_not_valid(
    start_auth: StartAuth, issuers_file: Callable[..., Path], front_end: FrontEnd
) -> None:
    auth = await start_auth(external_issuers_file=issuers_file("create", algorithms=["EdDSA", "ES256", "RS256"]))
    claims = front_end.claims(**verified(f"{new_name()}@example.com"))
    for algorithm in ("ES256", "RS256"):
        assert await reason(auth, forged(claims, b"x", {"alg": algorithm, "typ": "JWT", "kid": "one"})) == INVALID


async def test_claims_that_do_not_fit(creating: RunningAuth, front_end: FrontEnd) -> None:
    whole = front_end.claims(**verified(f"{new_name()}@example.com"))
    changes: dict[str, dict[str, Any]] = {
        "another audience": {"aud": "https://elsewhere"},
        "another issuer": {"iss": "https://elsewhere"},
        "our name": {"iss": "parley"},
        "no subject": {"sub": ""},
        "a subject of another type": {"sub": 7},
        "a long subject": {"sub": "x" * 256},
        "a subject with a control character": {"sub": "x\n"},
        "not yet": {"nbf": int(time.time()) + 600},
    }
    for name, change in changes.items():
        assert await reason(creating, front_end.sign({**whole, **change})) == INVALID, name
    for missing in ("exp", "aud"):
        claims = {key: value for key, value in whole.items() if key != missing}
        assert await reason(creating, front_end.sign(claims)) == INVALID, missing
    deep = base64.urlsafe_b64encode(b"[" * 6_000).decode().rstrip("=")
    for rubbish in (f"Bearer e30.{deep[:7_000]}.x", "Bearer a.b.c", "Bearer " + "x" * 9_000, "Bearer ..", "Bearer"):
        assert await reason(creating, rubbish) in {INVALID, (401, "IDENTITY_MISSING")}, rubbish
    assert await reason(creating, front_end.session(id="")) == INVALID


async def test_keys_rotate_and_an_old_one_ends(front_end: FrontEnd) -> None:
    keys = published_keys.PublishedKeys(front_end.url, least_seconds_between_fetches=0.05)
    await keys.key("one")
    front_end.keys["two"] = Ed25519PrivateKey.generate()
    await asyncio.sleep(0.1)
    await keys.key("two")
    del front_end.keys["one"]
    front_end.keys["three"] = Ed25519PrivateKey.generate()
    await asyncio.sleep(0.1)
    await keys.key("three")
    with pytest.raises(Unauthenticated):
        await keys.key("one")


async def test_made_up_key_ids_are_no_load_on_the_issuer(creating: RunningAuth, front_end: FrontEnd) -> None:
    await token(creating, front_end.sign(front_end.claims(**verified(f"{new_name()}@example.com"))))
    for index in range(20):
        assert await reason(creating, front_end.sign(front_end.claims(), made_up=f"k{index}")) == INVALID
    assert front_end.fetches <= 2


async def test_an_issuer_that_is_away_is_believed_by_the_keys_at_hand(front_end: FrontEnd) -> None:
    keys = published_keys.PublishedKeys(front_end.url, least_seconds_between_fetches=0.05)
    await keys.key("one")
    front_end.is_away = True
    await asyncio.sleep(0.1)
    await keys.key("one")


@pytest.mark.parametrize("body", [b"[]", b"null", b"<html>", b'{"keys": []}', b"[" * 20_000])
async def test_what_is_no_key_set_leaves_the_keys_at_hand(front_end: FrontEnd, body: bytes) -> None:
    keys = published_keys.PublishedKeys(front_end.url, least_seconds_between_fetches=0)
    await keys.key("one")
    front_end.body = body
    with pytest.raises(Unavailable):
        await keys.key("two")
    await keys.key("one")


async def test_a_set_that_is_too_long_is_not_read(front_end: FrontEnd) -> None:
    front_end.pieces = 3
    front_end.body = front_end.key_set() + b" " * 65_536
    with pytest.raises(Unavailable):
        await published_keys.PublishedKeys(front_end.url).key("one")


async def test_keys_that_come_in_pieces_are_read_to_their_end(creating: RunningAuth, front_end: FrontEnd) -> None:
    front_end.pieces = 3
    authorization = front_end.sign(front_end.claims(**verified(f"{new_name()}@example.com")))
    assert await token(creating, authorization)


async def test_a_caller_who_leaves_takes_the_keys_from_nobody(front_end: FrontEnd) -> None:
    keys = published_keys.PublishedKeys(front_end.url)
    front_end.may_answer.clear()
    leaving = asyncio.create_task(keys.key("one"))
    await front_end.was_asked.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    front_end.may_answer.set()
    await keys.key("one")
    assert front_end.fetches == 1


async def test_an_issuer_that_was_never_there_is_not_the_callers_fault(
    start_auth: StartAuth, issuers_file: Callable[..., Path], front_end: FrontEnd, unused_port: int
) -> None:
    path = issuers_file("create", jwks_url=f"http://127.0.0.1:{unused_port}/jwks")
    auth = await start_auth(external_issuers_file=path)
    assert await reason(auth, front_end.sign(front_end.claims())) == (503, "IDENTITY_UNAVAILABLE")


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "{}",
        '[{"kind": "jwks"}]',
        '[{"kind": "jwks", "issuer": "a", "jwks_url": "ftp://a", "audiences": ["a"]}]',
        '[{"kind": "jwks", "issuer": "a", "jwks_url": "https://a", "audiences": []}]',
        '[{"kind": "jwks", "issuer": "a", "jwks_url": "https://a", "audiences": ["a"], "algorithms": ["HS256"]}]',
        '[{"kind": "jwks", "issuer": "a", "jwks_url": "https://a", "audiences": ["a"], "algorithms": ["none"]}]',
        '[{"kind": "better_auth_session", "issuer": "a", "secret_file": "/no/such/file"}]',
        '[{"kind": "better_auth_session", "issuer": "a", "secret_file": "SHORT"}]',
    ],
)
def test_a_file_that_cannot_be_right_keeps_auth_from_starting(auth_database: Any, tmp_path: Path, wrong: str) -> None:
    (tmp_path / "short").write_text("short secret")
    path = tmp_path / "issuers.json"
    path.write_text(wrong.replace("SHORT", str(tmp_path / "short")))
    with pytest.raises(ValidationError, match="external_issuers_file") as caught:
        make_settings(auth_database, tmp_path, external_issuers_file=path)
    assert "short secret" not in str(caught.value)
    assert AuthSettings.model_fields["external_issuers_file"].default is None
