"""Phone numbers: verified by a code that was sent there, unique once verified, bounded in every way."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest

from parley.auth.v1 import auth_pb2, user_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.tokens import TokenMint
from services.runtime.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    from_rpc_error,
)
from tests.auth.harness import CALL_SECONDS, Metadata, Person, RunningAuth, bearer, besides, refusal, until, who_waits
from tests.auth.purge_peers import LateKeys, Peers, Purger, running_peers

StartAuth = Callable[..., Awaitable[RunningAuth]]


@pytest.fixture
async def peers(auth: RunningAuth) -> AsyncIterator[Peers]:
    keys = LateKeys()
    async with running_peers(keys) as running, keys.of(auth.assembly):
        yield running


@pytest.fixture
def sms(peers: Peers) -> Purger:
    return peers.purgers["sms"]


@pytest.fixture
async def phoned(start_auth: StartAuth, peers: Peers) -> RunningAuth:
    """Auth with an sms to send codes by, and no pause between codes."""
    auth = await start_auth(**peers.settings("sms"))
    await auth.execute("delete from phone_verifications")
    return auth


def new_number() -> str:
    return f"+1415{secrets.randbelow(10**7):07}"


async def ask(auth: RunningAuth, person: Person, number: str) -> auth_pb2.StartPhoneVerificationResponse:
    request = auth_pb2.StartPhoneVerificationRequest(phone_number=number)
    return await auth.auth.StartPhoneVerification(request, metadata=person.metadata, timeout=CALL_SECONDS)


async def verify(auth: RunningAuth, person: Person, code: str) -> auth_pb2.User:
    request = auth_pb2.VerifyPhoneRequest(code=code)
    return await auth.auth.VerifyPhone(request, metadata=person.metadata, timeout=CALL_SECONDS)


async def pass_time(auth: RunningAuth, seconds: float, *columns: str) -> None:
    for column in columns:
        await auth.execute(
            f"update phone_verifications set {column} = {column} - make_interval(secs => %s)",  # noqa: S608 - ours
            seconds,
        )


def other_than(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06}"


async def test_the_code_makes_the_number_the_users(phoned: RunningAuth, sms: Purger) -> None:
    person, number = await phoned.register(), new_number()
    preferences = user_pb2.UpdatePreferencesRequest(user_id="me", preferences=user_pb2.Preferences(language="pt-BR"))
    await phoned.users.UpdatePreferences(preferences, metadata=person.metadata)
    asked = await ask(phoned, person, number)
    assert asked.resend_after_seconds == 60
    [sent] = sms.codes
    assert (sent.phone_number, sent.language, sent.user_id, len(sent.code)) == (number, "pt-BR", person.id, 6)
    assert (await phoned.me(person.tokens.access_token)).phone_number == ""
    user = await verify(phoned, person, sent.code)
    assert user.phone_number == number
    assert (await phoned.me(person.tokens.access_token)).phone_number == number
    again = await refusal(verify(phoned, person, sent.code))
    assert isinstance(again, FailedPrecondition)
    assert again.reason == reasons.ERROR_REASON_CODE_EXPIRED


async def test_a_code_can_be_tried_five_times_also_all_at_once(phoned: RunningAuth, sms: Purger) -> None:
    person = await phoned.register()
    await ask(phoned, person, new_number())
    code = sms.codes[0].code
    wrong = await refusal(verify(phoned, person, other_than(code)))
    assert isinstance(wrong, InvalidArgument)
    assert (wrong.reason, wrong.metadata) == (reasons.ERROR_REASON_CODE_WRONG, {"attempts_left": "4"})
    refused = await asyncio.gather(*(refusal(verify(phoned, person, other_than(code))) for _ in range(30)))
    assert [one.reason for one in refused].count(reasons.ERROR_REASON_CODE_WRONG) == 4
    assert (await refusal(verify(phoned, person, code))).reason == reasons.ERROR_REASON_CODE_EXPIRED


async def test_a_code_expires_and_another_takes_its_place(phoned: RunningAuth, sms: Purger) -> None:
    person = await phoned.register()
    await ask(phoned, person, new_number())
    await pass_time(phoned, 601, "expire_time")
    assert (await refusal(verify(phoned, person, sms.codes[0].code))).reason == reasons.ERROR_REASON_CODE_EXPIRED
    await pass_time(phoned, 61, "resend_time")
    second = new_number()
    await ask(phoned, person, second)
    first_again = await refusal(verify(phoned, person, sms.codes[0].code))
    assert first_again.reason == reasons.ERROR_REASON_CODE_WRONG or sms.codes[0].code == sms.codes[1].code
    assert (await verify(phoned, person, sms.codes[1].code)).phone_number == second


async def test_codes_are_not_sent_too_soon_nor_too_often(phoned: RunningAuth, sms: Purger) -> None:
    person, number = await phoned.register(), new_number()
    await ask(phoned, person, number)
    soon = await refusal(ask(phoned, person, number))
    assert isinstance(soon, ResourceExhausted)
    assert soon.reason == reasons.ERROR_REASON_LIMIT_REACHED
    assert soon.retry_delay_seconds is not None
    assert 50 < soon.retry_delay_seconds <= 60
    assert number not in f"{soon.message} {soon.metadata}"
    at_once = await asyncio.gather(*(refusal(ask(phoned, person, new_number())) for _ in range(10)))
    assert {one.reason for one in at_once} == {reasons.ERROR_REASON_LIMIT_REACHED}
    for _ in range(4):
        await pass_time(phoned, 61, "resend_time")
        await ask(phoned, person, number)
    await pass_time(phoned, 61, "resend_time")
    assert (await refusal(ask(phoned, person, number))).reason == reasons.ERROR_REASON_LIMIT_REACHED
    assert len(sms.codes) == 5
    await pass_time(phoned, 86_401, "window_time")
    await ask(phoned, person, number)
    assert len(sms.codes) == 6


async def test_nobody_is_flooded_from_several_accounts(start_auth: StartAuth, peers: Peers, sms: Purger) -> None:
    auth = await start_auth(**peers.settings("sms"), phone_codes_per_day=2)
    number = new_number()
    people = [await auth.register() for _ in range(6)]
    done = await asyncio.gather(*(ask(auth, one, number) for one in people), return_exceptions=True)
    refused = [from_rpc_error(one).reason for one in done if isinstance(one, grpc.aio.AioRpcError)]
    assert refused == [reasons.ERROR_REASON_LIMIT_REACHED] * 2
    assert len(sms.codes) == 4


async def test_what_a_number_was_sent_stays_counted_when_they_turn_to_another_or_go(
    start_auth: StartAuth, peers: Peers, sms: Purger
) -> None:
    auth = await start_auth(**peers.settings("sms"), phone_codes_per_day=2)
    number = new_number()
    for leaves in (False, True, False, True):
        person = await auth.register()
        await ask(auth, person, number)
        if leaves:
            await auth.users.DeleteUser(user_pb2.DeleteUserRequest(user_id="me"), metadata=person.metadata)
        else:
            await pass_time(auth, 61, "resend_time")
            await ask(auth, person, new_number())
    late = await auth.register()
    refused = await refusal(ask(auth, late, number))
    assert refused.reason == reasons.ERROR_REASON_LIMIT_REACHED
    assert [one.phone_number for one in sms.codes].count(number) == 4
    assert number not in str(await auth.execute("select t::text from code_counts t"))
    await auth.execute("update code_counts set window_time = window_time - interval '1 day'")
    await ask(auth, late, number)


async def test_a_number_is_one_accounts_and_who_holds_it_learns_that(phoned: RunningAuth, sms: Purger) -> None:
    number = new_number()
    people = [await phoned.register() for _ in range(5)]
    for person in people:
        await ask(phoned, person, number)
    calls = (verify(phoned, person, sent.code) for person, sent in zip(people, sms.codes, strict=True))
    done = await asyncio.gather(*calls, return_exceptions=True)
    refused = [from_rpc_error(one) for one in done if isinstance(one, grpc.aio.AioRpcError)]
    assert len(refused) == 4
    for one in refused:
        assert isinstance(one, AlreadyExists)
        assert (one.reason, one.metadata) == (reasons.ERROR_REASON_PHONE_TAKEN, {"field": "phone_number"})
        assert number not in one.message
    assert await phoned.execute("select count(*) from users where phone_number = %s", number) == [(1,)]


@pytest.mark.parametrize(
    "number",
    [
        "",
        "4155550123",
        "+0123456789",
        "+1415",
        "+1415555012345678",
        "+1415 555",
        "+\uff11\uff14\uff11\uff15\uff15\uff15\uff15\uff10",
    ],
)
async def test_a_number_that_is_none_is_refused(phoned: RunningAuth, person: Person, number: str) -> None:
    assert (await refusal(ask(phoned, person, number))).reason == reasons.ERROR_REASON_INVALID_REQUEST


async def test_a_code_that_is_none_is_refused_and_costs_no_try(phoned: RunningAuth, sms: Purger) -> None:
    person = await phoned.register()
    await ask(phoned, person, new_number())
    for code in ("", "12345", "1234567", "abcdef"):
        assert (await refusal(verify(phoned, person, code))).reason == reasons.ERROR_REASON_INVALID_REQUEST
    assert await verify(phoned, person, sms.codes[0].code)
    other = await phoned.register()
    assert (await refusal(verify(phoned, other, "123456"))).reason == reasons.ERROR_REASON_CODE_EXPIRED


async def test_what_sms_refuses_is_told_and_another_code_may_be_asked_for(phoned: RunningAuth, sms: Purger) -> None:
    person, number = await phoned.register(), new_number()
    sms.refusals += [
        FailedPrecondition("They want none.", reasons.ERROR_REASON_RECIPIENT_OPTED_OUT),
        Unavailable("Away.", reasons.ERROR_REASON_SMS_UNAVAILABLE),
    ]
    assert (await refusal(ask(phoned, person, number))).reason == reasons.ERROR_REASON_RECIPIENT_OPTED_OUT
    assert (await refusal(ask(phoned, person, number))).reason == reasons.ERROR_REASON_SMS_UNAVAILABLE
    await ask(phoned, person, number)
    assert (await verify(phoned, person, sms.codes[0].code)).phone_number == number


@pytest.mark.parametrize(
    "lost",
    [
        DeadlineExceeded("Late.", reasons.ERROR_REASON_DEADLINE_PASSED),
        Unavailable("Away.", reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE),
    ],
)
async def test_a_code_is_good_where_nobody_knows_whether_it_was_sent(
    phoned: RunningAuth, sms: Purger, lost: ServiceError
) -> None:
    person, number = await phoned.register(), new_number()
    sms.losses += [lost, lost]
    for _ in range(2):
        # The second without a wait.
        assert (await refusal(ask(phoned, person, number))).reason == lost.reason
    assert (await verify(phoned, person, sms.codes[1].code)).phone_number == number


async def test_a_code_that_comes_back_while_its_user_is_deleted_locks_nobody_out(phoned: RunningAuth, sms: Purger) -> None:
    person = await phoned.register()
    await ask(phoned, person, new_number())
    async with besides(phoned) as deleting:
        await deleting.execute("select from users where id = %s for update", [person.id])
        verifying = asyncio.create_task(refusal(verify(phoned, person, sms.codes[0].code)))
        await until(lambda: who_waits(phoned))
        await deleting.execute("delete from users where id = %s", [person.id])
        await deleting.commit()
        assert (await verifying).reason == reasons.ERROR_REASON_CODE_EXPIRED


async def test_without_sms_no_code_is_sent(auth: RunningAuth, person: Person) -> None:
    refused = await refusal(ask(auth, person, new_number()))
    assert isinstance(refused, Unavailable)
    assert refused.reason == reasons.ERROR_REASON_SMS_UNAVAILABLE


async def test_the_code_is_nowhere_but_where_it_is_sent(
    phoned: RunningAuth, sms: Purger, capsys: pytest.CaptureFixture[str]
) -> None:
    person, number = await phoned.register(), new_number()
    await ask(phoned, person, number)
    await refusal(verify(phoned, person, other_than(sms.codes[0].code)))
    await verify(phoned, person, sms.codes[0].code)
    written = capsys.readouterr()
    rows = await phoned.execute("select encode(code_digest, 'hex') from phone_verifications")
    assert rows
    for secret in (sms.codes[0].code, number):
        assert secret not in written.out + written.err
    stored = str(await phoned.execute("select v::text from phone_verifications v"))
    assert f",{sms.codes[0].code}," not in stored


def as_sms(auth: RunningAuth, person: Person | None = None) -> Metadata:
    mint = TokenMint(auth.assembly.keys, access_seconds=900)
    metadata = (("x-parley-service-authorization", f"Bearer {mint.service_token('sms', 'auth')}"),)
    return metadata if person is None else (*metadata, *bearer(person.tokens.access_token))


async def test_sms_finds_whose_a_number_is_and_nobody_else_does(phoned: RunningAuth, sms: Purger) -> None:
    person, number = await phoned.register(), new_number()
    await ask(phoned, person, number)
    request = user_pb2.FindUserByPhoneRequest(phone_number=number)
    unverified = await refusal(phoned.users.FindUserByPhone(request, metadata=as_sms(phoned)))
    assert unverified.reason == reasons.ERROR_REASON_USER_NOT_FOUND
    assert number not in f"{unverified.message} {unverified.metadata}"
    await verify(phoned, person, sms.codes[0].code)
    preferences = user_pb2.UpdatePreferencesRequest(user_id="me", preferences=user_pb2.Preferences(auto_reply_enabled=True))
    await phoned.users.UpdatePreferences(preferences, metadata=person.metadata)
    found = await phoned.users.FindUserByPhone(request, metadata=as_sms(phoned))
    assert (found.user_id, found.preferences.auto_reply_enabled) == (person.id, True)
    for metadata in (as_sms(phoned, person), await phoned.as_service("chat"), person.metadata):
        assert isinstance(await refusal(phoned.users.FindUserByPhone(request, metadata=metadata)), PermissionDenied)
    await phoned.execute("update users set is_active = false where id = %s", person.id)
    inactive = await refusal(phoned.users.FindUserByPhone(request, metadata=as_sms(phoned)))
    assert inactive.reason == reasons.ERROR_REASON_USER_NOT_FOUND
