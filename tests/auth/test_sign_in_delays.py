"""Sign-ins that fail are slowed, by name and by address, in every process; nobody locks somebody else out."""

import asyncio
import unicodedata
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from parley.auth.v1 import auth_pb2, user_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.auth.passwords import Checked, HashCost, Passwords
from services.auth.sign_in_delays import lowered
from services.runtime.errors import ResourceExhausted, ServiceError
from suite.databases import ServiceDatabase
from tests.auth.harness import (
    CALL_SECONDS,
    PASSWORD,
    RunningAuth,
    besides,
    make_settings,
    new_name,
    refusal,
    running_auth,
    until,
    who_waits,
)

StartAuth = Callable[..., Awaitable[RunningAuth]]
WRONG = "a wrong password"
HOME, ELSEWHERE = "203.0.113.7", "198.51.100.9"


@pytest.fixture
async def strict(own_database: ServiceDatabase, tmp_path: Path) -> AsyncIterator[RunningAuth]:
    """Auth with few free failures, on a database of its own."""
    settings = make_settings(
        own_database,
        tmp_path,
        sign_in_free_failures=3,
        sign_in_free_failures_per_address=8,
        sign_in_free_failures_per_name=6,
    )
    async with running_auth(own_database, settings) as auth:
        yield auth


async def fail(auth: RunningAuth, name: str, address: str = HOME, password: str = WRONG) -> ServiceError:
    return await refusal(auth.login(name, password, **{"x-forwarded-for": address}))


async def sign_in(auth: RunningAuth, name: str, address: str = HOME) -> auth_pb2.TokenPair:
    return await auth.login(name, **{"x-forwarded-for": address})


async def pass_time(auth: RunningAuth, seconds: float) -> None:
    await auth.execute(
        "update sign_in_failures set delay_until = delay_until - make_interval(secs => %s),"
        " update_time = update_time - make_interval(secs => %s)",
        seconds,
        seconds,
    )


async def statements_about(noted: list[tuple[str, Any]], part: str) -> bool:
    return any(part in statement for statement, _ in noted)


@pytest.mark.parametrize("is_known", [True, False])
async def test_after_a_few_failures_each_doubles_the_wait(strict: RunningAuth, *, is_known: bool) -> None:
    name = (await strict.register()).username if is_known else new_name()
    for _ in range(4):
        assert (await fail(strict, name)).reason == reasons.ERROR_REASON_CREDENTIALS_WRONG
    for seconds in (1, 2):
        # A right password that comes too early is not looked at.
        refused = await fail(strict, name.upper(), password=PASSWORD)
        assert isinstance(refused, ResourceExhausted)
        assert refused.reason == reasons.ERROR_REASON_SIGN_IN_DELAYED
        assert refused.metadata == {"seconds": str(seconds)}
        assert refused.retry_delay_seconds is not None
        assert seconds - 1 < refused.retry_delay_seconds <= seconds
        await pass_time(strict, seconds)
        assert (await fail(strict, name)).reason == reasons.ERROR_REASON_CREDENTIALS_WRONG


@pytest.mark.parametrize(("small", "great"), [("ida", "İDA"), ("kim", "\N{KELVIN SIGN}IM"), ("οδοσ", "ΟΔΟΣ")])
async def test_a_name_has_its_free_failures_once_however_it_is_spelt(strict: RunningAuth, small: str, great: str) -> None:
    rest = uuid.uuid4().hex
    for name in (small, great, small, great):
        assert (await fail(strict, f"{name}-{rest}")).reason == reasons.ERROR_REASON_CREDENTIALS_WRONG
    # For longer than a test lasts.
    await strict.execute(
        "update sign_in_failures set delay_until = now() + interval '1 hour' where failures > 3 and key <> name_key"
    )
    assert (await fail(strict, f"{great}-{rest}")).reason == reasons.ERROR_REASON_SIGN_IN_DELAYED


async def test_letters_are_made_small_as_the_database_does_it(auth: RunningAuth) -> None:
    query = "select chr(i), lower(chr(i)) from generate_series(1, x'10ffff'::int) i where i not between 55296 and 57343"
    found = await auth.execute(f"select * from ({query}) letters (great, small) where great <> small")  # noqa: S608
    assert len(found) > 1_000
    # Of letters that Postgres knows and this Python does not yet, nothing is asked.
    assert [great for great, small in found if lowered(great) != small and unicodedata.category(great) != "Cn"] == []


async def test_a_right_password_in_time_forgets_the_failures(strict: RunningAuth) -> None:
    person = await strict.register()
    for _ in range(2):
        for _ in range(3):
            await fail(strict, person.username)
        await sign_in(strict, person.username)
    await pass_time(strict, 3_601)
    for _ in range(4):
        await fail(strict, person.email)
    assert (await fail(strict, person.email)).reason == reasons.ERROR_REASON_SIGN_IN_DELAYED
    await pass_time(strict, 3_601)
    assert (await fail(strict, person.email)).reason == reasons.ERROR_REASON_CREDENTIALS_WRONG


async def test_an_attack_from_elsewhere_does_not_keep_its_victim_out(strict: RunningAuth) -> None:
    person = await strict.register()
    await sign_in(strict, person.username)
    for number in range(7):
        await fail(strict, person.username, f"198.51.100.{number}")
    # From an address that is not known the name is slowed, and at home nothing is.
    assert (await fail(strict, person.username, ELSEWHERE)).reason == reasons.ERROR_REASON_SIGN_IN_DELAYED
    await sign_in(strict, person.username)
    assert await strict.refresh(person.tokens.refresh_token)
    assert await strict.is_signed_in(person.tokens.access_token)
    # And after a minute at most somebody is let through anywhere.
    await pass_time(strict, 60)
    await sign_in(strict, person.username, ELSEWHERE)


async def test_an_address_that_tries_many_names_is_slowed_for_all(strict: RunningAuth) -> None:
    person = await strict.register()
    for _ in range(9):
        await fail(strict, new_name(), "2001:db8::1")
    delayed = await fail(strict, person.username, "2001:db8::2", PASSWORD)
    assert delayed.reason == reasons.ERROR_REASON_SIGN_IN_DELAYED
    await sign_in(strict, person.username, "2001:db8:0:1::1")


async def test_only_the_last_word_of_an_edge_says_where_a_call_comes_from(
    strict: RunningAuth, own_database: ServiceDatabase, tmp_path: Path
) -> None:
    name = (await strict.register()).username
    for number in range(4):
        await fail(strict, name, f"192.0.2.{number}, {HOME}")
    assert (await fail(strict, name, f"192.0.2.99, {HOME}")).reason == reasons.ERROR_REASON_SIGN_IN_DELAYED
    outside = make_settings(own_database, tmp_path, edge_networks="10.0.0.0/8", sign_in_free_failures=3)
    async with running_auth(own_database, outside) as unbelieving:
        other = (await strict.register()).username
        for number in range(4):
            await fail(unbelieving, other, f"192.0.2.{number}")
        assert (await fail(unbelieving, other, "192.0.2.50")).reason == reasons.ERROR_REASON_SIGN_IN_DELAYED
    behind = make_settings(own_database, tmp_path, edge_proxies=1, sign_in_free_failures=3)
    async with running_auth(own_database, behind) as proxied:
        third = (await strict.register()).username
        for number in range(4):
            await fail(proxied, third, f"192.0.2.77, 10.0.0.{number}")
        assert (await fail(proxied, third, "192.0.2.77, 10.0.0.9")).reason == reasons.ERROR_REASON_SIGN_IN_DELAYED


async def test_failures_are_counted_by_all_processes_and_at_once(
    strict: RunningAuth, own_database: ServiceDatabase, tmp_path: Path
) -> None:
    name = (await strict.register()).username
    settings = make_settings(own_database, tmp_path, sign_in_free_failures=3, sign_in_free_failures_per_name=6)
    async with running_auth(own_database, settings) as second:
        done = await asyncio.gather(*(fail(auth, name) for auth in (strict, second) for _ in range(30)))
        told = [one.reason for one in done]
        # What was being hashed, or about to be, when the failures became known may have been too many: two threads each.
        assert 4 <= told.count(reasons.ERROR_REASON_CREDENTIALS_WRONG) <= 20
        assert set(told) == {reasons.ERROR_REASON_CREDENTIALS_WRONG, reasons.ERROR_REASON_SIGN_IN_DELAYED}


async def test_a_success_while_the_delay_is_looked_at_delays_nobody(strict: RunningAuth) -> None:
    """What a success notes is later than the begin of every transaction that is open."""
    name = (await strict.register()).username
    await sign_in(strict, name)
    async with await psycopg.AsyncConnection.connect(strict.database.migration_url) as other:
        await other.execute("select set_config('parley.scope', 'service', true)")
        await other.execute("lock table sign_in_failures in access exclusive mode")
        with strict.noted_statements() as statements:
            signing = asyncio.create_task(sign_in(strict, name))
            await until(lambda: statements_about(statements, "sign_in_failures"))
        await asyncio.sleep(0.1)
        await other.execute("update sign_in_failures set delay_until = clock_timestamp() - interval '1 millisecond'")
        await other.commit()
    assert (await signing).access_token


@pytest.mark.parametrize("is_known", [True, False])
async def test_who_leaves_before_the_answer_is_counted_all_the_same(
    own_database: ServiceDatabase, tmp_path: Path, *, is_known: bool
) -> None:
    slow = make_settings(
        own_database, tmp_path, sign_in_free_failures=2, argon2_time_cost=30, argon2_memory_kib=16_384, argon2_parallelism=1
    )
    async with running_auth(own_database, slow) as auth:
        name = (await auth.register()).username if is_known else new_name()
        for number in range(3):
            with auth.noted_statements() as statements:
                request = auth_pb2.LoginRequest(username=name, password=f"guess {number}")
                call = auth.auth.Login(request, timeout=CALL_SECONDS)
                # Its turn has come: the delay is looked at, and the hash is next.
                await until(lambda: statements_about(statements, "sign_in_failures"))
                assert call.cancel()
            # Counted, and nothing of it is left that the next one's statements could be taken for.
            counted = "select 1 from sign_in_failures where failures = %s and key <> name_key"
            await until(lambda: auth.execute(counted, number + 1))  # noqa: B023
        assert await auth.execute("select count(*) from audit_events where kind = 'sign_in_refused'") == [(3,)]
        await auth.execute("update sign_in_failures set delay_until = now() + interval '1 hour'")
        assert (await fail(auth, name, "127.0.0.1")).reason == reasons.ERROR_REASON_SIGN_IN_DELAYED


async def test_a_hash_that_nobody_waits_for_keeps_its_turn() -> None:
    passwords = Passwords(HashCost(30, 16_384, 1), threads=1, most_waiting=5, wait_seconds=CALL_SECONDS)
    done, begun = list[str](), asyncio.Event()

    async def check(who: str) -> None:
        async def first() -> None:
            done.append(f"{who} began")
            begun.set()

        async def then(checked: Checked) -> None:
            done.append(f"{who} was {checked.is_right}")

        await passwords.check(who, None, first=first, then=then)

    leaving = asyncio.create_task(check("one"))
    await begun.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    assert done == ["one began"]
    await check("two")
    assert done == ["one began", "one was False", "two began", "two was False"]
    begun.clear()
    leaving = asyncio.create_task(check("three"))
    await begun.wait()
    leaving.cancel()
    await passwords.close()
    assert done[4:] == ["three began", "three was False"]


async def password_token(auth: RunningAuth, user_id: str) -> str:
    request = user_pb2.CreatePasswordTokenRequest(user_id=user_id)
    answer = await auth.users.CreatePasswordToken(request, metadata=(await auth.administrator()).metadata)
    return answer.token


async def set_password(auth: RunningAuth, token: str) -> None:
    request = auth_pb2.SetPasswordRequest(token=token, new_password="another good one")
    await auth.auth.SetPassword(request, timeout=CALL_SECONDS)


async def test_counting_and_forgetting_at_once_do_not_lock_each_other_out(strict: RunningAuth) -> None:
    person = await strict.register()
    token = await password_token(strict, person.id)
    await strict.execute("delete from sign_in_failures")
    await fail(strict, person.username)
    # As they may lie after many changes: whoever takes them as they lie takes the last key first.
    await strict.execute(
        "with gone as (delete from sign_in_failures returning *) insert into sign_in_failures select * from gone"
        " order by key desc"
    )
    lock = b"select from sign_in_failures where name_key is not null order by key%s limit 1 for update"
    async with besides(strict) as counting:
        await counting.execute(lock % b"")
        setting = asyncio.create_task(set_password(strict, token))
        await until(lambda: who_waits(strict))
        await counting.execute(lock % b" desc")
        await counting.commit()
        await setting
    assert await strict.execute("select 1 from sign_in_failures where name_key is not null") == []


async def test_a_password_is_set_though_the_failures_could_not_be_forgotten(strict: RunningAuth) -> None:
    person = await strict.register()
    await fail(strict, person.username)
    async with besides(strict) as counting:
        await counting.execute("select from sign_in_failures for update")
        token = await password_token(strict, person.id)
        setting = asyncio.create_task(set_password(strict, token))
        [(waiting,)] = await until(lambda: who_waits(strict))
        await strict.execute("select pg_terminate_backend(%s)", waiting)
        await setting
    assert await strict.login(person.username, "another good one")


async def test_a_stolen_session_does_not_guess_the_password(strict: RunningAuth) -> None:
    person = await strict.register()

    async def change(password: str) -> ServiceError:
        request = auth_pb2.ChangePasswordRequest(current_password=password, new_password="another good one")
        return await refusal(strict.auth.ChangePassword(request, metadata=person.metadata))

    for _ in range(4):
        assert (await change(WRONG)).reason == reasons.ERROR_REASON_CREDENTIALS_WRONG
    assert (await change(PASSWORD)).reason == reasons.ERROR_REASON_SIGN_IN_DELAYED


async def test_what_is_stored_names_nobody_and_goes(strict: RunningAuth) -> None:
    name = (await strict.register()).username
    await fail(strict, name)
    await sign_in(strict, name, ELSEWHERE)
    rows = str(await strict.execute("select encode(key, 'escape'), encode(name_key, 'escape') from sign_in_failures"))
    assert name not in rows
    assert HOME not in rows
    await pass_time(strict, 3_601)
    await strict.assembly.upkeep.sweep()
    assert await strict.execute("select failures, success_time is not null from sign_in_failures") == [(0, True)]
    await strict.execute("update sign_in_failures set success_time = now() - interval '31 days'")
    await strict.assembly.upkeep.sweep()
    assert await strict.execute("select 1 from sign_in_failures") == []
