"""Rotation of the signing keys: known before they sign, known after, the same in every process."""

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import load_der_private_key

from parley.auth.v1 import auth_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import Unauthenticated
from services.runtime.identity import TokenVerifier
from services.runtime.sealing import Seal, SealError
from suite.databases import ServiceDatabase
from tests.auth.harness import SEALING_KEY, RunningAuth, make_settings, running_auth

DAY_SECONDS = 86_400
ROTATION_SECONDS = 30 * DAY_SECONDS
AHEAD_SECONDS = 3_600


@pytest.fixture
async def rotating(own_database: ServiceDatabase, tmp_path: Path) -> AsyncIterator[RunningAuth]:
    settings = make_settings(
        own_database,
        tmp_path,
        signing_key_rotation_seconds=ROTATION_SECONDS,
        signing_key_publish_ahead_seconds=AHEAD_SECONDS,
    )
    async with running_auth(own_database, settings) as auth:
        yield auth


async def pass_time(auth: RunningAuth, seconds: float) -> None:
    """Makes every key that much older, then does what the process does every minute."""
    await auth.execute("update signing_keys set activate_time = activate_time - make_interval(secs => %s)", seconds)
    await auth.assembly.keys.refresh()


async def published(auth: RunningAuth) -> list[str]:
    return [key.kid for key in (await auth.auth.GetJwks(auth_pb2.GetJwksRequest())).keys]


def kid_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


async def is_accepted(auth: RunningAuth, token: str) -> bool:
    """Whether a verifier that starts now takes the token."""
    verifier = TokenVerifier(audience="memory", keys=auth.assembly.keys, ended=auth.assembly.ended)
    try:
        await verifier.verify({"authorization": f"Bearer {token}"})
    except Unauthenticated as error:
        if error.reason != reasons.ERROR_REASON_TOKEN_INVALID:
            raise
        return False
    return True


async def test_a_key_is_published_before_it_signs_and_as_long_as_its_tokens_live(rotating: RunningAuth) -> None:
    person = await rotating.register()
    old = kid_of(person.tokens.access_token)
    assert await published(rotating) == [old]

    await pass_time(rotating, ROTATION_SECONDS - AHEAD_SECONDS + 1)
    _, new = await published(rotating)
    assert kid_of((await rotating.login(person.username)).access_token) == old

    await pass_time(rotating, AHEAD_SECONDS)
    tokens = await rotating.login(person.username)
    assert kid_of(tokens.access_token) == new
    assert await published(rotating) == [old, new]
    assert await is_accepted(rotating, person.tokens.access_token)
    assert (await rotating.me(person.tokens.access_token)).id == person.id

    await pass_time(rotating, 900 + 60)
    assert await published(rotating) == [new]
    assert not await is_accepted(rotating, person.tokens.access_token)
    assert await is_accepted(rotating, tokens.access_token)


async def test_a_key_signs_on_when_nobody_was_there_to_rotate_it(rotating: RunningAuth) -> None:
    person = await rotating.register()
    await pass_time(rotating, 3 * ROTATION_SECONDS)
    assert len(await published(rotating)) == 2
    tokens = await rotating.login(person.username)
    assert kid_of(tokens.access_token) == kid_of(person.tokens.access_token)
    await pass_time(rotating, AHEAD_SECONDS)
    assert kid_of((await rotating.login(person.username)).access_token) != kid_of(tokens.access_token)


async def test_of_several_processes_one_adds_the_next_key(rotating: RunningAuth, tmp_path: Path) -> None:
    async with running_auth(rotating.database, make_settings(rotating.database, tmp_path)) as second:
        passed = ROTATION_SECONDS - AHEAD_SECONDS + 1
        await rotating.execute("update signing_keys set activate_time = activate_time - make_interval(secs => %s)", passed)
        await asyncio.gather(*(auth.assembly.keys.refresh() for auth in (rotating, second) for _ in range(5)))
        assert len(await published(rotating)) == 2
        assert await published(rotating) == await published(second)


async def test_processes_that_start_at_once_agree_on_the_first_key(own_database: ServiceDatabase, tmp_path: Path) -> None:
    async def first_kid() -> tuple[str, ...]:
        async with running_auth(own_database, make_settings(own_database, tmp_path)) as auth:
            return tuple(await published(auth))

    kids = await asyncio.gather(*(first_kid() for _ in range(4)))
    assert len(set(kids)) == 1
    assert len(kids[0]) == 1


async def test_a_second_process_verifies_what_the_first_signed(rotating: RunningAuth, tmp_path: Path) -> None:
    person = await rotating.register()
    async with running_auth(rotating.database, make_settings(rotating.database, tmp_path)) as second:
        assert (await second.me(person.tokens.access_token)).id == person.id


def key(letter: bytes) -> str:
    return base64.b64encode(letter * 32).decode()


async def stored(auth: RunningAuth) -> list[tuple[str, bytes]]:
    rows = await auth.execute("select kid, private_key from signing_keys order by activate_time")
    return [(kid, bytes(held)) for kid, held in rows]


async def test_at_rest_the_keys_are_sealed_each_for_its_row(rotating: RunningAuth) -> None:
    await pass_time(rotating, ROTATION_SECONDS - AHEAD_SECONDS + 1)
    (first, held), (second, other) = await stored(rotating)
    seal = Seal([b"k" * 32])
    private = seal.open(held, context=f"signing key {first}".encode())
    assert load_der_private_key(private, password=None).public_key()
    for sealed, kid in ((held, second), (other, first)):
        with pytest.raises(SealError):
            seal.open(sealed, context=f"signing key {kid}".encode())


async def test_keys_of_an_earlier_release_are_sealed_at_the_next_start(
    own_database: ServiceDatabase, tmp_path: Path
) -> None:
    async with running_auth(own_database, make_settings(own_database, tmp_path)) as before:
        person = await before.register()
        [(kid, held)] = await stored(before)
        plain = Seal([b"k" * 32]).open(held, context=f"signing key {kid}".encode())
        await before.execute("update signing_keys set private_key = %s", plain)
    async with running_auth(own_database, make_settings(own_database, tmp_path)) as after:
        [(_, sealed)] = await stored(after)
        assert plain not in sealed
        assert Seal([b"k" * 32]).open(sealed, context=f"signing key {kid}".encode()) == plain
        assert await after.is_signed_in(person.tokens.access_token)


async def test_a_running_process_survives_a_sealing_key_that_it_does_not_know(
    own_database: ServiceDatabase, tmp_path: Path
) -> None:
    both = make_settings(own_database, tmp_path, sealing_key=f"{key(b'n')},{SEALING_KEY}")
    async with running_auth(own_database, make_settings(own_database, tmp_path)) as old:
        async with running_auth(own_database, both) as new:
            sealed = await stored(new)
            await old.assembly.keys.refresh()
            person = await old.register()
            assert await new.is_signed_in(person.tokens.access_token)
            assert await old.is_signed_in(person.tokens.access_token)
        # It leaves what it cannot open to those who can.
        await old.assembly.keys.refresh()
        assert await stored(old) == sealed
    async with running_auth(own_database, make_settings(own_database, tmp_path, sealing_key=key(b"n"))) as changed:
        assert await changed.is_signed_in(person.tokens.access_token)


async def test_through_three_deployments_each_process_opens_what_the_other_sealed(
    own_database: ServiceDatabase, tmp_path: Path
) -> None:
    """Of two that follow each other either may add a key while the other runs, or starts."""
    old, new = SEALING_KEY, key(b"n")
    for before, after in itertools.pairwise([old, f"{old},{new}", f"{new},{old}", new]):
        for adding, starting in ((before, after), (after, before)):
            async with running_auth(own_database, make_settings(own_database, tmp_path, sealing_key=adding)) as auth:
                await pass_time(auth, ROTATION_SECONDS)
                kids = await published(auth)
            async with running_auth(own_database, make_settings(own_database, tmp_path, sealing_key=starting)) as auth:
                assert await published(auth) == kids


async def test_the_sealing_key_is_changed_in_two_starts(own_database: ServiceDatabase, tmp_path: Path) -> None:
    async with running_auth(own_database, make_settings(own_database, tmp_path)) as before:
        person = await before.register()
    both = make_settings(own_database, tmp_path, sealing_key=f"{key(b'n')},{SEALING_KEY}")
    async with running_auth(own_database, both) as changing:
        assert await changing.is_signed_in(person.tokens.access_token)
    async with running_auth(own_database, make_settings(own_database, tmp_path, sealing_key=key(b"n"))) as changed:
        assert await changed.is_signed_in(person.tokens.access_token)
    with pytest.raises(SealError):
        async with running_auth(own_database, make_settings(own_database, tmp_path)):
            pass
