# ruff: noqa: RUF001 - characters of other scripts are what is tested
"""A reply as it can be spoken: what stays, what goes, how long it takes, and that no text makes it slow."""

import pytest

from services.chat.speech import spoken_seconds, spoken_text
from tests.work import grows_with_its_input


@pytest.mark.parametrize(
    ("markdown", "spoken"),
    [
        ("Plain words stay.", "Plain words stay."),
        ("# Today\n\nIt rains.", "Today.\nIt rains."),
        ("### Why? ###", "Why?"),
        ("# Learn C#", "Learn C#."),
        ("Title\n=====\ntext", "Title\ntext"),
        ("one\n\n---\n\n* * *\n\ntwo", "one\ntwo"),
        ("It is **very** *nice*, __really__ _so_, ~~not~~.", "It is very nice, really so, not."),
        ("***all***", "all"),
        ("2 * 3 = 6 and 2*3, 2**3, snake_case, __init__", "2 * 3 = 6 and 2*3, 2**3, snake_case, init"),
        (r"a \*star\* and a \[bracket\]", "a *star* and a [bracket]"),
        ("- milk\n* bread!\n+ [x] eggs", "milk.\nbread!\neggs."),
        ("1. first\n2) second", "1. first.\n2. second."),
        ("> quoted\n> > twice", "quoted\ntwice"),
        ("Use `ls -l` now.", "Use ls -l now."),
        ("Before\n```python\nprint('x')\n```\nAfter", "Before\nAfter"),
        ("Before\n~~~\n```\n~~~\nAfter", "Before\nAfter"),
        ("```\nprint('x')\n```", "print('x')"),
        ("```\nnever closed", "never closed"),
        ("| City | Sun |\n|---|:-:|\n| Paris | **yes** |", "City, Sun.\nParis, yes."),
        ('See [the site](https://a.example/b?c=d "t").', "See the site."),
        ("![a cat](https://a.example/c.png) sleeps", "a cat sleeps"),
        ("See [the site][1].\n\n[1]: https://a.example", "See the site."),
        ("Go to https://www.example.com/a/b?c=d, or www.b.example.", "Go to example.com, or b.example."),
        ("<https://a.example/x> it is", "a.example it is"),
        ("It rains ([a.example](https://a.example/?utm_source=x), [b](https://b.example)).", "It rains."),
        ("It rains.[1][^2] And it snows【4†source】.", "It rains. And it snows."),
        ("Sun \ue200cite\ue202turn0search0\ue201 shines.", "Sun shines."),
        ("Nice 👍🏽 day ☀️ for 👨‍👩‍👧 in 🇫🇷!", "Nice day for in!"),
        ("1️⃣ first", "1 first"),
        ("a<br>b &amp; <b>c</b>", "a b & c"),
        ("你好，**世界**", "你好，世界"),
        ("", ""),
        ("***", ""),
    ],
)
def test_markup_goes_and_words_stay(markdown: str, spoken: str) -> None:
    assert spoken_text(markdown) == spoken


def test_an_address_that_is_none_is_not_spelled_out() -> None:
    assert "http" not in spoken_text("Go to http://[bad now.")


@pytest.mark.parametrize(
    ("text", "language", "seconds"),
    [
        ("word " * 150, "en", 60.0),
        ("mot " * 75, "fr", 30.0),
        ("你" * 250, "zh", 60.0),
        ("漢字かな" * 75, "ja", 60.0),
        ("漢" * 300, "ja-JP", 60.0),
        ("한" * 150, "ko", 30.0),
        ("ก" * 50, "th", 4.0),
        ("It's half-past 10.30", "", 1.2),
        ("", "en", 0.0),
        ("— … !", "en", 0.0),
    ],
)
def test_the_duration_follows_from_words_and_characters(text: str, language: str, seconds: float) -> None:
    assert spoken_seconds(text, language) == seconds


@pytest.mark.parametrize(
    "piece",
    [
        "**a ",
        "[",
        "[a](",
        "_a_",
        "`",
        "https://",
        "| ",
        "|-",
        "<a ",
        "- ",
        "(",
        "([a](b), ",
        "\ue200",
        "[^a",
        "【",
        "> ",
        "# ",
        "<!--",
    ],
)
def test_time_grows_with_the_length_and_not_faster(piece: str) -> None:
    assert grows_with_its_input(lambda count: _spoken(piece * count), 5_000)


@pytest.mark.parametrize(
    ("begin", "piece", "end"),
    [
        ("-", "| ", "|x"),
        ("-", "|          ", "|x"),
        ("# a", " ", "b"),
        ("", " ", "x|"),
        ("- ", ":-", "|x"),
        ("# ", "#", " b"),
    ],
)
def test_a_line_that_is_nothing_after_all_takes_no_longer(begin: str, piece: str, end: str) -> None:
    """A table whose last cell is a word, a heading with blanks within: each way to read them was tried, in turn."""
    assert grows_with_its_input(lambda count: _spoken(f"{begin}{piece * count}{end}"), 1_000)


def _spoken(text: str) -> float:
    return spoken_seconds(spoken_text(text), "")
