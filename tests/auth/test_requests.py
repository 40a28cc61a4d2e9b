"""Requests that break the contract: every field of every RPC, one table."""

from typing import Any

import pytest

from parley.auth.v1 import auth_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import InvalidArgument
from tests.auth.harness import CREDENTIALS, PASSWORD, Person, RunningAuth, refusal

GOOD: dict[str, dict[str, Any]] = {
    "Register": {"username": "ana", "email": "ana@example.com", "password": PASSWORD},
    "Login": {"username": "ana", "password": PASSWORD},
    "RefreshTokens": {"refresh_token": "x"},
    "ChangePassword": {"current_password": PASSWORD, "new_password": PASSWORD},
    "ListSessions": {},
    "RevokeSession": {"session_id": "0199c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d"},
    "IssueServiceToken": {"workload": "chat", "credential": CREDENTIALS["chat"], "audience": "memory"},
    "ExchangeForUser": {"user_id": "0199c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d", "audience": "memory"},
}
BAD: list[tuple[str, str, Any]] = [
    ("Register", "username", ""),
    ("Register", "username", "an"),
    ("Register", "username", "a" * 51),
    ("Register", "username", "ana ana"),
    ("Register", "username", "ana@example.com"),
    ("Register", "username", "ana\0"),
    ("Register", "email", ""),
    ("Register", "email", "ana"),
    ("Register", "email", f"ana@{'x' * 250}.com"),
    ("Register", "password", ""),
    ("Register", "password", "seven77"),
    ("Register", "password", "p" * 201),
    ("Register", "password", "password\0"),
    ("Login", "username", ""),
    ("Login", "username", "a" * 255),
    ("Login", "username", "ana\0"),
    ("Login", "password", ""),
    ("Login", "password", "p" * 201),
    ("RefreshTokens", "refresh_token", ""),
    ("RefreshTokens", "refresh_token", "x" * 201),
    ("ChangePassword", "current_password", ""),
    ("ChangePassword", "current_password", "p" * 201),
    ("ChangePassword", "new_password", ""),
    ("ChangePassword", "new_password", "seven77"),
    ("ChangePassword", "new_password", "p" * 201),
    ("ListSessions", "page_size", -1),
    ("ListSessions", "page_token", "x" * 501),
    ("RevokeSession", "session_id", ""),
    ("RevokeSession", "session_id", "not-a-uuid"),
    ("RevokeSession", "session_id", "x" * 1_000),
    ("IssueServiceToken", "workload", ""),
    ("IssueServiceToken", "workload", "x" * 51),
    ("IssueServiceToken", "credential", ""),
    ("IssueServiceToken", "credential", "x" * 201),
    ("IssueServiceToken", "audience", ""),
    ("IssueServiceToken", "audience", "x" * 51),
    ("ExchangeForUser", "user_id", ""),
    ("ExchangeForUser", "user_id", "not-a-uuid"),
    ("ExchangeForUser", "audience", ""),
    ("ExchangeForUser", "audience", "x" * 51),
]


@pytest.fixture(scope="module")
async def somebody(auth: RunningAuth) -> Person:
    """One caller for the whole table: nothing here changes anything."""
    return await auth.register()


async def call(auth: RunningAuth, person: Person, rpc: str, fields: dict[str, Any]) -> Any:
    stub = auth.auth if hasattr(auth.auth, rpc) else auth.tokens
    metadata = person.metadata if stub is auth.auth else await auth.as_service("chat")
    return await getattr(stub, rpc)(getattr(auth_pb2, f"{rpc}Request")(**fields), metadata=metadata)


@pytest.mark.parametrize(("rpc", "field", "value"), BAD, ids=lambda value: str(value)[:20].replace("\0", "NUL"))
async def test_a_field_that_breaks_its_rule_is_named(
    auth: RunningAuth, somebody: Person, rpc: str, field: str, value: Any
) -> None:
    refused = await refusal(call(auth, somebody, rpc, {**GOOD[rpc], field: value}))
    assert isinstance(refused, InvalidArgument)
    assert refused.reason == reasons.ERROR_REASON_INVALID_REQUEST
    assert {violation.field for violation in refused.violations} == {field}


async def test_a_refusal_never_repeats_a_secret(auth: RunningAuth, person: Person) -> None:
    for rpc, fields in (("Register", {"password": "sekrit"}), ("Login", {"password": "sekrit" * 40})):
        refused = await refusal(call(auth, person, rpc, {**GOOD[rpc], **fields}))
        assert "sekrit" not in f"{refused.message}{refused.metadata}{refused.violations}"
