"""The import: users first, then what they said, then what they had to do, each as a whole or not at all.

Ids follow from the old ones, so that a run which was cut short, or is repeated, finds what is there and loads the rest. A
row that is not right costs itself and is told; a database that does not answer ends the run, which can then be repeated.
"""

import datetime as dt
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.auth.importing import AccountImport, ImportedAccount, Landed
from services.chat.importing import ConversationImport, ImportedConversation
from services.chat.tasks.importing import TaskImport
from services.runtime.database import STATEMENT_FAULTS
from suite.earlier import values
from suite.earlier.errands import Errands
from suite.earlier.mapping import Found, Table
from suite.earlier.people import PREFERENCES, USER_FIELDS, Naming, RefusedError, Rules, account_of, proposals
from suite.earlier.report import Report
from suite.earlier.sayings import LONGEST_TITLE, OldConversation, Sayings, pieces
from suite.earlier.source import Source, quoted

_MESSAGES_AT_ONCE: Final = 500
_SECONDS_A_MINUTE: Final = 60
_REFUSED: Final = "the database refused it"
_TAKEN: Final = {
    "username_taken": "another account here has the username: say with --names what to call them, or who they are",
    "email_taken": "another account here has the email address: say with --names another, or who they are",
    "deleted": "was deleted here, and is not brought back",
    "somebody_else": "somebody with other names was loaded with this id: if this is another system, name it with --source",
}


@dataclass(frozen=True)
class Services:
    """Where everything goes."""

    accounts: AccountImport
    conversations: ConversationImport
    tasks: TaskImport


@dataclass(frozen=True)
class Options:
    """How it is loaded. `remembered_a_minute`: so many conversations memory is told of a minute; None: of none."""

    rules: Rules
    is_rehearsal: bool
    remembered_a_minute: int | None


class Import:
    """One run."""

    def __init__(self, source: Source, found: Found, services: Services, options: Options, report: Report) -> None:
        self._source = source
        self._found = found
        self._services = services
        self._options = options
        self._report = report
        self._owed = 0
        self.proposals: dict[str, dict[str, str]] = {}
        """Names that are possible here for users who were refused for theirs, by their old ids."""

    async def run(self) -> None:
        """Loads everything. Idempotent."""
        # Without a type, so that it compares with whatever the old columns hold.
        self._source.change(
            "create table parley_users (number integer primary key, old_id unique, user_id text not null,"
            " is_remembered integer not null, username_key text unique, email_key text unique)"
        )
        await self._load_users()
        if self._found.messages is not None:
            await self._load_conversations(self._found.messages)
        if self._found.tasks is not None:
            await self._load_tasks(self._found.tasks)

    async def _load_users(self) -> None:
        users = self._found.users
        for _, rows in itertools.groupby(self._people(users), lambda row: row["number"]):
            old, *more = rows
            for _ in more:
                self._report.skip("preferences", str(old["id"]), "the user has others already")
            try:
                await self._load_user(old, users)
            except (RefusedError, values.BadValueError) as error:
                self._report.skip("users", str(old["id"]), str(error))
            except STATEMENT_FAULTS:
                self._report.skip("users", str(old["id"]), _REFUSED)

    def _people(self, users: Table) -> Iterator[Mapping[str, Any]]:
        number = f"u.{users.row_number}" if users.row_number else users.expression("id", "u")
        columns = [number, *(users.expression(name, "u") for name in USER_FIELDS)]
        joined, preferences = "", self._found.preferences
        columns += [preferences.expression(name, "p") if preferences else "null" for name in PREFERENCES]
        if preferences is not None:
            owner = preferences.expression("user", "p")
            joined = f" left join {quoted(preferences.name)} p on {owner} = {users.expression('id', 'u')}"
        names = ("number", *USER_FIELDS, *PREFERENCES)
        statement = f"select {', '.join(columns)} from {quoted(users.name)} u{joined} order by {number}"
        return (dict(zip(names, row, strict=True)) for row in self._source.rows(statement))

    async def _load_user(self, old: Mapping[str, Any], users: Table) -> None:
        old_id = values.key(old["id"])
        if not values.is_utf8(old_id):
            raise RefusedError("its id is not UTF-8")
        naming = self._options.rules.names.get(old_id, Naming())
        if any(self._source.rows("select 1 from parley_users where old_id = ?", [old["id"]])):
            raise RefusedError("another old user has the same id")
        if naming.user is not None:
            landed = await self._services.accounts.find(naming.user)
            if landed is None:
                raise RefusedError("--names says who they are here, and there is no such account")
            self._report.count("users", "here already")
            self._note(old, landed, None)
            return
        try:
            account = account_of(old, users, self._options.rules, self._report)
        except RefusedError:
            self._propose(old, naming)
            raise
        self._check_twins(account)
        landed = await self._services.accounts.load(account, is_rehearsal=self._options.is_rehearsal)
        if landed.status in _TAKEN:
            if landed.status == "username_taken":
                self._propose(old, naming)
            raise RefusedError(_TAKEN[landed.status])
        self._report.count("users", "loaded" if landed.status == "loaded" else "here already")
        if landed.status == "loaded" and account.preferences:
            self._report.count("preferences", "loaded")
        self._note(old, landed, account)

    def _check_twins(self, account: ImportedAccount) -> None:
        """Two old users who differ in the case of a letter would be one here: the first of them keeps the name."""
        for column, name in (("username_key", account.username), ("email_key", account.email)):
            same = f"select 1 from parley_users where {column} = ?"
            if any(self._source.rows(same, [name.lower()])):
                field_name = column.removesuffix("_key")
                raise RefusedError(f"another old user has the same {field_name}: say with --names what to call them")

    def _propose(self, old: Mapping[str, Any], naming: Naming) -> None:
        old_id = values.key(old["id"])
        username, email = (naming.username or old["username"]), (naming.email or old["email"])
        *_, name = proposals(str(username or ""), str(email or ""), old_id)
        self.proposals[old_id] = {"username": name}

    def _note(self, old: Mapping[str, Any], landed: Landed, account: ImportedAccount | None) -> None:
        keys = (account.username.lower(), account.email.lower()) if account else (None, None)
        self._source.change(
            "insert into parley_users (old_id, user_id, is_remembered, username_key, email_key) values (?, ?, ?, ?, ?)",
            (old["id"], landed.user_id, landed.is_remembered, *keys),
        )

    async def _load_conversations(self, table: Table) -> None:
        rules = self._options.rules
        sayings = Sayings(self._source, self._found, table, system=rules.system, zone=rules.zone)
        sayings.index()
        for conversation, rows in sayings.conversations():
            try:
                await self._load_conversation(conversation, rows, sayings)
            except values.BadValueError as error:
                self._report.skip("conversations", conversation.key[1], str(error))
            except STATEMENT_FAULTS:
                self._report.skip("conversations", conversation.key[1], _REFUSED)
        sayings.tell_orphans(self._report)

    async def _load_conversation(self, old: OldConversation, rows: Iterator[Mapping[str, Any]], sayings: Sayings) -> None:
        options, said = self._options, sayings.messages_of(rows, self._report)
        first = next(said, None)
        conversation = self._conversation(old, None if first is None else first.create_time)
        if conversation is None:
            self._report.skip("conversations", old.key[1], "nothing was said in it, and nobody wrote down when it began")
            return
        in_order = itertools.chain([] if first is None else [first], said)
        loading = self._services.conversations.loading(
            conversation,
            user_id=old.user_id,
            remember_in_seconds=self._remember_in_seconds(old),
            is_rehearsal=options.is_rehearsal,
        )
        count = 0
        async with loading as opened:
            for piece in pieces(in_order, _MESSAGES_AT_ONCE):
                count += len(piece)
                if opened is not None:
                    await opened.add(piece)
        outcome = "here already" if opened is None else "loaded"
        self._owed += opened is not None
        self._report.count("conversations", outcome)
        self._report.count("messages", outcome, count)

    def _remember_in_seconds(self, old: OldConversation) -> float | None:
        """When memory may be told of it: spread, so that it and its model are not given everything at once."""
        pace = self._options.remembered_a_minute
        if pace is None or not old.is_remembered:
            return None
        return (self._owed + 1) * _SECONDS_A_MINUTE / pace

    def _conversation(self, old: OldConversation, first_time: dt.datetime | None) -> ImportedConversation | None:
        rules = self._options.rules
        create_time = values.past(old.head["create_time"], rules.zone) or first_time
        if create_time is None:
            return None
        title = " ".join(values.without_controls(values.text(old.head["title"])).split())
        if len(title) > LONGEST_TITLE:
            self._report.change("conversations", old.key[1], f"its title was cut to {LONGEST_TITLE} characters")
            title = f"{title[: LONGEST_TITLE - 1]}…"
        return ImportedConversation(
            id=values.new_id(rules.system, *old.key),
            title=title,
            kind=self._found.kind,
            create_time=create_time,
            update_time=values.past(old.head["update_time"], rules.zone) or create_time,
        )

    async def _load_tasks(self, table: Table) -> None:
        rules = self._options.rules
        errands = Errands(self._source, table, system=rules.system, zone=rules.zone)
        for user_id, found in errands.tasks(self._report):
            try:
                loaded = await self._services.tasks.load(found, user_id=user_id, is_rehearsal=self._options.is_rehearsal)
            except STATEMENT_FAULTS:
                for one in found:
                    self._report.skip("tasks", one.id, _REFUSED)
                continue
            self._report.count("tasks", "loaded", loaded)
            self._report.count("tasks", "here already", len(found) - loaded)
        errands.tell_orphans(self._report)
