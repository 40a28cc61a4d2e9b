"""Segments, as networks count them."""

import pytest

from services.sms.segments import shortened, size_of


@pytest.mark.parametrize(
    ("text", "encoding", "segments"),
    [
        ("", "gsm7", 1),
        ("a" * 160, "gsm7", 1),
        ("a" * 161, "gsm7", 2),
        ("a" * 306, "gsm7", 2),
        ("a" * 307, "gsm7", 3),
        # The euro sign takes two septets, and is not cut in the middle.
        ("€" * 80, "gsm7", 1),
        ("€" * 81, "gsm7", 2),
        ("a" * 152 + "€" + "b" * 10, "gsm7", 2),
        ("a" * 152 + "€" + "b" * 151, "gsm7", 2),
        ("a" * 152 + "€" + "b" * 152, "gsm7", 3),
        ("ça va @£ Ω", "ucs2", 1),
        ("Çà @£ Ω è ñ ü ß", "gsm7", 1),
        ("ж" * 70, "ucs2", 1),
        ("ж" * 71, "ucs2", 2),
        ("ж" * 134, "ucs2", 2),
        ("ж" * 135, "ucs2", 3),
        # An emoji is two UTF-16 units.
        ("🙂" * 35, "ucs2", 1),
        ("🙂" * 36, "ucs2", 2),
        ("ж" * 66 + "🙂" + "ж" * 65, "ucs2", 2),
        ("ж" * 66 + "🙂" + "ж" * 66, "ucs2", 3),
        ("`", "ucs2", 1),
        ("line\nfeed\r", "gsm7", 1),
    ],
)
def test_sizes(text: str, encoding: str, segments: int) -> None:
    size = size_of(text)
    assert (size.encoding, size.segments) == (encoding, segments)


@pytest.mark.parametrize("text", ["short", "word " * 200, "x" * 900, "жук " * 300, "🙂" * 500, "a" * 159 + "€€"])
@pytest.mark.parametrize("most", [1, 2, 6])
def test_what_is_shortened_fits_and_is_a_beginning(text: str, most: int) -> None:
    short = shortened(text, most_segments=most)
    assert size_of(short).segments <= most
    assert short == text or (short.endswith("...") and text.startswith(short.removesuffix("...")))
    if text.startswith("word") and short != text:
        assert short.removesuffix("...").endswith("word")
