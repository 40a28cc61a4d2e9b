"""Accounts, as their owners and administrators change them: who may set what, unique names, what ends at once."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from parley.auth.v1 import auth_pb2, user_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ServiceError,
    Unauthenticated,
    from_rpc_error,
)
from suite.databases import ServiceDatabase
from tests.auth.harness import (
    CALL_SECONDS,
    PASSWORD,
    Person,
    RunningAuth,
    bearer,
    make_settings,
    new_name,
    refusal,
    running_auth,
    until,
)
from tests.work import PATIENCE_SECONDS

StartAuth = Callable[..., Awaitable[RunningAuth]]
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def admin(auth: RunningAuth) -> Person:
    return await auth.administrator()


def updating(person: Person, *, by: Person, mask: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    request = user_pb2.UpdateUserRequest(user_id=person.id, user=user_pb2.UserChange(**fields))
    if mask is not None:
        request.update_mask.CopyFrom(FieldMask(paths=mask))
    return {"request": request, "metadata": by.metadata, "timeout": CALL_SECONDS}


async def create(auth: RunningAuth, admin: Person, name: str, **fields: Any) -> user_pb2.CreateUserResponse:
    request = user_pb2.CreateUserRequest(username=name, email=f"{name}@example.com", **fields)
    return await auth.users.CreateUser(request, metadata=admin.metadata, timeout=CALL_SECONDS)


async def listed(auth: RunningAuth, admin: Person, **fields: Any) -> user_pb2.ListUsersResponse:
    return await auth.users.ListUsers(user_pb2.ListUsersRequest(**fields), metadata=admin.metadata, timeout=CALL_SECONDS)


async def set_password(auth: RunningAuth, token: str, password: str = PASSWORD) -> None:
    request = auth_pb2.SetPasswordRequest(token=token, new_password=password)
    await auth.auth.SetPassword(request, timeout=CALL_SECONDS)


async def test_a_created_user_sets_a_password_by_the_one_time_token(auth: RunningAuth, admin: Person) -> None:
    name = new_name()
    made = await create(auth, admin, name)
    assert (made.user.username, made.user.is_active, made.user.is_admin) == (name, True, False)
    refused = await refusal(auth.login(name, ""))
    assert refused.reason == reasons.ERROR_REASON_INVALID_REQUEST
    refused = await refusal(auth.login(name))
    assert refused.reason == reasons.ERROR_REASON_CREDENTIALS_WRONG
    await set_password(auth, made.password_token.token)
    assert (await auth.me((await auth.login(name)).access_token)).id == made.user.id
    again = await refusal(set_password(auth, made.password_token.token))
    assert isinstance(again, Unauthenticated)
    assert again.reason == reasons.ERROR_REASON_PASSWORD_TOKEN_INVALID


async def test_of_two_who_use_a_token_at_once_one_wins(auth: RunningAuth, admin: Person) -> None:
    made = await create(auth, admin, new_name())
    attempts = (set_password(auth, made.password_token.token, f"{PASSWORD} {index}") for index in range(20))
    done = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(one is None for one in done) == 1
    assert {from_rpc_error(one).reason for one in done if isinstance(one, grpc.aio.AioRpcError)} == {
        reasons.ERROR_REASON_PASSWORD_TOKEN_INVALID
    }


async def test_a_new_token_takes_the_place_of_the_first_and_ends_every_session(auth: RunningAuth, admin: Person) -> None:
    person = await auth.register()
    asked = user_pb2.CreatePasswordTokenRequest(user_id=person.id)
    first = await auth.users.CreatePasswordToken(asked, metadata=admin.metadata)
    second = await auth.users.CreatePasswordToken(asked, metadata=admin.metadata)
    assert (await refusal(set_password(auth, first.token))).reason == reasons.ERROR_REASON_PASSWORD_TOKEN_INVALID
    await set_password(auth, second.token, "quite another one")
    assert not await auth.is_signed_in(person.tokens.access_token)
    assert (await refusal(auth.login(person.username))).reason == reasons.ERROR_REASON_CREDENTIALS_WRONG
    assert await auth.login(person.username, "quite another one")
    nobody = user_pb2.CreatePasswordTokenRequest(user_id=NOBODY)
    assert isinstance(await refusal(auth.users.CreatePasswordToken(nobody, metadata=admin.metadata)), NotFound)


async def test_a_password_that_its_owner_changes_ends_the_one_time_token(auth: RunningAuth, admin: Person) -> None:
    person = await auth.register()
    asked = user_pb2.CreatePasswordTokenRequest(user_id=person.id)
    made = await auth.users.CreatePasswordToken(asked, metadata=admin.metadata)
    change = auth_pb2.ChangePasswordRequest(current_password=PASSWORD, new_password="quite another one")
    await auth.auth.ChangePassword(change, metadata=person.metadata, timeout=CALL_SECONDS)
    refused = await refusal(set_password(auth, made.token))
    assert refused.reason == reasons.ERROR_REASON_PASSWORD_TOKEN_INVALID


async def test_an_expired_token_sets_nothing_and_is_swept(auth: RunningAuth, admin: Person) -> None:
    made = await create(auth, admin, new_name())
    await auth.execute("update password_tokens set expire_time = now() where user_id = %s", made.user.id)
    refused = await refusal(set_password(auth, made.password_token.token))
    assert refused.reason == reasons.ERROR_REASON_PASSWORD_TOKEN_INVALID
    await auth.assembly.upkeep.sweep()
    assert await auth.execute("select 1 from password_tokens where user_id = %s", made.user.id) == []


async def test_creating_a_user_refuses_taken_names_and_rubbish(auth: RunningAuth, admin: Person, person: Person) -> None:
    taken = await refusal(create(auth, admin, person.username.upper()))
    assert taken.reason == reasons.ERROR_REASON_USERNAME_TAKEN
    request = user_pb2.CreateUserRequest(username=new_name(), email=person.email.upper())
    assert (
        await refusal(auth.users.CreateUser(request, metadata=admin.metadata))
    ).reason == reasons.ERROR_REASON_EMAIL_TAKEN
    for username, email in (
        ("", "a@example.com"),
        ("a b", "a@example.com"),
        ("a" * 51, "a@example.com"),
        (new_name(), "no"),
    ):
        bad = user_pb2.CreateUserRequest(username=username, email=email)
        assert isinstance(await refusal(auth.users.CreateUser(bad, metadata=admin.metadata)), InvalidArgument)


async def test_what_administrators_do_nobody_else_may(auth: RunningAuth, person: Person) -> None:
    calls: list[tuple[Any, Any]] = [
        (auth.users.CreateUser, user_pb2.CreateUserRequest(username="anna", email="anna@example.com")),
        (auth.users.ListUsers, user_pb2.ListUsersRequest()),
        (auth.users.GetDeletion, user_pb2.GetDeletionRequest(user_id=person.id)),
        (auth.users.CreatePasswordToken, user_pb2.CreatePasswordTokenRequest(user_id=person.id)),
        (auth.users.ListAuditEvents, user_pb2.ListAuditEventsRequest()),
    ]
    for call, request in calls:
        assert isinstance(await refusal(call(request, metadata=person.metadata)), PermissionDenied)
        assert isinstance(await refusal(call(request)), Unauthenticated)


async def test_users_reach_their_own_account_and_administrators_everybodys(
    auth: RunningAuth, admin: Person, person: Person
) -> None:
    other = await auth.register()
    for named in (person.id, "me"):
        got = await auth.users.GetUser(user_pb2.GetUserRequest(user_id=named), metadata=person.metadata)
        assert got == await auth.me(person.tokens.access_token)
    assert (await auth.users.GetUser(user_pb2.GetUserRequest(user_id=other.id), metadata=admin.metadata)).id == other.id
    calls: list[tuple[Any, Any]] = [
        (auth.users.GetUser, user_pb2.GetUserRequest(user_id=other.id)),
        (auth.users.UpdateUser, user_pb2.UpdateUserRequest(user_id=other.id, user=user_pb2.UserChange(username="abc"))),
        (auth.users.DeleteUser, user_pb2.DeleteUserRequest(user_id=other.id)),
    ]
    for call, request in calls:
        refused = await refusal(call(request, metadata=person.metadata))
        assert isinstance(refused, PermissionDenied)
        assert refused.reason == reasons.ERROR_REASON_ACCESS_DENIED
    for unknown in (NOBODY, "nobody"):
        missing = await refusal(auth.users.GetUser(user_pb2.GetUserRequest(user_id=unknown), metadata=admin.metadata))
        assert missing.reason == reasons.ERROR_REASON_USER_NOT_FOUND


async def test_a_service_that_acts_for_a_user_reaches_no_account(auth: RunningAuth, person: Person) -> None:
    tokens = auth.service_tokens("chat")
    metadata = (*await tokens.as_metadata("auth"), *bearer(await tokens.for_user(person.id, "auth")))
    calls: list[tuple[Any, Any]] = [
        (auth.users.GetUser, user_pb2.GetUserRequest(user_id="me")),
        (auth.users.UpdateUser, user_pb2.UpdateUserRequest(user_id="me")),
        (auth.users.DeleteUser, user_pb2.DeleteUserRequest(user_id="me")),
        (auth.users.FindUserByPhone, user_pb2.FindUserByPhoneRequest(phone_number="+14155550123")),
    ]
    for call, request in calls:
        assert isinstance(await refusal(call(request, metadata=metadata)), PermissionDenied)


async def test_users_change_their_names(auth: RunningAuth, person: Person) -> None:
    name = new_name()
    changed = await auth.users.UpdateUser(**updating(person, by=person, username=name, email=f"{name}@example.org"))
    assert (changed.username, changed.email) == (name, f"{name}@example.org")
    assert changed.update_time.ToNanoseconds() > changed.create_time.ToNanoseconds()
    assert await auth.users.UpdateUser(**updating(person, by=person, username=name)) == changed
    assert await auth.login(name)
    assert (await refusal(auth.login(person.username))).reason == reasons.ERROR_REASON_CREDENTIALS_WRONG
    masked = await auth.users.UpdateUser(
        **updating(person, by=person, mask=["email"], username="ignored", email=person.email)
    )
    assert (masked.username, masked.email) == (name, person.email)


@pytest.mark.parametrize(
    "fields", [{"is_admin": True}, {"is_active": False}, {"is_admin": False}, {"phone_number": "+14155550123"}]
)
async def test_a_field_that_users_may_not_set_refuses_the_whole_call(
    auth: RunningAuth, person: Person, fields: dict[str, Any]
) -> None:
    [name] = fields
    call = updating(person, by=person, username=new_name(), **fields)
    masked = updating(person, by=person, mask=[name])
    for arguments in (call, masked):
        refused = await refusal(auth.users.UpdateUser(**arguments))
        assert isinstance(refused, PermissionDenied)
        assert refused.reason == reasons.ERROR_REASON_FIELD_NOT_ALLOWED
        assert refused.metadata == {"field": name}
    assert (await auth.me(person.tokens.access_token)).username == person.username


async def test_not_even_an_administrator_sets_a_phone_number(auth: RunningAuth, admin: Person) -> None:
    refused = await refusal(auth.users.UpdateUser(**updating(admin, by=admin, phone_number="+14155550123")))
    assert refused.metadata == {"field": "phone_number"}


async def test_a_mask_that_names_nothing_of_an_account_or_nothing_set_is_refused(auth: RunningAuth, person: Person) -> None:
    for mask in (["password_hash"], ["username"], ["x" * 500], ["user.username"]):
        refused = await refusal(auth.users.UpdateUser(**updating(person, by=person, mask=mask)))
        assert isinstance(refused, InvalidArgument)
    empty = await auth.users.UpdateUser(**updating(person, by=person))
    assert empty.username == person.username


async def test_names_stay_unique_when_many_want_one_at_once(auth: RunningAuth, start_auth: StartAuth) -> None:
    second = await start_auth()
    people = [await auth.register() for _ in range(10)]
    name = new_name()
    calls = [
        (auth, second)[index % 2].users.UpdateUser(
            **updating(one, by=one, username=name.upper() if index % 3 else name, email=f"{name}@example.net")
        )
        for index, one in enumerate(people)
    ]
    done = await asyncio.gather(*calls, return_exceptions=True)
    refused = [from_rpc_error(one) for one in done if isinstance(one, grpc.aio.AioRpcError)]
    assert len(refused) == 9
    assert all(isinstance(one, AlreadyExists) for one in refused)
    taken = {reasons.ERROR_REASON_USERNAME_TAKEN, reasons.ERROR_REASON_EMAIL_TAKEN}
    assert {one.reason for one in refused} <= taken
    assert await auth.execute("select count(*) from users where username_key = %s", name) == [(1,)]


async def test_users_are_listed_by_what_an_administrator_asks_for(auth: RunningAuth, admin: Person) -> None:
    mark = uuid.uuid4().hex[:12]
    people = [await auth.register(f"{mark}-{index}") for index in range(5)]
    await auth.users.UpdateUser(**updating(people[0], by=admin, is_active=False))
    await auth.users.UpdateUser(**updating(people[1], by=admin, is_admin=True))
    newest_first = [one.id for one in reversed(people)]
    with auth.noted_statements() as statements:
        found = await listed(auth, admin, prefix=mark.upper())
    assert [one.id for one in found.users] == newest_first
    assert len(statements) == 1
    assert [one.id for one in (await listed(auth, admin, prefix=mark, is_active=False)).users] == [people[0].id]
    assert [one.id for one in (await listed(auth, admin, prefix=mark, is_admin=True)).users] == [people[1].id]
    assert [one.id for one in (await listed(auth, admin, prefix=f"{mark}-4@")).users] == [people[4].id]
    assert (await listed(auth, admin, prefix=f"{mark}%")).users == []
    pages, token = list[str](), ""
    while True:
        page = await listed(auth, admin, prefix=mark, page_size=2, page_token=token)
        pages += [one.id for one in page.users]
        token = page.next_page_token
        if not token:
            break
    assert pages == newest_first
    long = "x" * 60 + uuid.uuid4().hex
    for number in range(2):
        values = (f"{long}{number}@example.com", uuid.uuid4().hex)
        await auth.execute("insert into users (email, username, password_hash) values (%s, %s, '')", *values)
    begun = await listed(auth, admin, prefix=long, page_size=1)
    rest = await listed(auth, admin, prefix=long, page_size=1, page_token=begun.next_page_token)
    assert [one.email for one in (*begun.users, *rest.users)] == [f"{long}{number}@example.com" for number in (1, 0)]
    first = await listed(auth, admin, prefix=mark, page_size=2)
    for changed in ({"prefix": mark, "is_admin": True}, {"prefix": ""}):
        refused = await refusal(listed(auth, admin, page_token=first.next_page_token, **changed))
        assert refused.reason == reasons.ERROR_REASON_INVALID_PAGE_TOKEN


async def test_a_deactivated_users_tokens_stop_at_once_and_come_back_with_a_sign_in(
    auth: RunningAuth, start_auth: StartAuth, admin: Person, person: Person
) -> None:
    second = await start_auth()
    tokens = auth.service_tokens("chat")
    before = (*await tokens.as_metadata("auth"), *bearer(await tokens.for_user(person.id, "auth")))
    mine = user_pb2.GetPreferencesRequest(user_id="me")
    await auth.users.GetPreferences(mine, metadata=before)
    changed = await auth.users.UpdateUser(**updating(person, by=admin, is_active=False))
    assert not changed.is_active
    for metadata in (person.metadata, before):
        refused = await refusal(auth.users.GetPreferences(mine, metadata=metadata))
        assert isinstance(refused, Unauthenticated)
        assert refused.reason == reasons.ERROR_REASON_SESSION_ENDED

    async def refused_elsewhere() -> ServiceError | None:
        try:
            await second.users.GetPreferences(mine, metadata=before)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
        return None

    told = await until(refused_elsewhere, within_seconds=PATIENCE_SECONDS)
    assert told is not None
    assert told.reason == reasons.ERROR_REASON_SESSION_ENDED
    assert (await refusal(auth.refresh(person.tokens.refresh_token))).reason == reasons.ERROR_REASON_REFRESH_TOKEN_INVALID
    assert (await refusal(auth.login(person.username))).reason == reasons.ERROR_REASON_USER_INACTIVE
    fresh = auth.service_tokens("chat")
    with pytest.raises(PermissionDenied):
        await fresh.for_user(person.id, "auth")
    await auth.users.UpdateUser(**updating(person, by=admin, is_active=True))
    assert await auth.is_signed_in((await auth.login(person.username)).access_token)
    anew = (*await fresh.as_metadata("auth"), *bearer(await fresh.for_user(person.id, "auth")))
    await auth.users.GetPreferences(mine, metadata=anew)
    assert (await refusal(auth.users.GetPreferences(mine, metadata=before))).reason == reasons.ERROR_REASON_SESSION_ENDED


async def test_a_role_that_is_lost_is_in_no_token_any_more(auth: RunningAuth, admin: Person) -> None:
    other = await auth.administrator()
    await listed(auth, other)
    await auth.users.UpdateUser(**updating(other, by=admin, is_admin=False))
    refused = await refusal(listed(auth, other))
    assert refused.reason == reasons.ERROR_REASON_SESSION_ENDED
    again = Person(other.id, other.username, other.email, await auth.login(other.username))
    assert isinstance(await refusal(listed(auth, again)), PermissionDenied)


async def test_the_last_administrator_stays_one(own_database: ServiceDatabase, tmp_path: Any) -> None:
    async with running_auth(own_database, make_settings(own_database, tmp_path)) as alone:
        first, second = await alone.administrator(), await alone.administrator()
        changes: tuple[dict[str, Any], ...] = ({"is_admin": False}, {"is_active": False})
        at_once = await asyncio.gather(
            alone.users.UpdateUser(**updating(first, by=first, **changes[0])),
            alone.users.UpdateUser(**updating(second, by=second, **changes[1])),
            return_exceptions=True,
        )
        refused = [from_rpc_error(one) for one in at_once if isinstance(one, grpc.aio.AioRpcError)]
        assert len(refused) == 1
        assert isinstance(refused[0], FailedPrecondition)
        assert refused[0].reason == reasons.ERROR_REASON_LAST_ADMINISTRATOR
        left = first if refused[0].metadata["user_id"] == first.id else second
        for change in changes:
            again = await refusal(alone.users.UpdateUser(**updating(left, by=left, **change)))
            assert again.reason == reasons.ERROR_REASON_LAST_ADMINISTRATOR
        deleting = user_pb2.DeleteUserRequest(user_id="me")
        kept = await refusal(alone.users.DeleteUser(deleting, metadata=left.metadata))
        assert kept.reason == reasons.ERROR_REASON_LAST_ADMINISTRATOR
        assert await alone.is_signed_in(left.tokens.access_token)


async def test_the_audit_log_says_who_did_what_without_secrets(auth: RunningAuth, admin: Person) -> None:
    person = await auth.register()
    await refusal(auth.login(person.username, "a wrong one"))
    await auth.login(person.username)
    await auth.users.UpdateUser(**updating(person, by=admin, username=new_name()))
    change = auth_pb2.ChangePasswordRequest(current_password=PASSWORD, new_password="another good one")
    await auth.auth.ChangePassword(change, metadata=person.metadata)
    request = user_pb2.ListAuditEventsRequest(user_id=person.id)
    with auth.noted_statements() as statements:
        found = (await auth.users.ListAuditEvents(request, metadata=admin.metadata)).events
    assert len(statements) == 1
    kinds = ["password_changed", "user_updated", "signed_in", "sign_in_refused", "registered"]
    assert [one.kind for one in found] == kinds
    assert [one.actor_id for one in found][:2] == [person.id, admin.id]
    assert list(found[1].details) == ["username"]
    assert list(found[3].details) == ["wrong_password"]
    assert {one.address for one in found} == {"127.0.0.1"}
    told = str(found)
    for secret in (PASSWORD, "a wrong one", person.username, person.email, person.tokens.refresh_token):
        assert secret not in told
    pages = [
        (await auth.users.ListAuditEvents(asked, metadata=admin.metadata))
        for asked in (
            user_pb2.ListAuditEventsRequest(user_id=person.id, page_size=4),
            user_pb2.ListAuditEventsRequest(user_id=person.id, kind="signed_in"),
        )
    ]
    assert [one.kind for one in pages[0].events] == kinds[:4]
    asked = user_pb2.ListAuditEventsRequest(user_id=person.id, page_token=pages[0].next_page_token)
    assert [one.kind for one in (await auth.users.ListAuditEvents(asked, metadata=admin.metadata)).events] == kinds[4:]
    assert [one.kind for one in pages[1].events] == ["signed_in"]
    wrong = user_pb2.ListAuditEventsRequest(page_token=pages[0].next_page_token)
    refused = await refusal(auth.users.ListAuditEvents(wrong, metadata=admin.metadata))
    assert refused.reason == reasons.ERROR_REASON_INVALID_PAGE_TOKEN


async def test_the_audit_log_is_kept_as_long_as_it_is_set_to_be(auth: RunningAuth, person: Person) -> None:
    await auth.execute("update audit_events set event_time = now() - interval '366 d' where user_id = %s", person.id)
    await auth.assembly.upkeep.sweep()
    assert await auth.execute("select 1 from audit_events where user_id = %s", person.id) == []
