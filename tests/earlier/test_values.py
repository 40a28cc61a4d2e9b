"""What single old values stand for, and which are refused."""

import datetime as dt
import uuid
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from suite.earlier import values

MOMENT = dt.datetime(2024, 3, 1, 9, 30, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "old",
    [
        *("2024-03-01 09:30:00", "2024-03-01T09:30", "2024-03-01T09:30:00Z", "2024-03-01 10:30:00+01", "20240301T093000"),
        *(1_709_285_400, 1_709_285_400.0, 1_709_285_400_000, "1709285400", "1709285400000"),
    ],
)
def test_a_time_in_any_of_its_forms(old: Any) -> None:
    assert values.past(old, dt.UTC) == MOMENT


def test_a_time_without_a_zone_is_in_the_zone_that_is_named() -> None:
    assert values.past("2024-03-01 10:30:00", ZoneInfo("Europe/Paris")) == MOMENT


@pytest.mark.parametrize(
    "old", ["soon", "2024-13-01", "01/03/2024", b"\x00", 1e300, float("inf"), -5, "1969-12-31", "2090-01-01", "9" * 40]
)
def test_what_is_no_time_of_then_is_refused(old: Any) -> None:
    with pytest.raises(values.BadValueError):
        values.past(old, dt.UTC)


@pytest.mark.parametrize(
    ("old", "zone"),
    [
        *(("0001-01-01T00:00:00+02:00", "UTC"), ("0001-01-01", "Europe/Berlin")),
        *(("9999-12-31 23:59:59", "America/New_York"), ("9999-12-31T23:59:59-01:00", "UTC")),
    ],
)
def test_what_is_no_time_in_utc_is_refused(old: str, zone: str) -> None:
    with pytest.raises(values.BadValueError):
        values.time(old, ZoneInfo(zone))


@pytest.mark.parametrize(("old", "meant"), [("12", 12), (12, 12), ("9" * 5_000, None), (2**40, None), ("some", None)])
def test_a_number_of_tokens(old: Any, meant: int | None) -> None:
    assert values.count(old) == meant


def test_the_same_row_has_the_same_id_and_no_other_has_it() -> None:
    named = [
        *(("one", "users", "1", ""), ("two", "users", "1", ""), ("one", "user", "s1", ""), ("one", "users", "11", "")),
        *(("one", "users", "1", "prompt"), ("one\x1fusers", "1", "", ""), ("one", "users\x1f1", "", "")),
        *(("a\x1f", "b", "", ""), ("a", "\x1fb", "", ""), ('a", "b', "", "", ""), ("a", "b", '", "', "")),
    ]
    made = [values.new_id(*one) for one in named]
    assert len(set(made)) == len(named)
    assert made == [values.new_id(*one) for one in named]
    assert {uuid.UUID(one).version for one in made} == {5}


@pytest.mark.parametrize(("old", "meant"), [(1, True), ("True", True), ("t", True), (0, False), ("no", False), (None, None)])
def test_yes_and_no(old: Any, *, meant: bool | None) -> None:
    assert values.truth(old) is meant
    with pytest.raises(values.BadValueError):
        values.truth("perhaps")


@pytest.mark.parametrize(
    ("old", "meant"), [("TaskStatus.DONE", True), ("completed", True), ("in_progress", False), (1, True), (None, False)]
)
def test_done_and_open(old: Any, *, meant: bool) -> None:
    assert values.done(old) is meant
    with pytest.raises(values.BadValueError):
        values.done("somehow")


@pytest.mark.parametrize("old", [b"\xff", "a\udcffb"])
def test_what_is_no_text_is_refused(old: Any) -> None:
    with pytest.raises(values.BadValueError):
        values.text(old)
