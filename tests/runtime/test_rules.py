"""Field rules: each kind, where it is reported, and that no input can bring the checker down."""

import random
import uuid
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError

from services.runtime.calls import NOBODY, Caller
from services.runtime.errors import InvalidArgument, PermissionDenied
from services.runtime.rules import check_request
from tests.runtime import probe
from tests.runtime.conftest import Serve
from tests.runtime.status import refused

USER = "0199bbbb-0000-7000-8000-000000000001"
ADMIN = Caller(user_id=USER, roles=frozenset({"user", "admin"}))
NAN = float("nan")


def broken(caller: Caller = NOBODY, **fields: Any) -> dict[str, str]:
    """The violations of a request, by field."""
    try:
        check_request(probe.request(**fields), caller)
    except InvalidArgument as error:
        return {one.field: one.description for one in error.violations}
    return {}


GOOD: dict[str, list[dict[str, Any]]] = {
    "text": [{}, {"text": "tab\tline\r\nfeed é 漢 🙂 \u0080\u200b"}],
    "length": [{"name": ""}, {"name": "ab"}, {"name": "abcde"}, {"name": "🙂🙂🙂🙂🙂"}, {"nickname": "x"}],
    "pattern": [{"code": "abc"}, {"code": "123"}, {"code": ""}],
    "in": [{"role": "user"}, {"role": "assistant"}, {"role": ""}],
    "uuid": [{"id": USER}, {"id": USER.upper()}, {"id": ""}, {"id": str(uuid.UUID(int=0))}],
    "email": [{"email": "ana@example.com"}, {"email": "é+x@a.b.c"}, {"email": ""}],
    "number": [{"temperature": 0}, {"temperature": 2}, {"sequence": -1}, {"sequence": 0}, {"ratio": 1}],
    "list": [{"tags": []}, {"tags": ["", "abcd", "x"]}, {"weights": [0, 1, 0.5]}],
    "map": [{"labels": {"any": "four", "": ""}}, {"parts_by_name": {"a": {"role": "user"}}}],
    "keys": [{"counts": {}}, {"counts": {"a": 1, "🙂🙂🙂": 2}}],
    "nested": [{"part": {"role": "user", "inner": {"role": "user"}}}, {"parts": [{"role": "user"}]}],
    "oneof": [{"first": ""}, {"first": "abc"}, {"second": {"role": "user"}}],
    "time": [{"time": {"seconds": 253_402_300_799, "nanos": 999_999_999}}, {"time": {"seconds": -62_135_596_800}}],
    "duration": [{"duration": {"seconds": -1, "nanos": -5}}, {"duration": {"nanos": 5}}],
    "caller": [{"user_id": ""}, {"user_id": "me"}],
    "needy": [
        {"needy": {"text": "x", "number": 1, "items": ["x"], "pairs": {"a": "b"}, "time": {"seconds": 1}, "place": 1}}
    ],
}
BAD: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"text": "a\0b"}, {"text": "control character"}),
    ({"text": "\x1b[2J"}, {"text": "control character"}),
    ({"text": "\x7f"}, {"text": "control character"}),
    ({"name": "a"}, {"name": "at least 2"}),
    ({"name": "abcdef"}, {"name": "at most 5"}),
    ({"name": "🙂🙂🙂🙂🙂🙂"}, {"name": "has 6 characters"}),
    ({"nickname": ""}, {"nickname": "at least 1"}),
    ({"code": "abc1"}, {"code": "lowercase letters or digits"}),
    ({"code": "abc\n"}, {"code": "lowercase letters or digits"}),
    ({"code": "123abc"}, {"code": "lowercase letters or digits"}),
    ({"role": "system"}, {"role": "one of user, assistant"}),
    ({"role": "User"}, {"role": "one of user, assistant"}),
    ({"id": "me"}, {"id": "UUID"}),
    ({"id": "0199bbbb000070008000000000000003"}, {"id": "UUID"}),
    # What uuid.UUID() of Python takes and Postgres does not.
    ({"id": "urn:0199bbbb000070008000000000000004"}, {"id": "UUID"}),
    ({"id": "0199bbbb000070008000000000000005----"}, {"id": "UUID"}),
    ({"id": "{{{{0199bbbb000070008000000000000006"}, {"id": "UUID"}),
    ({"id": "0x99c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d"}, {"id": "UUID"}),
    ({"id": "\u0660199c3f2-7d41-7a6e-9d0b-3c5e8f1a2b4d"}, {"id": "UUID"}),
    ({"id": f" {USER[1:]}"}, {"id": "UUID"}),
    ({"id": f"{USER}\n"}, {"id": "UUID"}),
    ({"email": "ana"}, {"email": "email"}),
    ({"email": "ana@example"}, {"email": "email"}),
    ({"email": "a b@example.com"}, {"email": "email"}),
    ({"email": "ana@example.com\n"}, {"email": "email"}),
    ({"email": "a@b@example.com"}, {"email": "email"}),
    ({"email": "ana@.com"}, {"email": "email"}),
    ({"temperature": -0.1}, {"temperature": "at least 0"}),
    ({"temperature": 2.1}, {"temperature": "at most 2"}),
    ({"temperature": NAN}, {"temperature": "must be at"}),
    ({"temperature": float("inf")}, {"temperature": "at most 2"}),
    ({"ratio": NAN}, {"ratio": "at most 1"}),
    ({"sequence": -2}, {"sequence": "at least -1"}),
    ({"tags": ["a"] * 4}, {"tags": "has 4 items, at most 3"}),
    ({"tags": ["a", "abcde", "\0"]}, {"tags[1]": "at most 4", "tags[2]": "control character"}),
    ({"weights": [0.5, NAN, 2]}, {"weights[1]": "must be at", "weights[2]": "at most 1"}),
    ({"labels": {"a": "b", "c": "d", "e": "f"}}, {"labels": "has 3 entries, at most 2"}),
    ({"labels": {"a": "abcde"}}, {"labels['a']": "at most 4"}),
    ({"labels": {"a\0": "b"}}, {"labels": "a key holds a control character"}),
    ({"counts": {"abcd": 1}}, {"counts": "a key has 4 characters, 1 to 3 are allowed"}),
    ({"counts": {"": 1}}, {"counts": "a key has 0 characters"}),
    ({"counts": {"a\0": 1}}, {"counts": "a key holds a control character"}),
    ({"parts_by_name": {"a": {"role": "x"}}}, {"parts_by_name['a'].role": "one of user"}),
    ({"parts_by_name": {"k\0": {"role": "user"}}}, {"parts_by_name": "a key holds a control character"}),
    ({"parts": [{"role": "user"}, {}]}, {"parts[1].role": "is required"}),
    ({"part": {"role": "user", "inner": {"inner": {"role": "user"}}}}, {"part.inner.role": "is required"}),
    ({"first": "abcd"}, {"first": "at most 3"}),
    ({"second": {}}, {"second.role": "is required"}),
    ({"time": {"seconds": 10**18}}, {"time": "between the years 1 and 9999"}),
    ({"time": {"nanos": -1}}, {"time": "between the years 1 and 9999"}),
    ({"duration": {"seconds": 10**18}}, {"duration": "at most 10,000 years"}),
    ({"duration": {"seconds": 1, "nanos": -1}}, {"duration": "one sign"}),
    ({"id": "x", "name": "a", "role": "y"}, {"id": "UUID", "name": "at least", "role": "one of"}),
    (
        {"needy": {}},
        {
            "needy.text": "is required",
            "needy.number": "is required",
            "needy.items": "is required",
            "needy.pairs": "is required",
            "needy.time": "is required",
            "needy.place": "at least 1",
        },
    ),
]


@pytest.mark.parametrize("kind", GOOD)
def test_what_keeps_the_rules_passes(kind: str) -> None:
    assert [broken(**fields) for fields in GOOD[kind]] == [{}] * len(GOOD[kind])


@pytest.mark.parametrize(("fields", "expected"), BAD, ids=repr)
def test_what_breaks_a_rule_is_named(fields: dict[str, Any], expected: dict[str, str]) -> None:
    found = broken(**fields)
    assert found.keys() == expected.keys()
    assert all(words in found[field] for field, words in expected.items()), found


def test_a_string_may_break_two_rules_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_request(probe.request(name="\0"), NOBODY)
    assert [one.field for one in caught.value.violations] == ["name", "name"]
    assert caught.value.metadata == {"fields": "name"}


def test_deep_nesting_is_checked_to_its_end() -> None:
    part: dict[str, Any] = {"role": "bad"}
    for _ in range(40):
        part = {"role": "user", "inner": part}
    [field] = broken(part=part)
    assert field == "part." + "inner." * 40 + "role"


OTHER = "0199bbbb-0000-7000-8000-000000000002"


@pytest.mark.parametrize(
    ("caller", "user_id", "allowed"),
    [
        (Caller(user_id=USER), USER, True),
        (Caller(user_id=USER), "me", True),
        (Caller(user_id=USER), "", True),
        (Caller(user_id=USER), OTHER, False),
        (Caller(user_id=USER), "ME", False),
        (ADMIN, OTHER, True),
        (NOBODY, OTHER, False),
        (NOBODY, "None", False),
        (Caller(service="chat"), OTHER, False),
    ],
)
def test_a_path_names_the_caller(caller: Caller, user_id: str, allowed: bool) -> None:  # noqa: FBT001
    if allowed:
        check_request(probe.request(user_id=user_id), caller)
        return
    with pytest.raises(PermissionDenied, match="another user"):
        check_request(probe.request(user_id=user_id), caller)


async def test_over_the_wire_each_broken_field_is_a_violation(serve: Serve) -> None:
    client = await serve()
    error = await refused(client.call("ForAnybody", probe.request(name="a", parts=[{}])))
    assert (error.code, error.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert error.info.metadata["fields"] == "name, parts[0].role"
    assert set(error.violations) == {"name", "parts[0].role"}


TEXTS = [
    "",
    "a",
    "user",
    "\0",
    "é" * 300,
    "\u202e",
    "me",
    USER,
    "[a-z]",
    "%s",
    "'; drop table",
    "\ud7ff",
    "\U0010ffff",
    "\x85",
]
NUMBERS = [0, 1, -1, 2**31 - 1, -(2**31)]
REALS = [*NUMBERS, NAN, float("inf"), -float("inf"), 5e-324, 1e308]
LARGE = [0, 1, -1, 2**63 - 1, -(2**63), 10**12]


def _random_fields(chance: random.Random) -> dict[str, Any]:
    def text() -> str:
        return chance.choice(TEXTS) + chance.choice(TEXTS)

    def part() -> dict[str, Any]:
        inner = {"inner": part()} if chance.random() < 0.3 else {}
        return {"role": text(), "place": chance.choice(NUMBERS), **inner}

    def moment() -> dict[str, int]:
        return {"seconds": chance.choice(LARGE), "nanos": chance.choice(NUMBERS)}

    makers: dict[str, Any] = {
        **dict.fromkeys(("text", "name", "code", "role", "id", "email", "nickname", "user_id", "first"), text),
        "temperature": lambda: chance.choice(REALS),
        "ratio": lambda: chance.choice([0, 1, NAN, float("inf")]),
        "sequence": lambda: chance.choice(NUMBERS),
        "tags": lambda: [text() for _ in range(chance.randrange(6))],
        "weights": lambda: [chance.choice(REALS) for _ in range(chance.randrange(6))],
        "labels": lambda: {text(): text() for _ in range(chance.randrange(5))},
        "counts": lambda: {chance.choice("abc") * chance.randrange(1, 5): 1 for _ in range(chance.randrange(3))},
        "parts_by_name": lambda: {text(): part() for _ in range(chance.randrange(4))},
        "parts": lambda: [part() for _ in range(chance.randrange(60))],
        "part": part,
        "time": moment,
        "duration": moment,
        "needy": lambda: {"text": text(), "number": chance.choice(NUMBERS), "items": [text()], "time": moment()},
    }
    return {name: make() for name, make in makers.items() if chance.random() < 0.2}


def _verdict(request: Any, caller: Caller) -> str:
    try:
        check_request(request, caller)
    except InvalidArgument as error:
        is_clean = 0 < len(error.violations) <= 10 and all(one.field and one.description for one in error.violations)
        return "invalid" if is_clean else repr(error.violations)
    except PermissionDenied:
        return "denied"
    return "good"


def test_random_values_get_a_verdict_and_nothing_else() -> None:
    chance = random.Random(20261122)  # noqa: S311 - the same values in each run
    seen = {_verdict(probe.request(**_random_fields(chance)), chance.choice([NOBODY, ADMIN])) for _ in range(1_500)}
    assert seen == {"invalid", "denied", "good"}


def test_random_bytes_get_a_verdict_and_nothing_else() -> None:
    chance = random.Random(20261123)  # noqa: S311
    parse = probe.message("ProbeRequest").FromString
    unparsed = 0
    for _ in range(3_000):
        raw = bytearray(probe.request(**_random_fields(chance)).SerializeToString() or b"\x0a\x00")
        for _ in range(chance.randrange(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        try:
            request = parse(bytes(raw))
        except DecodeError:
            unparsed += 1
            continue
        assert _verdict(request, NOBODY) in {"invalid", "denied", "good"}
    assert 0 < unparsed < 3_000


async def test_random_bytes_over_the_wire_are_never_a_fault(serve: Serve) -> None:
    client = await serve()
    chance = random.Random(20261124)  # noqa: S311
    codes = set()
    for _ in range(300):
        try:
            await client.call("ForAnybody", chance.randbytes(chance.randrange(1, 60)))
            codes.add(grpc.StatusCode.OK)
        except grpc.aio.AioRpcError as error:
            codes.add(error.code())
    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED}
