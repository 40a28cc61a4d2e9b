"""Tokens: what they say, and everything that only looks like one."""

import asyncio
import base64
import time
import uuid
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from parley.auth.v1 import auth_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import Unauthenticated
from services.runtime.identity import TokenVerifier
from tests.auth.harness import Person, RunningAuth, bearer, refusal


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def resigned(auth: RunningAuth, claims: dict[str, Any], **header: Any) -> str:
    """A token of auth's own key: only its claims are wrong."""
    kid, key = auth.assembly.keys.signing_key()
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": kid, **header})


async def refused_reason(auth: RunningAuth, token: str) -> int:
    refused = await refusal(auth.me(token))
    assert isinstance(refused, Unauthenticated)
    return refused.reason


async def test_an_access_token_says_who_whose_session_and_until_when(auth: RunningAuth, person: Person) -> None:
    token = person.tokens.access_token
    claims = claims_of(token)
    assert claims["iss"] == claims["aud"] == "parley"
    assert claims["sub"] == person.id
    assert uuid.UUID(claims["sid"])
    assert claims["roles"] == ["user"]
    assert claims["exp"] - claims["iat"] == 900
    assert abs(claims["iat"] - time.time()) < 30
    assert claims_of((await auth.login(person.username)).access_token)["jti"] != claims["jti"]
    assert jwt.get_unverified_header(token)["alg"] == "EdDSA"


async def test_an_administrators_token_says_so(auth: RunningAuth, person: Person) -> None:
    await auth.execute("update users set is_admin = true where id = %s", person.id)
    tokens = await auth.login(person.username)
    assert claims_of(tokens.access_token)["roles"] == ["user", "admin"]
    assert (await auth.me(tokens.access_token)).is_admin


async def test_the_published_keys_verify_the_tokens(auth: RunningAuth, person: Person) -> None:
    answer = await auth.auth.GetJwks(auth_pb2.GetJwksRequest())
    assert {(key.kty, key.crv, key.alg, key.use) for key in answer.keys} == {("OKP", "Ed25519", "EdDSA", "sig")}
    published = {key.kid: {"kty": key.kty, "crv": key.crv, "x": key.x} for key in answer.keys}
    token = person.tokens.access_token
    key = jwt.PyJWK(published[jwt.get_unverified_header(token)["kid"]], algorithm="EdDSA")
    assert jwt.decode(token, key, algorithms=["EdDSA"], audience="parley")["sub"] == person.id


async def test_no_identity_is_told_from_a_bad_one(auth: RunningAuth) -> None:
    missing = await refusal(auth.auth.GetMe(auth_pb2.GetMeRequest()))
    assert missing.reason == reasons.ERROR_REASON_IDENTITY_MISSING
    assert await refused_reason(auth, "not.a.token") == reasons.ERROR_REASON_TOKEN_INVALID


async def test_an_unsigned_token_is_refused(auth: RunningAuth, person: Person) -> None:
    kid, _ = auth.assembly.keys.signing_key()
    token = jwt.encode(claims_of(person.tokens.access_token), "", algorithm="none", headers={"kid": kid})
    assert await refused_reason(auth, token) == reasons.ERROR_REASON_TOKEN_INVALID


async def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(auth: RunningAuth, person: Person) -> None:
    kid, key = auth.assembly.keys.signing_key()
    secret = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    token = jwt.encode(claims_of(person.tokens.access_token), secret, algorithm="HS256", headers={"kid": kid})
    assert await refused_reason(auth, token) == reasons.ERROR_REASON_TOKEN_INVALID


@pytest.mark.parametrize("kid", ["own", "unknown"])
async def test_a_token_of_another_key_is_refused(auth: RunningAuth, person: Person, kid: str) -> None:
    known, _ = auth.assembly.keys.signing_key()
    headers = {"kid": known if kid == "own" else "unknown"}
    token = jwt.encode(claims_of(person.tokens.access_token), Ed25519PrivateKey.generate(), "EdDSA", headers)
    assert await refused_reason(auth, token) == reasons.ERROR_REASON_TOKEN_INVALID


async def test_a_changed_claim_breaks_the_signature(auth: RunningAuth, person: Person) -> None:
    head, _, signature = person.tokens.access_token.split(".")
    claims = claims_of(person.tokens.access_token) | {"roles": ["user", "admin"]}
    body = base64.urlsafe_b64encode(orjson.dumps(claims)).decode().rstrip("=")
    assert await refused_reason(auth, f"{head}.{body}.{signature}") == reasons.ERROR_REASON_TOKEN_INVALID


@pytest.mark.parametrize("change", [{"aud": "memory"}, {"aud": "auth"}, {"iss": "somebody"}, {"sid": None}])
async def test_a_token_for_another_purpose_is_refused(auth: RunningAuth, person: Person, change: dict[str, Any]) -> None:
    changed = {**claims_of(person.tokens.access_token), **change}
    token = resigned(auth, {name: value for name, value in changed.items() if value is not None})
    assert await refused_reason(auth, token) == reasons.ERROR_REASON_TOKEN_INVALID


async def test_a_clock_of_auth_that_is_ahead_refuses_nobody(auth: RunningAuth, person: Person) -> None:
    ahead = int(time.time()) + 30
    token = resigned(auth, claims_of(person.tokens.access_token) | {"iat": ahead, "exp": ahead + 900})
    assert (await auth.me(token)).id == person.id


@pytest.mark.parametrize("claim", ["exp", "iat", "sub", "aud", "iss"])
async def test_a_token_without_a_claim_of_every_token_is_refused(auth: RunningAuth, person: Person, claim: str) -> None:
    claims = claims_of(person.tokens.access_token)
    del claims[claim]
    assert await refused_reason(auth, resigned(auth, claims)) == reasons.ERROR_REASON_TOKEN_INVALID


async def test_an_expired_token_is_refused_as_such(auth: RunningAuth, person: Person) -> None:
    claims = claims_of(person.tokens.access_token) | {"exp": int(time.time()) - 1}
    assert await refused_reason(auth, resigned(auth, claims)) == reasons.ERROR_REASON_TOKEN_EXPIRED


async def test_a_good_token_expires_while_it_is_remembered(auth: RunningAuth, person: Person) -> None:
    token = resigned(auth, claims_of(person.tokens.access_token) | {"exp": int(time.time()) + 2})
    assert (await auth.me(token)).id == person.id
    while time.time() < claims_of(token)["exp"]:  # noqa: ASYNC110 - the wall clock has no event
        await asyncio.sleep(0.05)
    assert await refused_reason(auth, token) == reasons.ERROR_REASON_TOKEN_EXPIRED


async def test_a_service_token_is_no_users(auth: RunningAuth) -> None:
    token = await auth.service_tokens("chat").for_audience("auth")
    assert await refused_reason(auth, token) == reasons.ERROR_REASON_TOKEN_INVALID


async def test_a_users_token_is_no_services(auth: RunningAuth, person: Person) -> None:
    metadata = (("x-parley-service-authorization", f"Bearer {person.tokens.access_token}"),)
    request = auth_pb2.ExchangeForUserRequest(user_id=person.id, audience="memory")
    refused = await refusal(auth.tokens.ExchangeForUser(request, metadata=metadata))
    assert refused.reason == reasons.ERROR_REASON_TOKEN_INVALID
    plain = await refusal(auth.tokens.ExchangeForUser(request, metadata=bearer(person.tokens.access_token)))
    assert plain.reason == reasons.ERROR_REASON_ACCESS_DENIED


async def test_the_suites_own_verifier_accepts_what_auth_mints(auth: RunningAuth, person: Person) -> None:
    verifier = TokenVerifier(audience="memory", keys=auth.assembly.keys, ended=auth.assembly.ended)
    caller = await verifier.verify({"authorization": f"Bearer {person.tokens.access_token}"})
    assert (caller.user_id, caller.roles, caller.service) == (person.id, frozenset({"user"}), None)
