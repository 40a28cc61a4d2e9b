"""TokenService: which service gets a token for which other, for itself and for a user."""

import uuid
from typing import Any

import jwt
import pytest

from parley.auth.v1 import auth_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import NotFound, PermissionDenied, Unauthenticated
from services.runtime.identity import TokenVerifier
from tests.auth.harness import CREDENTIALS, Person, RunningAuth, refusal


def issue(auth: RunningAuth, workload: str, audience: str, credential: str | None = None) -> Any:
    secret = CREDENTIALS.get(workload, "unknown") if credential is None else credential
    request = auth_pb2.IssueServiceTokenRequest(workload=workload, credential=secret, audience=audience)
    return auth.tokens.IssueServiceToken(request)


async def exchange(
    auth: RunningAuth, user_id: str, audience: str, workload: str = "chat"
) -> auth_pb2.ExchangeForUserResponse:
    request = auth_pb2.ExchangeForUserRequest(user_id=user_id, audience=audience)
    return await auth.tokens.ExchangeForUser(request, metadata=await auth.as_service(workload))


@pytest.mark.parametrize(
    ("workload", "audience"),
    [("chat", "memory"), ("chat", "auth"), ("chat", "sms"), ("memory", "auth"), ("sms", "auth"), ("sms", "chat")],
)
async def test_a_service_gets_a_five_minute_token_for_its_peers(auth: RunningAuth, workload: str, audience: str) -> None:
    answer = await issue(auth, workload, audience)
    assert answer.lifetime.seconds == 300
    claims = jwt.decode(answer.token, options={"verify_signature": False})
    assert (claims["aud"], claims["sub"]) == (audience, f"service:{workload}")
    assert claims["exp"] - claims["iat"] == 300
    verifier = TokenVerifier(audience=audience, keys=auth.assembly.keys, ended=auth.assembly.ended)
    caller = await verifier.verify({"x-parley-service-authorization": f"Bearer {answer.token}"})
    assert (caller.service, caller.user_id) == (workload, None)


@pytest.mark.parametrize(
    ("workload", "credential"), [("chat", "wrong"), ("memory", CREDENTIALS["chat"]), ("stranger", "any")]
)
async def test_a_wrong_credential_gets_nothing(auth: RunningAuth, workload: str, credential: str) -> None:
    refused = await refusal(issue(auth, workload, "auth", credential))
    assert isinstance(refused, Unauthenticated)
    assert refused.reason == reasons.ERROR_REASON_WORKLOAD_CREDENTIAL_WRONG
    assert refused.metadata == {"workload": workload}


@pytest.mark.parametrize(
    ("workload", "audience"),
    [
        ("memory", "chat"),
        ("memory", "sms"),
        ("memory", "memory"),
        ("sms", "memory"),
        ("chat", "chat"),
        ("chat", "parley"),
        ("chat", "nowhere"),
    ],
)
async def test_no_service_gets_a_token_beyond_its_arrows(auth: RunningAuth, workload: str, audience: str) -> None:
    refused = await refusal(issue(auth, workload, audience))
    assert isinstance(refused, PermissionDenied)
    assert refused.reason == reasons.ERROR_REASON_AUDIENCE_NOT_ALLOWED
    assert refused.metadata == {"workload": workload, "audience": audience}


async def test_chat_acts_for_a_user_towards_memory(auth: RunningAuth, person: Person) -> None:
    answer = await exchange(auth, person.id.upper(), "memory")
    assert answer.lifetime.seconds == 300
    verifier = TokenVerifier(audience="memory", keys=auth.assembly.keys, ended=auth.assembly.ended)
    caller = await verifier.verify({"authorization": f"Bearer {answer.token}"})
    assert (caller.user_id, caller.service, caller.session_id) == (person.id, "chat", None)


async def test_a_token_on_behalf_is_no_good_at_auth(auth: RunningAuth, person: Person) -> None:
    answer = await exchange(auth, person.id, "memory")
    refused = await refusal(auth.me(answer.token))
    assert refused.reason == reasons.ERROR_REASON_TOKEN_INVALID


@pytest.mark.parametrize("audience", ["auth", "chat"])
async def test_sms_acts_for_a_user_towards_auth_and_chat(auth: RunningAuth, person: Person, audience: str) -> None:
    answer = await exchange(auth, person.id, audience, "sms")
    verifier = TokenVerifier(audience=audience, keys=auth.assembly.keys, ended=auth.assembly.ended)
    caller = await verifier.verify({"authorization": f"Bearer {answer.token}"})
    assert (caller.user_id, caller.service, caller.session_id) == (person.id, "sms", None)


@pytest.mark.parametrize(
    ("workload", "audience"),
    [("chat", "chat"), ("sms", "memory"), ("memory", "auth"), ("memory", "memory"), ("memory", "chat")],
)
async def test_nobody_else_acts_for_users(auth: RunningAuth, person: Person, workload: str, audience: str) -> None:
    refused = await refusal(exchange(auth, person.id, audience, workload))
    assert isinstance(refused, PermissionDenied)
    assert refused.reason == reasons.ERROR_REASON_AUDIENCE_NOT_ALLOWED


async def test_nobody_acts_for_a_user_who_does_not_exist(auth: RunningAuth) -> None:
    user_id = str(uuid.uuid4())
    refused = await refusal(exchange(auth, user_id, "memory"))
    assert isinstance(refused, NotFound)
    assert refused.reason == reasons.ERROR_REASON_USER_NOT_FOUND
    assert refused.metadata == {"user_id": user_id}


async def test_nobody_acts_for_a_deactivated_user(auth: RunningAuth, person: Person) -> None:
    await auth.execute("update users set is_active = false where id = %s", person.id)
    refused = await refusal(exchange(auth, person.id, "memory"))
    assert isinstance(refused, PermissionDenied)
    assert refused.reason == reasons.ERROR_REASON_USER_INACTIVE


async def test_without_a_service_token_nobody_exchanges_or_follows(auth: RunningAuth, person: Person) -> None:
    exchanging = auth.tokens.ExchangeForUser(auth_pb2.ExchangeForUserRequest(user_id=person.id, audience="memory"))
    assert (await refusal(exchanging)).reason == reasons.ERROR_REASON_IDENTITY_MISSING
    following = auth.tokens.WatchEndedSessions(auth_pb2.WatchEndedSessionsRequest(), metadata=person.metadata)
    assert (await refusal(anext(aiter(following)))).reason == reasons.ERROR_REASON_ACCESS_DENIED
