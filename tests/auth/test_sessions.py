"""Sessions of the caller: listed, revoked, logged out of, and ended by a new password. Nobody else's."""

import asyncio
import uuid

import grpc
import jwt
import pytest

from parley.auth.v1 import auth_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import InvalidArgument, NotFound, from_rpc_error
from services.runtime.paging import encode_page_token
from tests.auth.harness import PASSWORD, Person, RunningAuth, bearer, refusal

NEW_PASSWORD = "battery staple"


async def list_sessions(
    auth: RunningAuth, person: Person, page_size: int = 0, page_token: str = ""
) -> auth_pb2.ListSessionsResponse:
    request = auth_pb2.ListSessionsRequest(page_size=page_size, page_token=page_token)
    return await auth.auth.ListSessions(request, metadata=person.metadata)


async def revoke(auth: RunningAuth, person: Person, session_id: str) -> None:
    await auth.auth.RevokeSession(auth_pb2.RevokeSessionRequest(session_id=session_id), metadata=person.metadata)


async def log_out(auth: RunningAuth, access_token: str, *, everywhere: bool = False) -> int:
    request = auth_pb2.LogoutRequest(all_sessions=everywhere)
    return (await auth.auth.Logout(request, metadata=bearer(access_token))).ended_sessions


async def change_password(auth: RunningAuth, person: Person, current: str, new: str = NEW_PASSWORD) -> int:
    request = auth_pb2.ChangePasswordRequest(current_password=current, new_password=new)
    return (await auth.auth.ChangePassword(request, metadata=person.metadata, timeout=20)).ended_sessions


async def test_sessions_are_listed_with_the_newest_first_and_the_own_marked(auth: RunningAuth, person: Person) -> None:
    await auth.login(person.username)
    await auth.login(person.username)
    listed = (await list_sessions(auth, person)).sessions
    assert [session.is_current for session in listed] == [False, False, True]
    times = [session.create_time.ToNanoseconds() for session in listed]
    assert times == sorted(times, reverse=True)
    assert all(session.expire_time.seconds - session.create_time.seconds == 30 * 86_400 for session in listed)


async def test_a_session_tells_its_user_agent_cut_to_200_characters(auth: RunningAuth) -> None:
    options = [("grpc.primary_user_agent", "phone/" + "9" * 300)]
    async with grpc.aio.insecure_channel(auth.target, options=options) as channel:
        phone = RunningAuth(auth.assembly, int(auth.target.rpartition(":")[2]), auth.database)
        await phone.channel.close()
        phone.auth = type(auth.auth)(channel)
        person = await phone.register()
        (session,) = (await list_sessions(phone, person)).sessions
    assert session.user_agent == "phone/" + "9" * 194


async def test_a_list_is_read_page_by_page(auth: RunningAuth, person: Person) -> None:
    for _ in range(4):
        await auth.login(person.username)
    seen, token = [], ""
    while True:
        page = await list_sessions(auth, person, page_size=2, page_token=token)
        seen.append([session.id for session in page.sessions])
        token = page.next_page_token
        if not token:
            break
    assert [len(page) for page in seen] == [2, 2, 1]
    everything = [session.id for session in (await list_sessions(auth, person)).sessions]
    assert [session_id for page in seen for session_id in page] == everything


@pytest.mark.parametrize(
    "token",
    [
        "junk",
        encode_page_token("conversations", ["0199bbbb-0000-7000-8000-000000000003"]),
        encode_page_token("sessions", ["no id"]),
    ],
)
async def test_a_page_token_of_another_make_is_refused(auth: RunningAuth, person: Person, token: str) -> None:
    refused = await refusal(list_sessions(auth, person, page_token=token))
    assert isinstance(refused, InvalidArgument)
    assert refused.reason == reasons.ERROR_REASON_INVALID_PAGE_TOKEN


async def test_a_list_and_the_own_account_take_one_query_each(auth: RunningAuth, person: Person) -> None:
    for _ in range(5):
        await auth.login(person.username)
    with auth.noted_statements() as for_list:
        await list_sessions(auth, person)
    with auth.noted_statements() as for_account:
        await auth.me(person.tokens.access_token)
    with auth.noted_statements() as for_sign_in:
        await auth.login(person.username)
    assert (len(for_list), len(for_account)) == (1, 1)
    # The account, its delay, the failures that are forgotten, its lock, surplus sessions, the audit, the session, its token.
    assert len(for_sign_in) == 8


async def test_a_revoked_session_is_over_and_leaves_the_list(auth: RunningAuth, person: Person) -> None:
    other = await auth.login(person.username)
    (session_id,) = [session.id for session in (await list_sessions(auth, person)).sessions if not session.is_current]
    await revoke(auth, person, session_id)
    assert not await auth.is_signed_in(other.access_token)
    refused = await refusal(auth.refresh(other.refresh_token))
    assert refused.reason == reasons.ERROR_REASON_REFRESH_TOKEN_INVALID
    assert [session.is_current for session in (await list_sessions(auth, person)).sessions] == [True]


async def test_revoking_twice_at_once_succeeds_once(auth: RunningAuth, person: Person) -> None:
    await auth.login(person.username)
    (session_id,) = [session.id for session in (await list_sessions(auth, person)).sessions if not session.is_current]
    answers = await asyncio.gather(*(revoke(auth, person, session_id) for _ in range(5)), return_exceptions=True)
    errors = [from_rpc_error(answer) for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert [error.reason for error in errors] == [reasons.ERROR_REASON_SESSION_NOT_FOUND] * 4


async def test_another_users_session_is_not_found_and_stays(auth: RunningAuth, person: Person) -> None:
    other = await auth.register()
    ((session_id,),) = await auth.execute("select id::text from sessions where user_id = %s", other.id)
    for unknown in (session_id, str(uuid.uuid4())):
        refused = await refusal(revoke(auth, person, unknown))
        assert isinstance(refused, NotFound)
        assert refused.reason == reasons.ERROR_REASON_SESSION_NOT_FOUND
        assert refused.metadata == {"session_id": unknown}
    assert await auth.is_signed_in(other.tokens.access_token)


async def test_a_logout_ends_the_own_session_and_its_refresh_tokens(auth: RunningAuth, person: Person) -> None:
    assert await log_out(auth, person.tokens.access_token) == 1
    assert not await auth.is_signed_in(person.tokens.access_token)
    refused = await refusal(auth.refresh(person.tokens.refresh_token))
    assert refused.reason == reasons.ERROR_REASON_REFRESH_TOKEN_INVALID


async def test_a_logout_everywhere_ends_every_session_of_the_caller_only(auth: RunningAuth, person: Person) -> None:
    others = [await auth.login(person.username) for _ in range(3)]
    stranger = await auth.register()
    assert await log_out(auth, person.tokens.access_token, everywhere=True) == 4
    for tokens in others:
        assert not await auth.is_signed_in(tokens.access_token)
    assert await auth.is_signed_in(stranger.tokens.access_token)


async def test_the_first_call_after_a_logout_is_refused_by_the_same_process(auth: RunningAuth, person: Person) -> None:
    await log_out(auth, person.tokens.access_token)
    refused = await refusal(list_sessions(auth, person))
    assert refused.reason == reasons.ERROR_REASON_SESSION_ENDED


async def test_credentials_are_verified_with_their_expiry(auth: RunningAuth, person: Person) -> None:
    answer = await auth.auth.VerifyCredentials(auth_pb2.VerifyCredentialsRequest(), metadata=person.metadata)
    claims = jwt.decode(person.tokens.access_token, options={"verify_signature": False})
    assert answer.valid
    assert answer.user.id == person.id
    assert answer.expire_time.seconds == claims["exp"]
    await log_out(auth, person.tokens.access_token)
    call = auth.auth.VerifyCredentials(auth_pb2.VerifyCredentialsRequest(), metadata=person.metadata)
    assert (await refusal(call)).reason == reasons.ERROR_REASON_SESSION_ENDED


async def test_a_new_password_replaces_the_old_one_and_ends_the_other_sessions(auth: RunningAuth, person: Person) -> None:
    others = [await auth.login(person.username) for _ in range(2)]
    assert await change_password(auth, person, PASSWORD) == 2
    for tokens in others:
        assert not await auth.is_signed_in(tokens.access_token)
    assert await auth.is_signed_in((await auth.refresh(person.tokens.refresh_token)).access_token)
    assert (await refusal(auth.login(person.username))).reason == reasons.ERROR_REASON_CREDENTIALS_WRONG
    await auth.login(person.username, NEW_PASSWORD)


async def test_a_new_password_needs_the_present_one(auth: RunningAuth, person: Person) -> None:
    other = await auth.login(person.username)
    refused = await refusal(change_password(auth, person, "not the password"))
    assert refused.reason == reasons.ERROR_REASON_CREDENTIALS_WRONG
    assert await auth.is_signed_in(other.access_token)
    await auth.login(person.username)


async def test_of_password_changes_at_once_one_wins(auth: RunningAuth, person: Person) -> None:
    answers = await asyncio.gather(
        *(change_password(auth, person, PASSWORD, f"new password {index}") for index in range(5)),
        return_exceptions=True,
    )
    errors = [from_rpc_error(answer) for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert [error.reason for error in errors] == [reasons.ERROR_REASON_CREDENTIALS_WRONG] * 4
    (winner,) = [index for index, answer in enumerate(answers) if isinstance(answer, int)]
    await auth.login(person.username, f"new password {winner}")


async def test_a_new_password_needs_a_session_that_is_open(auth: RunningAuth, person: Person) -> None:
    await auth.execute("update sessions set end_time = now(), end_cause = 'revoked' where user_id = %s", person.id)
    refused = await refusal(change_password(auth, person, PASSWORD))
    assert refused.reason == reasons.ERROR_REASON_SESSION_ENDED
