"""When the verifier asks for keys, and what it says while there are none."""

import asyncio
import uuid
from typing import Any

import pytest

from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import DeadlineExceeded, ServiceError, Unauthenticated, Unavailable
from services.runtime.identity import TokenVerifier
from tests.issuer import Issuer

USER = str(uuid.uuid4())


class _Keys:
    """Keys that can be had, or not, and count who asks."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.error: ServiceError | None = None
        self.fetches = 0

    async def public_keys(self) -> Any:
        self.fetches += 1
        await asyncio.sleep(0.02)
        if self.error is not None:
            raise self.error
        return await self.issuer.public_keys()


@pytest.mark.parametrize("kind", [Unavailable, DeadlineExceeded])
async def test_keys_that_cannot_be_had_are_asked_for_once_a_second(trusted: Issuer, kind: type[ServiceError]) -> None:
    keys = _Keys(trusted)
    keys.error = kind("Away.", reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE)
    verifier = TokenVerifier(audience="chat", keys=keys, ended=trusted)
    many = [verifier.verify(dict(trusted.as_user(USER))) for _ in range(20)]
    assert {type(one) for one in await asyncio.gather(*many, return_exceptions=True)} == {Unavailable}
    assert keys.fetches == 1
    keys.error = None
    await asyncio.sleep(1.05)
    assert (await verifier.verify(dict(trusted.as_user(USER)))).user_id == USER


async def test_made_up_key_ids_ask_for_keys_once_a_second_and_a_new_key_is_found(trusted: Issuer) -> None:
    keys = _Keys(trusted)
    verifier = TokenVerifier(audience="chat", keys=keys, ended=trusted)
    await verifier.verify(dict(trusted.as_user(USER)))
    for number in range(50):
        token = trusted.sign({"aud": "parley", "sub": USER, "sid": "s"}, kid=f"made-up-{number}")
        with pytest.raises(Unauthenticated):
            await verifier.verify({"authorization": f"Bearer {token}"})
    assert keys.fetches == 1
    trusted.key_id = "the-next-key"
    await asyncio.sleep(1.05)
    assert (await verifier.verify(dict(trusted.as_user(USER)))).user_id == USER
    assert keys.fetches == 2


async def test_a_new_key_while_auth_is_away_is_not_called_invalid(trusted: Issuer) -> None:
    keys = _Keys(trusted)
    verifier = TokenVerifier(audience="chat", keys=keys, ended=trusted)
    old = dict(trusted.as_user(USER))
    await verifier.verify(old)
    keys.error, trusted.key_id = Unavailable("Away.", reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE), "the-next-key"
    await asyncio.sleep(1.05)
    with pytest.raises(Unavailable):
        await verifier.verify(dict(trusted.as_user(USER)))
    assert (await verifier.verify(old)).user_id == USER
