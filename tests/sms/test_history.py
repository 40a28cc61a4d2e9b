"""One history: complete, in one order, without repeats, at the same cost whatever its length."""

import os
import random
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from parley.chat.v1 import conversation_pb2
from parley.sms.v1 import history_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.errors import Unavailable
from tests.chat.service import refusal
from tests.sms.peers import ChatStandIn
from tests.sms.service import SmsProcess, User

ENTRIES = int(os.environ.get("PARLEY_TEST_HISTORY", "10000"))
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = ("turn", "call", "message", "decision")
_GIVEN = " from unnest(%s::uuid[], %s::timestamptz[]) as one (id, time)"
INSERTS = {
    "call": "insert into calls (id, user_id, direction, phone_number, status, start_time)"
    f" select id, %s, 'inbound', '+14155550101', 'completed', time{_GIVEN}",
    "message": "insert into messages (id, user_id, direction, kind, phone_number, text, status, create_time)"
    f" select id, %s, 'outbound', 'text', '+14155550101', 'x', 'sent', time{_GIVEN}",
    "decision": "insert into decisions (id, user_id, input_text, is_yes, reply, reason, confidence, model, create_time)"
    f" select id, %s, 'x', false, '', 'x', 0.5, 'm', time{_GIVEN}",
}


def _turn(turn_id: str, time: datetime) -> conversation_pb2.Turn:
    made = Timestamp()
    made.FromDatetime(time)
    usage = conversation_pb2.Usage(input_tokens=12, cached_tokens=2, output_tokens=5, reasoning_tokens=1)
    return conversation_pb2.Turn(
        id=turn_id, conversation_id=str(uuid.uuid4()), conversation_kind="texted", input_text="Hi",
        reply_id=str(uuid.uuid4()), reply="Hello", status="complete", model="m", usage=usage, create_time=made,
    )  # fmt: skip


async def _fill(sms: SmsProcess, chat: ChatStandIn, user_id: str, count: int) -> list[tuple[datetime, str, str]]:
    """Mixed entries of a user, many of them at the same moment; in their order, the latest first."""
    chance = random.Random(count)  # noqa: S311
    made = [
        (BEGAN + timedelta(microseconds=chance.randrange(count // 2 + 1)), str(uuid.UUID(int=chance.getrandbits(128))), kind)
        for kind in chance.choices(KINDS, k=count)
    ]
    chat.turns[user_id] = [_turn(one_id, time) for time, one_id, kind in made if kind == "turn"]
    for kind, statement in INSERTS.items():
        of_kind = [(one_id, time) for time, one_id, its in made if its == kind]
        await sms.rows(statement, user_id, [one[0] for one in of_kind], [one[1] for one in of_kind])
    return sorted(made, reverse=True)


async def _read_all(user: User, kind: str = "", *, page_size: int) -> list[history_pb2.HistoryEntry]:
    entries: list[history_pb2.HistoryEntry] = []
    token = ""
    while True:
        page = await user.read_history(kind, page_size=page_size, page_token=token)
        entries += page.entries
        token = page.next_page_token
        if not token:
            return entries
        assert len(page.entries) == page_size


def _places(entries: Sequence[history_pb2.HistoryEntry]) -> list[tuple[datetime, str, str]]:
    return [(one.time.ToDatetime(UTC), one.id, one.kind) for one in entries]


async def test_all_of_it_is_there_once_and_in_order(sms: SmsProcess, chat: ChatStandIn) -> None:
    ana, other = sms.user(), sms.user()
    expected = await _fill(sms, chat, ana.id, ENTRIES)
    others = await _fill(sms, chat, other.id, 100)
    sms.statements.clear()
    chat.reads = 0
    entries = await _read_all(ana, page_size=200)
    pages = -(-ENTRIES // 200)
    assert _places(entries) == expected
    # Without those of the standing duty that looks after claims.
    told = [one for one in sms.statements if "claim_time" not in one]
    selects = [one for one in told if "FROM messages" in one or "FROM calls" in one or "FROM decisions" in one]
    assert (len(selects), chat.reads) == (3 * pages, pages)
    assert _places(await _read_all(other, page_size=7)) == others


@pytest.mark.parametrize("page_size", [1, 13, 200])
async def test_each_alone_and_together_whatever_the_page(sms: SmsProcess, chat: ChatStandIn, page_size: int) -> None:
    ana = sms.user()
    expected = await _fill(sms, chat, ana.id, 150)
    assert _places(await _read_all(ana, page_size=page_size)) == expected
    for name, kinds in (("Conversation", {"turn"}), ("Call", {"call"}), ("Sms", {"message", "decision"})):
        found = _places(await _read_all(ana, name, page_size=page_size))
        assert found == [one for one in expected if one[2] in kinds], name


async def test_what_comes_while_it_is_read_moves_no_page(sms: SmsProcess, chat: ChatStandIn) -> None:
    ana = sms.user()
    expected = await _fill(sms, chat, ana.id, 40)
    first = await ana.read_history(page_size=10)
    await ana.send("+14155550102", "New")
    rest: list[history_pb2.HistoryEntry] = []
    token = first.next_page_token
    while token:
        page = await ana.read_history(page_size=10, page_token=token)
        rest += page.entries
        token = page.next_page_token
    assert _places([*first.entries, *rest]) == expected
    assert (await ana.read_history(page_size=1)).entries[0].message.text == "New"


async def test_an_entry_tells_what_it_is(sms: SmsProcess, chat: ChatStandIn) -> None:
    ana = sms.user()
    chat.turns[ana.id] = [_turn(str(uuid.uuid4()), BEGAN)]
    decision = await ana.decide("Are you coming?")
    call = await ana.record_call(summary="About dinner")
    message = await ana.send("+14155550102", "Hello")
    await sms.settled()
    entries = (await ana.read_history()).entries
    assert [one.kind for one in entries] == ["message", "call", "decision", "turn"]
    assert (entries[0].message.id, entries[1].call, entries[2].decision) == (message.id, call, decision)
    turn = entries[3].turn
    assert (turn.input_text, turn.reply, turn.conversation_kind, turn.input_tokens, turn.output_tokens) == (
        "Hi", "Hello", "texted", 12, 5,
    )  # fmt: skip


async def test_without_chat_there_is_no_half_of_a_history(sms: SmsProcess, chat: ChatStandIn) -> None:
    ana = sms.user()
    chat.error = Unavailable("away", reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE)
    assert (await refusal(ana.read_history())).code is grpc.StatusCode.UNAVAILABLE
    assert list((await ana.read_history("Call")).entries) == []


async def test_it_is_the_persons_own(sms: SmsProcess) -> None:
    ana, other = sms.user(), sms.user()
    refused = await refusal(ana.read_history(user_id=other.id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")
    request = history_pb2.ListHistoryRequest(user_id=ana.id)
    by_admin = sms.history.ListHistory(request, metadata=sms.as_admin(), timeout=10)
    assert (await refusal(by_admin)).reason == "ACCESS_DENIED"
    assert (await refusal(ana.read_history(page_token="rubbish"))).reason == "INVALID_PAGE_TOKEN"
    calls = await ana.read_history("Call")
    assert (calls.next_page_token, list(calls.entries)) == ("", [])
