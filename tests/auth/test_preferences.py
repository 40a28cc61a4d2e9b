"""UserService: what a user prefers, for the user alone; a service reads it on the user's behalf."""

import asyncio
import uuid
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import insert, select
from sqlalchemy.exc import ProgrammingError

from parley.auth.v1 import auth_pb2, user_pb2, user_pb2_grpc
from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.schema import preferences
from services.runtime.database import open_database
from services.runtime.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from tests.auth.harness import CALL_SECONDS, Metadata, Person, RunningAuth, bearer, refusal

EVERYTHING: dict[str, Any] = {
    "language": "pt-BR",
    "tts_voice": "luciana",
    "auto_reply_enabled": True,
    "notifications_enabled": False,
    "conversation_timeout_seconds": 900,
    "model": "gpt-5-mini",
    "reasoning_effort": "low",
    "memory_enabled": False,
    "instructions": "Call me Ana.",
}


class Preferring:
    """A person's way to the preferences, by any identity."""

    def __init__(self, auth: RunningAuth, metadata: Metadata) -> None:
        self._stub = user_pb2_grpc.UserServiceStub(auth.channel)
        self._metadata = metadata

    async def create(self, user_id: str = "me", **fields: Any) -> user_pb2.Preferences:
        asked = user_pb2.CreatePreferencesRequest(user_id=user_id, preferences=user_pb2.Preferences(**fields))
        return await self._stub.CreatePreferences(asked, metadata=self._metadata, timeout=CALL_SECONDS)

    async def get(self, user_id: str = "me") -> user_pb2.Preferences:
        asked = user_pb2.GetPreferencesRequest(user_id=user_id)
        return await self._stub.GetPreferences(asked, metadata=self._metadata, timeout=CALL_SECONDS)

    async def update(self, *mask: str, user_id: str = "me", **fields: Any) -> user_pb2.Preferences:
        asked = user_pb2.UpdatePreferencesRequest(user_id=user_id, preferences=user_pb2.Preferences(**fields))
        if mask:
            asked.update_mask.CopyFrom(FieldMask(paths=mask))
        return await self._stub.UpdatePreferences(asked, metadata=self._metadata, timeout=CALL_SECONDS)

    async def delete(self, user_id: str = "me") -> None:
        asked = user_pb2.DeletePreferencesRequest(user_id=user_id)
        await self._stub.DeletePreferences(asked, metadata=self._metadata, timeout=CALL_SECONDS)


@pytest.fixture
def mine(auth: RunningAuth, person: Person) -> Preferring:
    return Preferring(auth, person.metadata)


def said(found: user_pb2.Preferences) -> dict[str, Any]:
    return {field.name: value for field, value in found.ListFields() if not field.name.endswith("_time")}


async def test_who_said_nothing_has_the_defaults(mine: Preferring, person: Person) -> None:
    found = await mine.get()
    assert said(found) == {"user_id": person.id}
    assert not found.HasField("create_time")


async def test_what_is_created_is_read_again(mine: Preferring, person: Person) -> None:
    created = await mine.create(**EVERYTHING)
    assert said(created) == {"user_id": person.id, **EVERYTHING}
    assert created.create_time == created.update_time
    assert await mine.get() == created
    assert await mine.get(person.id) == created


async def test_a_value_that_is_false_is_not_an_absent_one(mine: Preferring) -> None:
    created = await mine.create(memory_enabled=False, language="en")
    assert created.HasField("memory_enabled")
    assert not created.HasField("auto_reply_enabled")


async def test_preferences_are_created_once_also_by_two_at_once(mine: Preferring) -> None:
    answers = await asyncio.gather(*(mine.create(language="en") for _ in range(2)), return_exceptions=True)
    assert sorted(isinstance(answer, user_pb2.Preferences) for answer in answers) == [False, True]
    refused = await refusal(mine.create(language="de"))
    assert isinstance(refused, AlreadyExists)
    assert refused.reason == reasons.ERROR_REASON_PREFERENCES_EXIST
    assert (await mine.get()).language == "en"


async def test_an_update_without_a_mask_changes_what_is_set(mine: Preferring) -> None:
    created = await mine.create(**EVERYTHING)
    updated = await mine.update(language="en", memory_enabled=True)
    assert said(updated) == said(created) | {"language": "en", "memory_enabled": True}
    assert updated.create_time == created.create_time
    assert updated.update_time.ToNanoseconds() > created.update_time.ToNanoseconds()


async def test_an_update_with_a_mask_changes_what_it_names_and_resets_what_is_absent(mine: Preferring) -> None:
    await mine.create(**EVERYTHING)
    updated = await mine.update("language", "instructions", language="en", tts_voice="not named")
    assert said(updated) == {name: EVERYTHING[name] for name in EVERYTHING if name != "instructions"} | {
        "user_id": updated.user_id,
        "language": "en",
    }


async def test_an_empty_text_takes_a_preference_away(mine: Preferring) -> None:
    await mine.create(**EVERYTHING)
    assert not (await mine.update(instructions="")).HasField("instructions")


async def test_an_update_creates_what_is_not_there(mine: Preferring, person: Person) -> None:
    assert said(await mine.update(language="en")) == {"user_id": person.id, "language": "en"}
    assert (await mine.get()).language == "en"


async def test_an_update_is_one_statement(auth: RunningAuth, mine: Preferring) -> None:
    with auth.noted_statements() as statements:
        await mine.update(language="en")
        await mine.get()
    assert len(statements) == 2


@pytest.mark.parametrize("path", ["user_id", "create_time", "update_time", "*", "nothing", ""])
async def test_a_mask_that_names_no_preference_is_refused(mine: Preferring, path: str) -> None:
    refused = await refusal(mine.update("language", path, language="en"))
    assert isinstance(refused, InvalidArgument)
    assert [violation.field for violation in refused.violations] == ["update_mask"]
    assert not (await mine.get()).HasField("language")


async def test_deleted_preferences_are_the_defaults_again(mine: Preferring, person: Person) -> None:
    await mine.create(**EVERYTHING)
    await mine.delete()
    await mine.delete()
    assert said(await mine.get()) == {"user_id": person.id}
    assert (await mine.create(language="en")).language == "en"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("language", "english please"),
        ("language", ""),
        ("tts_voice", "v" * 101),
        ("conversation_timeout_seconds", 59),
        ("conversation_timeout_seconds", 604_801),
        ("model", "a model"),
        ("reasoning_effort", "extreme"),
        ("instructions", "i" * 4_001),
    ],
)
async def test_preferences_out_of_bounds_are_refused_by_name(mine: Preferring, field: str, value: object) -> None:
    wrong: dict[str, Any] = {field: value}
    for call in (mine.create(**wrong), mine.update(**wrong)):
        refused = await refusal(call)
        assert refused.reason == reasons.ERROR_REASON_INVALID_REQUEST
        assert [violation.field for violation in refused.violations] == [f"preferences.{field}"]


async def test_the_longest_preferences_are_taken(mine: Preferring) -> None:
    longest: dict[str, Any] = {"tts_voice": "v" * 100, "instructions": "é" * 4_000, "conversation_timeout_seconds": 604_800}
    assert said(await mine.create(**longest)).items() >= longest.items()


async def test_nobody_reaches_somebody_elses_preferences(auth: RunningAuth, mine: Preferring, person: Person) -> None:
    await mine.create(**EVERYTHING)
    other = await auth.register()
    theirs = Preferring(auth, other.metadata)
    for call in (
        theirs.get(person.id),
        theirs.create(person.id, language="en"),
        theirs.update(user_id=person.id, language="en"),
        theirs.delete(person.id),
    ):
        refused = await refusal(call)
        assert isinstance(refused, PermissionDenied)
        assert refused.reason == reasons.ERROR_REASON_ACCESS_DENIED
    assert said(await theirs.get()) == {"user_id": other.id}
    assert said(await mine.get()) == {"user_id": person.id, **EVERYTHING}


async def test_an_administrator_reaches_only_their_own(auth: RunningAuth, mine: Preferring, person: Person) -> None:
    await mine.create(**EVERYTHING)
    admin = await auth.register()
    await auth.execute("update users set is_admin = true where id = %s", admin.id)
    theirs = Preferring(auth, bearer((await auth.login(admin.username)).access_token))
    for call in (theirs.get(person.id), theirs.update(user_id=person.id, language="en"), theirs.delete(person.id)):
        assert isinstance(await refusal(call), PermissionDenied)
    assert (await theirs.update(language="en")).user_id == admin.id
    assert (await mine.get()).language == EVERYTHING["language"]


async def test_without_an_identity_there_are_no_preferences(auth: RunningAuth) -> None:
    assert isinstance(await refusal(Preferring(auth, ()).get()), Unauthenticated)


async def acting_for(auth: RunningAuth, user_id: str) -> Metadata:
    tokens = auth.service_tokens("chat")
    token = await tokens.for_user(user_id, "auth")
    return (*await tokens.as_metadata("auth"), *bearer(token))


async def test_chat_reads_for_a_user_and_changes_nothing(auth: RunningAuth, mine: Preferring, person: Person) -> None:
    await mine.create(**EVERYTHING)
    chat = Preferring(auth, await acting_for(auth, person.id))
    assert said(await chat.get()) == {"user_id": person.id, **EVERYTHING}
    for call in (chat.update(language="en"), chat.delete(), chat.create(language="en")):
        refused = await refusal(call)
        assert isinstance(refused, PermissionDenied)
        assert refused.reason == reasons.ERROR_REASON_ACCESS_DENIED
    assert (await mine.get()).language == EVERYTHING["language"]


async def test_chat_sees_and_ends_no_sessions_of_the_user_it_acts_for(auth: RunningAuth, person: Person) -> None:
    metadata = await acting_for(auth, person.id)
    [session] = (await auth.auth.ListSessions(auth_pb2.ListSessionsRequest(), metadata=person.metadata)).sessions
    for call in (
        auth.auth.ListSessions(auth_pb2.ListSessionsRequest(), metadata=metadata),
        auth.auth.RevokeSession(auth_pb2.RevokeSessionRequest(session_id=session.id), metadata=metadata),
    ):
        assert (await refusal(call)).reason == reasons.ERROR_REASON_ACCESS_DENIED
    assert await auth.is_signed_in(person.tokens.access_token)


async def test_preferences_of_a_user_who_is_gone_are_not_written(
    auth: RunningAuth, person: Person, mine: Preferring
) -> None:
    await auth.execute("delete from users where id = %s", person.id)
    for call in (mine.create(language="en"), mine.update(language="en")):
        refused = await refusal(call)
        assert isinstance(refused, NotFound)
        assert refused.reason == reasons.ERROR_REASON_USER_NOT_FOUND
    assert said(await mine.get()) == {"user_id": person.id}


async def test_row_level_security_holds_preferences(auth: RunningAuth, mine: Preferring, person: Person) -> None:
    await mine.create(**EVERYTHING)
    other = await auth.register()
    database = open_database(auth.database.url, pool_size=1)
    try:
        async with database.transaction(user_id=other.id) as connection:
            assert (await connection.execute(select(preferences.c.user_id))).all() == []
            with pytest.raises(ProgrammingError, match="row-level security"):
                await connection.execute(insert(preferences).values(user_id=str(uuid.UUID(person.id))))
    finally:
        await database.close()
