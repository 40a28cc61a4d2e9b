"""Old tasks, as chat takes them, user by user."""

import datetime as dt
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from services.chat.tasks.importing import ImportedTask
from services.chat.tasks.records import MAX_DESCRIPTION_CHARACTERS, MAX_TITLE_CHARACTERS
from suite.earlier import values
from suite.earlier.mapping import Table
from suite.earlier.report import Report
from suite.earlier.source import Source, quoted

_FIELDS: Final = ("id", "title", "description", "done", "due_time", "complete_time", "create_time", "update_time")
_AT_ONCE: Final = 200


class Errands:
    """What was to be done, as it stands in the old table."""

    def __init__(self, source: Source, table: Table, *, system: str, zone: dt.tzinfo) -> None:
        self._source = source
        self._table = table
        self._system = system
        self._zone = zone
        # For tasks whose time nobody wrote down: the same for all of a run, so that their order stays.
        self._now = dt.datetime.now(dt.UTC)

    def tasks(self, report: Report) -> Iterator[tuple[str, Sequence[ImportedTask]]]:
        """Some tasks of a user who was loaded at a time, with the id of the user here."""
        for user_id, of_one in itertools.groupby(self._source.rows(self._statement()), lambda row: str(row[0])):
            rows = (dict(zip(("number", *_FIELDS), row[1:], strict=True)) for row in of_one)
            read = (self._read(row, report) for row in rows)
            known = (task for task in read if task is not None)
            while piece := list(itertools.islice(known, _AT_ONCE)):
                yield user_id, piece

    def _read(self, row: Mapping[str, Any], report: Report) -> ImportedTask | None:
        old_id = str(row["number"])
        try:
            old_id = values.key(row["number"] if row["id"] is None else row["id"])
            return self._task(row, old_id, report)
        except values.BadValueError as error:
            report.skip("tasks", old_id, str(error))
            return None

    def _task(self, row: Mapping[str, Any], old_id: str, report: Report) -> ImportedTask:
        title = " ".join(values.without_controls(values.text(row["title"])).split())
        description = values.without_controls(values.text(row["description"]))
        if not title:
            raise values.BadValueError("has no title")
        if len(title) > MAX_TITLE_CHARACTERS:
            report.change("tasks", old_id, f"its title was cut to {MAX_TITLE_CHARACTERS} characters, the whole is described")
            title, description = f"{title[: MAX_TITLE_CHARACTERS - 1]}…", f"{title}\n\n{description}".strip()
        if len(description) > MAX_DESCRIPTION_CHARACTERS:
            report.change("tasks", old_id, f"its description was cut to {MAX_DESCRIPTION_CHARACTERS:,} characters")
            description = f"{description[: MAX_DESCRIPTION_CHARACTERS - 1]}…"
        create_time = self._past(row["create_time"]) or self._now
        update_time = self._past(row["update_time"]) or create_time
        complete_time = self._past(row["complete_time"])
        if row["done"] is not None:
            complete_time = (complete_time or update_time) if values.done(row["done"]) else None
        return ImportedTask(
            id=values.new_id(self._system, self._table.name, old_id),
            title=title,
            description=description,
            due_time=values.time(row["due_time"], self._zone),
            complete_time=complete_time,
            create_time=create_time,
            update_time=update_time,
        )

    def _past(self, value: Any) -> dt.datetime | None:
        return values.past(value, self._zone)

    def tell_orphans(self, report: Report) -> None:
        """Tells what belongs to nobody who was loaded."""
        table = self._table
        number = f"coalesce({table.expression('id', 't')}, t.{table.row_number or 'null'})"
        owned = f"select 1 from parley_users u where u.old_id = {table.expression('user', 't')}"
        for (old_id,) in self._source.rows(f"select {number} from {quoted(table.name)} t where not exists ({owned})"):
            report.skip("tasks", str(old_id), "belongs to a user who was not loaded")

    def _statement(self) -> str:
        table = self._table
        number = f"t.{table.row_number}" if table.row_number else table.expression("id", "t")
        columns = ["u.user_id", number, *(table.expression(name, "t") for name in _FIELDS)]
        return (
            f"select {', '.join(columns)} from parley_users u join {quoted(table.name)} t"
            f" on {table.expression('user', 't')} = u.old_id order by u.number, {table.order('t', 'create_time')}"
        )
