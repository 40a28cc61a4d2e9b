"""Dates that a sentence names, told apart from the rest of it.

Owns English forms: "in May 2023", "since 2019", "last May", "last year", "yesterday". A date is a year, a month or a day.
"""

import re
from datetime import date, timedelta

_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_MONTH = "|".join(_MONTHS)
_DATE = re.compile(
    rf"\s*\b(?:(?:in|since|back in|from|until) (?:(?P<month>{_MONTH}) )?(?P<year>(?:19|20)\d\d)\b"
    rf"|(?:last|in|since|since last) (?P<recent>{_MONTH})\b"
    r"|(?P<word>yesterday|today|last week|last month|last year|this year|a week ago|a month ago|a year ago)\b)",
    re.IGNORECASE,
)
_APART = re.compile(r"\b(?:since|last|ago|yesterday|today|this year)\b", re.IGNORECASE)
_DAYS = {"yesterday": 1, "today": 0, "last week": 7, "a week ago": 7}


def resolved(sentence: str, *, said: date) -> tuple[str, str | None]:
    """The sentence without its date, and the date as YYYY, YYYY-MM or YYYY-MM-DD; None where it names none."""
    found = _DATE.search(sentence)
    if found is None:
        return sentence, None
    rest = f"{sentence[: found.start()]}{sentence[found.end() :]}"
    if found["year"]:
        month = found["month"]
        return rest, f"{found['year']}-{_number(month):02}" if month else found["year"]
    if found["recent"]:
        month = _number(found["recent"])
        return rest, f"{said.year if month < said.month else said.year - 1}-{month:02}"
    return rest, _of_word(found["word"].casefold(), said)


def stands_apart(sentence: str) -> bool:
    """Whether its date says since when or how long ago: what the rest says is the same without it."""
    found = _DATE.search(sentence)
    return found is not None and _APART.search(found[0]) is not None


def _of_word(word: str, said: date) -> str:
    if word in _DAYS:
        return (said - timedelta(days=_DAYS[word])).isoformat()
    if word.endswith(("year", "year ago")):
        return str(said.year - (not word.startswith("this")))
    return f"{said.replace(day=1) - timedelta(days=1):%Y-%m}"


def _number(month: str) -> int:
    return _MONTHS.index(month.casefold()) + 1
