"""Old messages, conversation by conversation, as chat takes them, from one sorted pass over the old tables.

However large the old tables are, what is held at once is a piece of one conversation.
"""

import datetime as dt
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from services.chat.importing import ImportedMessage
from suite.earlier import values
from suite.earlier.mapping import Found, Table, is_pairs
from suite.earlier.report import Report
from suite.earlier.source import Source, quoted

_LONGEST_TEXT: Final = 400_000  # what memory takes
_LONGEST_MODEL: Final = 200
LONGEST_TITLE: Final = 200
_HEAD: Final = ("user_id", "is_remembered", "conversation", "title", "create_time", "update_time", "number")
_MESSAGE: Final = ("id", "role", "text", "prompt", "reply", "reply_time", "create_time", "model")
_TOKENS: Final = ("input_tokens", "output_tokens")
_FIELDS: Final = (*_HEAD, *(f"message_{name}" for name in (*_MESSAGE, *_TOKENS)))


@dataclass(frozen=True)
class OldConversation:
    """A conversation that begins, as far as its first row tells: `key` tells it apart from every other."""

    user_id: str
    is_remembered: bool
    key: tuple[str, str]
    """What it is made of (a table, or a table's groups), and which of that it is."""
    head: Mapping[str, Any]


class Sayings:
    """What was said, as it stands in the old tables."""

    def __init__(self, source: Source, found: Found, messages: Table, *, system: str, zone: dt.tzinfo) -> None:
        self._source = source
        self._found = found
        self._messages = messages
        self._system = system
        self._zone = zone
        self._is_pairs = is_pairs(messages)

    def conversations(self) -> Iterator[tuple[OldConversation, Iterator[Mapping[str, Any]]]]:
        """Each conversation of a user who was loaded, with its rows; the rows before the next conversation is asked for."""
        rows = (dict(zip(_FIELDS, row, strict=True)) for row in self._source.rows(self._statement()))
        for owner, of_one in itertools.groupby(rows, lambda row: row["user_id"]):
            for key, group in itertools.groupby(self._keyed(of_one), lambda pair: pair[0]):
                of_it = (row for _, row in group)
                first = next(of_it)
                conversation = OldConversation(owner, bool(first["is_remembered"]), key, first)
                yield conversation, itertools.chain([first], of_it)

    def _keyed(self, rows: Iterator[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
        if self._found.conversations is not None:
            table = self._found.conversations.name
            return ((((table, values.key(row["conversation"]))), row) for row in rows)
        if self._messages.has("conversation"):
            return ((self._group_key(row), row) for row in rows)
        return self._by_silence(rows)

    def _group_key(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Conversations without a table are told apart by user too: nothing says that two users' are not named alike."""
        named = "" if row["conversation"] is None else values.key(row["conversation"])
        return f"{self._messages.name}.{self._messages.columns['conversation']}", f"{row['user_id']} {named}"

    def _by_silence(self, rows: Iterator[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
        last: dt.datetime | None = None
        key = ("", "")
        for row in rows:
            try:
                now = values.past(row["message_create_time"], self._zone)
            except values.BadValueError:
                now = None
            silence = dt.timedelta(seconds=self._found.silence_seconds or 0)
            if key == ("", "") or (last is not None and now is not None and now - last > silence):
                key = (f"{self._messages.name}, from", self._old_id(row))
            last = now or last
            yield key, row

    def _old_id(self, row: Mapping[str, Any]) -> str:
        return values.key(row["number"] if row["message_id"] is None else row["message_id"])

    def messages_of(self, rows: Iterator[Mapping[str, Any]], report: Report) -> Iterator[ImportedMessage]:
        """The messages of a conversation's rows, in order. What cannot be one is told to the report and left out."""
        for row in rows:
            if row["number"] is None:
                continue  # a conversation in which nothing was said
            try:
                old_id = self._old_id(row)
                found = list(self._pair(row, old_id) if self._is_pairs else self._single(row, old_id))
            except values.BadValueError as error:
                report.skip("messages", str(row["message_id"] or row["number"]), str(error))
                continue
            if not found:
                report.skip("messages", old_id, "says nothing, or is no message of the user or the assistant")
            for message in found:
                yield self._cleaned(message, old_id, report)

    def _single(self, row: Mapping[str, Any], old_id: str) -> Iterator[ImportedMessage]:
        role = values.role(row["message_role"], self._found.roles)
        if role and (said := values.text(row["message_text"])):
            yield self._message(row, (old_id, ""), role, said, self._time(row["message_create_time"]))

    def _pair(self, row: Mapping[str, Any], old_id: str) -> Iterator[ImportedMessage]:
        asked, answered = (values.text(row[f"message_{name}"]) for name in ("prompt", "reply"))
        begin = self._time(row["message_create_time"])
        if asked:
            yield self._message(row, (old_id, "prompt"), "user", asked, begin)
        if answered:
            end = values.past(row["message_reply_time"], self._zone) or begin
            yield self._message(row, (old_id, "reply"), "assistant", answered, end)

    def _time(self, value: Any) -> dt.datetime:
        found = values.past(value, self._zone)
        if found is None:
            raise values.BadValueError("has no time")
        return found

    def _message(
        self, row: Mapping[str, Any], named: tuple[str, str], role: str, said: str, when: dt.datetime
    ) -> ImportedMessage:
        if len(said) > _LONGEST_TEXT:
            raise values.BadValueError(f"has more than {_LONGEST_TEXT:,} characters")
        model = values.without_controls(values.text(row["message_model"]))[:_LONGEST_MODEL]
        is_reply = role == "assistant"
        return ImportedMessage(
            id=values.new_id(self._system, self._messages.name, *named),
            role="assistant" if is_reply else "user",
            text=said,
            create_time=when,
            model=model or None,
            input_tokens=values.count(row["message_input_tokens"]) if is_reply else None,
            output_tokens=values.count(row["message_output_tokens"]) if is_reply else None,
        )

    def _cleaned(self, message: ImportedMessage, old_id: str, report: Report) -> ImportedMessage:
        cleaned = values.without_controls(message.text)
        if cleaned == message.text:
            return message
        report.change("messages", old_id, "held control characters (NUL, say): they were left out")
        return replace(message, text=cleaned)

    def tell_orphans(self, report: Report) -> None:
        """Tells what belongs to nobody who was loaded, and to no conversation that is there."""
        messages, talks = self._messages, self._found.conversations
        number = f"coalesce({messages.expression('id', 'm')}, m.{messages.row_number or 'null'})"
        owner = messages if talks is None else talks
        of_owner = "not exists (select 1 from parley_users u where u.old_id = {})"
        if talks is None:
            unowned = of_owner.format(messages.expression("user", "m"))
            self._tell("messages", f"select {number} from {quoted(messages.name)} m where {unowned}", report, _UNOWNED)
            return
        unowned = of_owner.format(owner.expression("user", "c"))
        where = f"from {quoted(talks.name)} c where {unowned}"
        self._tell("conversations", f"select {talks.expression('id', 'c')} {where}", report, _UNOWNED)
        same = f"{talks.expression('id', 'c')} = {messages.expression('conversation', 'm')}"
        there = f"select 1 from {quoted(talks.name)} c where {same}"
        lost = f"select {number} from {quoted(messages.name)} m where "
        self._tell("messages", f"{lost} exists ({there} and {unowned})", report, _UNOWNED)
        self._tell("messages", f"{lost} not exists ({there})", report, "belongs to no conversation that is there")

    def _tell(self, kind: str, statement: str, report: Report, reason: str) -> None:
        for (old_id,) in self._source.rows(statement):
            report.skip(kind, str(old_id), reason)

    def index(self) -> None:
        """Makes the copy of the old tables ready to be joined."""
        messages, talks = self._messages, self._found.conversations
        if talks is None:
            _index(self._source, messages, "user")
        else:
            _index(self._source, talks, "user")
            _index(self._source, talks, "id")
            _index(self._source, messages, "conversation")

    def _statement(self) -> str:
        messages, talks = self._messages, self._found.conversations
        number = f"m.{messages.row_number}" if messages.row_number else messages.expression("id", "m")
        said = [number, *(messages.expression(name, "m") for name in (*_MESSAGE, *_TOKENS))]
        order = messages.order("m", "order", "create_time")
        if talks is None:
            grouped = messages.expression("conversation", "m")
            columns = ["u.user_id", "u.is_remembered", grouped, "null", "null", "null", *said]
            within = f"{grouped}, {order}" if messages.has("conversation") else order
            return (
                f"select {', '.join(columns)} from parley_users u join {quoted(messages.name)} m"
                f" on {messages.expression('user', 'm')} = u.old_id order by u.number, {within}"
            )
        head = [talks.expression(name, "c") for name in ("id", "title", "create_time", "update_time")]
        return (
            f"select {', '.join(['u.user_id', 'u.is_remembered', *head, *said])} from parley_users u"
            f" join {quoted(talks.name)} c on {talks.expression('user', 'c')} = u.old_id"
            f" left join {quoted(messages.name)} m on {messages.expression('conversation', 'm')} ="
            f" {head[0]} where {head[0]} is not null order by u.number, {talks.order('c', 'create_time')}, {order}"
        )


_UNOWNED: Final = "belongs to a user who was not loaded"


def _index(source: Source, table: Table, name: str) -> None:
    column = quoted(table.columns[name])
    source.change(f"create index if not exists {quoted(f'parley_{table.name}_{name}')} on {quoted(table.name)} ({column})")


def pieces(found: Iterator[ImportedMessage], size: int) -> Iterator[Sequence[ImportedMessage]]:
    """So many at a time."""
    while piece := list(itertools.islice(found, size)):
        yield piece
