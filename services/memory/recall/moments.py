"""When a query speaks of: explicit dates, and words like `last week`.

Owns the reading of English expressions of time, in UTC, since nobody says where the user is: every window is wider by half a
day on both sides. A window only lifts what lies in it; it excludes nothing. It refuses to guess: what it does not know is no
window, and what lies ahead (`tomorrow`) is none either, for nothing was said there.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

_SLACK: Final = timedelta(hours=12)
_DAY: Final = timedelta(days=1)
_FIRST: Final = datetime(1900, 1, 1, tzinfo=UTC)
_MONTHS: Final = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTH_NUMBERS: Final = {name[:3]: number for number, name in enumerate(_MONTHS, 1)}
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_WORDS: Final = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_VAGUE: Final = {"a": 1, "an": 1, "couple of": 2, "a couple of": 2, "few": 4, "a few": 4, "several": 5}
_NUMBERS: Final = {word: number for number, word in enumerate(_WORDS, 1)} | _VAGUE
_UNITS: Final = {"day": 1, "week": 7, "month": 30, "year": 365}
_MONTH: Final = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_YEAR: Final = r"(?P<year>(?:19|20)\d\d)"
_DAY_OF_MONTH: Final = r"(?P<day>[0-3]?\d)(?:st|nd|rd|th)?"
_COUNT: Final = r"(?P<count>\d{1,3}|" + "|".join(sorted(_NUMBERS, key=len, reverse=True)) + ")"


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` up to, and without, `end`."""

    start: datetime
    end: datetime

    def holds(self, moment: datetime) -> bool:
        """Whether a moment lies in it."""
        return self.start <= moment < self.end


def window_of(text: str, *, now: datetime) -> Window | None:
    """The time that a text speaks of, as seen from `now`; of several the shortest. None where it speaks of none."""
    found = [span for span in _spans(text.casefold(), now) if span.start < span.end and span.start <= now]
    if not found:
        return None
    shortest = min(found, key=lambda span: span.end - span.start)
    return Window(max(_FIRST, shortest.start - _SLACK), shortest.end + _SLACK)


def _spans(text: str, now: datetime) -> Iterator[Window]:
    for pattern, read in _EXPRESSIONS:
        for match in pattern.finditer(text):
            try:
                yield read(match, now)
            except (ValueError, OverflowError):
                continue  # the 31st of February


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _days(now: datetime, first: int, count: int = 1) -> Window:
    start = _midnight(now) + first * _DAY
    return Window(start, start + count * _DAY)


def _of_date(match: re.Match[str], now: datetime) -> Window:
    named = match.groupdict()
    month = _month_number(named)
    day, year = int(named["day"]), int(named["year"] or now.year)
    start = datetime(year, month, day, tzinfo=UTC)
    if named["year"] is None and start > now:
        start = start.replace(year=year - 1)
    return Window(start, start + _DAY)


def _month_number(named: dict[str, str]) -> int:
    return int(named["number"]) if named.get("number") else _MONTH_NUMBERS[named["month"][:3]]


def _of_month(match: re.Match[str], now: datetime) -> Window:
    named = match.groupdict()
    month = _month_number(named)
    year = int(named["year"]) if named.get("year") else now.year - (month > now.month)
    start = datetime(year, month, 1, tzinfo=UTC)
    return Window(start, (start + 31 * _DAY).replace(day=1))


def _of_year(match: re.Match[str], _now: datetime) -> Window:
    year = int(match["year"])
    return Window(datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC))


def _ago(match: re.Match[str], now: datetime) -> Window:
    """The longer ago, the less exact it is meant."""
    unit = _UNITS[match["unit"]]
    before = _count(match) * unit
    about = max(0, unit // 2 if unit > 1 else before // 7)
    return _days(now, -before - about, 2 * about + 1)


def _past(match: re.Match[str], now: datetime) -> Window:
    count = _count(match) * _UNITS[match["unit"]]
    return _days(now, -count, count + 1)


def _count(match: re.Match[str]) -> int:
    return int(match["count"]) if match["count"].isdigit() else _NUMBERS[match["count"]]


def _last(match: re.Match[str], now: datetime) -> Window:
    today = _midnight(now)
    monday = today - today.weekday() * _DAY
    first = today.replace(day=1)
    previous_month = (first - _DAY).replace(day=1)
    january = first.replace(month=1)
    return {
        "night": Window(today - _DAY, today),
        "week": Window(monday - 7 * _DAY, monday),
        "weekend": Window(monday - 2 * _DAY, monday),
        "month": Window(previous_month, first),
        "year": Window(january.replace(year=january.year - 1), january),
    }[match["unit"]]


def _this(match: re.Match[str], now: datetime) -> Window:
    today = _midnight(now)
    start = {"week": today - today.weekday() * _DAY, "month": today.replace(day=1), "year": today.replace(month=1, day=1)}
    return Window(start.get(match["unit"], today), today + _DAY)


def _weekday(match: re.Match[str], now: datetime) -> Window:
    back = (now.weekday() - _WEEKDAYS.index(match["weekday"])) % 7 or 7
    return _days(now, -back)


def _since(read: Callable[[re.Match[str], datetime], Window]) -> Callable[[re.Match[str], datetime], Window]:
    def since(match: re.Match[str], now: datetime) -> Window:
        return Window(read(match, now).start, _midnight(now) + _DAY)

    return since


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"\b{pattern}\b")


_AGO_UNIT: Final = r"(?P<unit>day|week|month|year)s?"
_EXPRESSIONS: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str], datetime], Window]], ...]] = (
    (_compiled(r"(?P<year>(?:19|20)\d\d)-(?P<number>[01]\d)-(?P<day>[0-3]\d)"), _of_date),
    (_compiled(rf"{_DAY_OF_MONTH}(?:\s+of)?\s+{_MONTH}(?:,?\s+{_YEAR})?"), _of_date),
    (_compiled(rf"{_MONTH}\s+(?:the\s+)?{_DAY_OF_MONTH}(?:,?\s+{_YEAR})?"), _of_date),
    (_compiled(rf"(?<!since ){_MONTH},?\s+{_YEAR}"), _of_month),
    # A month alone needs a word before it: `may` and `march` are verbs too.
    (_compiled(rf"(?:in|during|last|this|early|late|mid|of|around)\s+{_MONTH}(?!,?\s+{_YEAR})"), _of_month),
    (_compiled(rf"since\s+(?:last\s+|early\s+|late\s+)?{_MONTH}(?:,?\s+{_YEAR})?"), _since(_of_month)),
    (_compiled(rf"since\s+{_YEAR}"), _since(_of_year)),
    (_compiled(rf"(?:in|during|of|from|around|early|late)\s+{_YEAR}"), _of_year),
    (_compiled(r"day before yesterday"), lambda _, now: _days(now, -2)),
    (_compiled(r"(?<!day before )yesterday"), lambda _, now: _days(now, -1)),
    (_compiled(r"today|tonight|this (?:morning|afternoon|evening)|just now"), lambda _, now: _days(now, 0)),
    (_compiled(r"recently|lately|the other day"), lambda _, now: _days(now, -14, 15)),
    (_compiled(rf"{_COUNT}\s+{_AGO_UNIT}\s+ago"), _ago),
    (_compiled(rf"(?:last|past|previous)\s+{_COUNT}\s+{_AGO_UNIT}"), _past),
    (_compiled(r"(?:last|the past|previous)\s+(?P<unit>night|weekend|week|month|year)"), _last),
    (_compiled(r"this\s+(?P<unit>week|month|year)"), _this),
    (_compiled(rf"(?:on|last|since|this past)\s+(?P<weekday>{'|'.join(_WEEKDAYS)})"), _weekday),
)
