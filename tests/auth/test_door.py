"""Basic at the door: traded for a token of the user's one standing session, as the edge asks for it."""

import asyncio
import base64
import json
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import jwt
import pytest

from parley.auth.v1 import auth_pb2
from parley.edge import ext_authz_pb2, ext_authz_pb2_grpc
from services.auth.account_store import AccountStore
from services.auth.door.remembered import MOST_REMEMBERED, Remembered
from services.auth.door.standing import Shown, StandingSessions
from services.auth.door.standing_store import StandingStore
from services.auth.records import Account, Origin
from services.auth.sessions import SessionLimits
from services.auth.tokens import TokenMint
from tests.auth.harness import CALL_SECONDS, PASSWORD, Person, RunningAuth, bearer, new_name

StartAuth = Callable[..., Awaitable[RunningAuth]]


async def check(
    auth: RunningAuth, authorization: str, *, content_type: str = "", address: str = "192.0.2.1"
) -> ext_authz_pb2.CheckResponse:
    request = ext_authz_pb2.CheckRequest()
    headers = request.attributes.request.http.headers
    headers["x-forwarded-for"] = address
    headers["authorization"] = authorization
    if content_type:
        headers["content-type"] = content_type
    return await ext_authz_pb2_grpc.AuthorizationStub(auth.channel).Check(request, timeout=CALL_SECONDS)


def basic(name: str, password: str = PASSWORD) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


async def token(auth: RunningAuth, authorization: str) -> str:
    answer = await check(auth, authorization)
    assert answer.status.code == 0, answer
    (header,) = answer.ok_response.headers
    assert header.header.key == "authorization"
    return header.header.value.removeprefix("Bearer ")


async def reason(auth: RunningAuth, authorization: str) -> tuple[int, str]:
    answer = await check(auth, authorization)
    assert answer.status.code != 0
    body = json.loads(answer.denied_response.body)
    assert set(body) == {"code", "message", "details"}
    return answer.denied_response.status.code, body["details"][0]["reason"]


def session_of(access_token: str) -> str:
    return str(jwt.decode(access_token, options={"verify_signature": False})["sid"])


async def sessions(auth: RunningAuth, access_token: str) -> list[auth_pb2.Session]:
    answer = await auth.auth.ListSessions(auth_pb2.ListSessionsRequest(), metadata=bearer(access_token))
    return list(answer.sessions)


async def test_a_name_and_its_password_are_a_token_of_one_session(auth: RunningAuth, person: Person) -> None:
    first = await token(auth, basic(person.username))
    assert (await auth.me(first)).id == person.id
    verified = await auth.auth.VerifyCredentials(auth_pb2.VerifyCredentialsRequest(), metadata=bearer(first))
    assert verified.valid
    assert verified.user.username == person.username
    by_email = await token(auth, basic(person.email.upper()))
    assert session_of(by_email) == session_of(first)
    assert [one.user_agent for one in await sessions(auth, first)].count("HTTP Basic") == 1


async def test_ten_at_once_share_the_session(auth: RunningAuth, person: Person) -> None:
    tokens = await asyncio.gather(*(token(auth, basic(person.username)) for _ in range(10)))
    assert len({session_of(one) for one in tokens}) == 1


async def test_a_password_that_was_right_is_not_hashed_again(auth: RunningAuth, person: Person, hashings: list[str]) -> None:
    await token(auth, basic(person.username))
    with auth.noted_statements() as statements:
        for _ in range(10):
            await token(auth, basic(person.username))
    assert (len(statements), hashings) == (10, ["verify"])
    assert await reason(auth, basic(person.username, "not the password")) == (401, "CREDENTIALS_WRONG")
    assert hashings == ["verify"] * 2


async def test_a_new_password_forgets_the_old_one_at_once(auth: RunningAuth, person: Person) -> None:
    before = await token(auth, basic(person.username))
    request = auth_pb2.ChangePasswordRequest(current_password=PASSWORD, new_password="another password")
    await auth.auth.ChangePassword(request, metadata=person.metadata, timeout=CALL_SECONDS)
    assert await reason(auth, basic(person.username)) == (401, "CREDENTIALS_WRONG")
    assert not await auth.is_signed_in(before)
    after = await token(auth, basic(person.username, "another password"))
    assert session_of(after) != session_of(before)


async def test_a_session_that_was_ended_is_not_given_out_again(auth: RunningAuth, person: Person) -> None:
    before = await token(auth, basic(person.username))
    await auth.auth.Logout(auth_pb2.LogoutRequest(all_sessions=True), metadata=person.metadata, timeout=CALL_SECONDS)
    after = await token(auth, basic(person.username))
    assert session_of(after) != session_of(before)
    assert await auth.is_signed_in(after)
    assert not await auth.is_signed_in(before)


async def test_a_deactivated_user_is_refused_though_remembered(auth: RunningAuth, person: Person) -> None:
    await token(auth, basic(person.username))
    await auth.execute("update users set is_active = false where id = %s", person.id)
    assert await reason(auth, basic(person.username)) == (403, "USER_INACTIVE")
    assert await reason(auth, basic(person.username, "not the password")) == (401, "CREDENTIALS_WRONG")


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic",
        "Basic !",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b":nobody").decode(),
        "Basic " + base64.b64encode(b"nothing:").decode(),
        "Basic " + base64.b64encode(b"latin:\xfc").decode(),
        "Basic " + base64.b64encode(b"nul\x00:x").decode(),
        "Basic " + base64.b64encode(b"a" * 255 + b":x").decode(),
        "Basic " + base64.b64encode(b"a:" + b"x" * 201).decode(),
    ],
)
async def test_rubbish_is_refused_like_a_wrong_password(auth: RunningAuth, authorization: str) -> None:
    assert await reason(auth, authorization) == (401, "CREDENTIALS_WRONG")


async def test_unknown_and_wrong_cannot_be_told_apart(auth: RunningAuth, person: Person) -> None:
    wrong, unknown = await asyncio.gather(
        check(auth, basic(person.username, "not the password")), check(auth, basic(new_name()))
    )
    assert wrong == unknown


async def test_what_is_neither_has_no_identity_here(auth: RunningAuth, person: Person) -> None:
    assert await reason(auth, "") == (401, "IDENTITY_MISSING")
    assert await reason(auth, "Digest x") == (401, "IDENTITY_MISSING")
    # Our own token too: whoever asks with it asks at the wrong place.
    assert await reason(auth, f"Bearer {person.tokens.access_token}") == (401, "TOKEN_INVALID")


async def test_grpc_callers_get_a_sentence_and_a_status(auth: RunningAuth) -> None:
    answer = await check(auth, basic(new_name()), content_type="application/grpc+proto")
    assert answer.denied_response.body == "Unknown user or wrong password."
    headers = {option.header.key: option.header.value for option in answer.denied_response.headers}
    assert headers["grpc-status"] == "16"
    assert headers["grpc-status-details-bin"]


async def prolong_delays(auth: RunningAuth) -> None:
    """Makes the delays of names at addresses last for longer than a test."""
    await auth.execute(
        "update sign_in_failures set delay_until = now() + interval '1 hour' where failures > 2 and key <> name_key"
    )


async def test_who_fails_too_often_waits_at_their_address(start_auth: StartAuth) -> None:
    auth = await start_auth(sign_in_free_failures=2)
    person = await auth.register()
    there = "192.0.2.66"
    answers = [await check(auth, basic(person.username, "not the password"), address=there) for _ in range(4)]
    assert [answer.denied_response.status.code for answer in answers] == [401, 401, 401, 429]
    assert json.loads(answers[-1].denied_response.body)["details"][0]["reason"] == "SIGN_IN_DELAYED"
    headers = {option.header.key: option.header.value for option in answers[-1].denied_response.headers}
    assert int(headers["retry-after"]) >= 1
    await prolong_delays(auth)
    # Not even the right one is looked at there, though it is remembered elsewhere.
    assert (await check(auth, basic(person.username), address=there)).denied_response.status.code == 429
    ours = await token(auth, basic(person.username))
    assert (await check(auth, basic(person.username), address=there)).denied_response.status.code == 429
    assert await token(auth, basic(person.username)) == ours


async def test_what_is_remembered_answers_no_guess_from_elsewhere(start_auth: StartAuth) -> None:
    auth = await start_auth(sign_in_free_failures=2)
    person = await auth.register()
    home, elsewhere = "2001:db8::1", "2001:db8:0:1::1"
    ours = await check(auth, basic(person.username), address=home)
    assert ours.status.code == 0
    for number in range(3):
        guess = await check(auth, basic(person.username, f"guess {number}"), address=elsewhere)
        assert guess.denied_response.status.code == 401
    await prolong_delays(auth)
    wrong, right = [
        await check(auth, basic(person.username, password), address=elsewhere) for password in ("guess", PASSWORD)
    ]
    assert [one.denied_response.status.code for one in (wrong, right)] == [429, 429]
    # At home, which is a network, it goes on without a hash.
    with auth.noted_statements() as statements:
        assert await check(auth, basic(person.username), address="2001:db8::2") == ours
    assert len(statements) == 1


async def test_nobody_but_an_edge_says_where_a_request_comes_from(start_auth: StartAuth) -> None:
    auth = await start_auth(sign_in_free_failures=2, edge_networks="192.0.2.0/24")
    wrong = basic((await auth.register()).username, "not the password")
    answers = [await check(auth, wrong, address=f"198.51.100.{number}") for number in range(4)]
    assert [answer.denied_response.status.code for answer in answers] == [401, 401, 401, 429]


async def test_a_role_that_is_lost_while_the_password_is_looked_at_is_in_no_token(auth: RunningAuth, person: Person) -> None:
    parts = auth.assembly
    await auth.execute("update users set is_admin = true where id = %s", person.id)
    found = await AccountStore(parts.database).find_credentials(person.username)
    assert found is not None
    await auth.execute("update users set is_admin = false where id = %s", person.id)
    limits = SessionLimits(lifetime_seconds=900, grace_seconds=0, most_open=5)
    mint = TokenMint(parts.keys, access_seconds=900)
    standing = StandingSessions(StandingStore(parts.database), mint, parts.ended, limits)
    ours = await standing.token(found.account, Shown("basic", "HTTP Basic", PASSWORD, math.inf, "here"), Origin())
    assert jwt.decode(ours, options={"verify_signature": False})["roles"] == ["user"]
    assert standing.remembered(found.account, PASSWORD, place="here") is None


async def test_the_beginning_of_a_standing_session_is_in_the_audit_log(auth: RunningAuth, person: Person) -> None:
    for _ in range(3):
        await token(auth, basic(person.username))
    noted = await auth.execute(
        "select kind, address, details from audit_events where user_id = %s and kind = 'signed_in'", person.id
    )
    assert ("signed_in", "192.0.2.1", ["basic"]) in noted
    assert len([one for one in noted if one[2] == ["basic"]]) == 1


async def test_standing_sessions_count_like_others(start_auth: StartAuth) -> None:
    auth = await start_auth(open_sessions_per_user=2)
    person = await auth.register()
    second = await auth.login(person.username)
    standing = await token(auth, basic(person.username))
    assert not await auth.is_signed_in(person.tokens.access_token)
    assert await auth.is_signed_in(second.access_token)
    assert len(await sessions(auth, standing)) == 2


class Nothing:
    """No session has ended."""

    def is_ended(self, session_id: str) -> bool:
        return session_id == "ended"

    def is_current(self) -> bool:
        return True


def account(**changes: object) -> Account:
    names = {"id": "id", "username": "ana", "email": "a@b.c", "phone_number": None, "standing_id": "s"}
    times = dict.fromkeys(("create_time", "update_time"), datetime.now(UTC))
    standing = {"is_active": True, "is_admin": False, "credential_version": 1}
    return Account(**{**names, **times, **standing, **changes})  # type: ignore[arg-type]


def test_what_is_remembered_belongs_to_one_state_of_one_account() -> None:
    remembered = Remembered(Nothing(), seconds=60)
    remembered.keep(account(), "secret", place="here", token="token", session_id="open", most_seconds=60)
    assert remembered.find(account(), "secret", place="here") == "token"
    assert remembered.find(account(), "Secret", place="here") is None
    assert remembered.find(account(), "secret", place="there") is None
    for change in ({"id": "other"}, {"credential_version": 2}, {"is_active": False}, {"is_admin": True}):
        assert remembered.find(account(**change), "secret", place="here") is None
    remembered.keep(account(), "of an ended session", place="here", token="token", session_id="ended", most_seconds=60)
    assert remembered.find(account(), "of an ended session", place="here") is None
    remembered.keep(account(), "short", place="here", token="token", session_id="open", most_seconds=0)
    assert remembered.find(account(), "short", place="here") is None
    assert "secret" not in repr(vars(remembered))


def test_what_is_remembered_is_bounded() -> None:
    remembered = Remembered(Nothing(), seconds=60)
    for index in range(MOST_REMEMBERED + 1):
        remembered.keep(account(), str(index), place="here", token="token", session_id="open", most_seconds=60)
    assert remembered.find(account(), "0", place="here") is None
    assert remembered.find(account(), str(MOST_REMEMBERED), place="here") == "token"
