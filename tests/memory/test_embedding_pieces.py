"""What of a text is embedded by itself."""

from datetime import UTC, datetime

import pytest

from services.memory.embedding.pieces import MOST_PIECES, pieces, whole
from tests.work import grows_with_its_input


def test_the_whole_says_who_and_when() -> None:
    assert whole("I moved.", role="user", time=datetime(2023, 5, 7, tzinfo=UTC)) == "user, 7 May 2023: I moved."


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("I live in Porto now.", []),
        ("I live in Porto. I moved there in 2021! Do you know it?", 3),
        ("Dr. Ana Silva met J. Smith at 3.5 km, e.g. on Mondays. They talked for hours.", 2),
        ("We met at 3 p.m. and then we went home... or so I think.", []),
        ("今天我去了东京。明天我会去大阪城！", ["今天我去了东京。", "明天我会去大阪城！"]),  # noqa: RUF001
        ("मैं दिल्ली में रहता हूँ। मेरा भाई मुंबई में रहता है।", 2),
        ("Яблоко лежит на столе. Груша лежит на полу.", 2),
        ("Yes. I would like that very much.", []),
        ("I would like that very much. Ok.", []),
        ("", []),
        ("   \n\n  ", []),
    ],
)
def test_sentences(text: str, cut: list[str] | int) -> None:
    found = pieces(text)
    assert (len(found) if isinstance(cut, int) else found) == cut


def test_list_items_lines_and_code_are_pieces_and_code_is_never_cut() -> None:
    shopping = "My shopping list:\n- milk and some eggs\n2. two loaves of bread"
    text = f"{shopping}\n\n```py\nfirst = 1.\nSecond = 2.\n```\nThat is all I need."
    assert pieces(text) == [
        "My shopping list:",
        "milk and some eggs",
        "two loaves of bread",
        "```py\nfirst = 1.\nSecond = 2.\n```",
        "That is all I need.",
    ]


def test_lines_wrapped_by_their_width_are_one_sentence() -> None:
    text = "This sentence was wrapped by a mail program that knows its width,\nand goes on here until it ends."
    assert pieces(text) == []


def test_many_sentences_are_grouped_in_order_and_none_is_lost() -> None:
    sentences = [f"This is sentence number {number}." for number in range(30)]
    found = pieces(" ".join(sentences))
    assert len(found) == MOST_PIECES
    assert "\n".join(found).split("\n") == sentences
    assert max(map(len, found)) < 2 * min(map(len, found))


@pytest.mark.parametrize("text", [". " * 200_000, "a.\n" * 130_000, "- " * 200_000, "```\n" * 100_000, "." + " " * 399_999])
def test_hostile_text_costs_little(text: str) -> None:
    assert len(pieces(text)) <= MOST_PIECES
    assert grows_with_its_input(lambda length: pieces(text[:length]), len(text) // 16)
