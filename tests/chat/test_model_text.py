"""The text of a round out of the provider's bytes: every split of them, markers that nobody may see, and spans."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from services.chat.model.completion_stream import CompletionStream
from services.chat.model.response_stream import ResponseStream
from services.chat.pieces import Cited, Piece, Position, RoundEnd
from services.chat.records import Citation
from tests.chat.providers import completed, created, delta, end_of, message, numbered, sse, text_of

CITE, SEP, STOP = "\ue200", "\ue202", "\ue201"
MARKER = f"{CITE}cite{SEP}turn0search0{SEP}turn1view2{STOP}"


def annotation(start: int, end: int) -> dict[str, Any]:
    cited = {"type": "url_citation", "url": "https://a.example/", "title": "A", "start_index": start, "end_index": end}
    return {"type": "response.output_text.annotation.added", "annotation": cited}


def merged(pieces: Sequence[Piece | RoundEnd]) -> list[Piece | RoundEnd]:
    """The pieces with neighbouring texts joined: how they were cut is the socket's doing."""
    joined: list[Piece | RoundEnd] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def read(stream: ResponseStream | CompletionStream, *chunks: bytes) -> list[Piece | RoundEnd]:
    pieces = [piece for chunk in chunks for piece in stream.read(chunk)]
    assert stream.error is None
    return pieces


EVENTS: list[Mapping[str, Any]] = [
    created(),
    {"type": "response.output_item.added", "item": {"id": "msg_1", "type": "message", "content": []}},
    {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
    delta("Grüß 👋🏽 dich. "),
    delta(f"Süd{CITE}ci"),
    delta(f"te{SEP}turn0search0{STOP} und \x00Nord"),
    delta(f"{CITE}cite{SEP}t1{STOP}{CITE}cite{SEP}t2{STOP}\nEnde"),
    annotation(13, 16),
    annotation(16, 34),
    completed(message("whole")),
]
TEXT = "Grüß 👋🏽 dich. Süd und Nord\nEnde"
STREAM = sse(*EVENTS).replace(json.dumps("Grüß 👋🏽 dich. ").encode(), '"Grüß 👋🏽 dich. "'.encode())


def test_every_split_of_the_bytes_gives_the_same_pieces() -> None:
    assert "👋🏽".encode() in STREAM
    expected = merged(read(ResponseStream("m"), STREAM))
    assert text_of(expected) == TEXT
    assert end_of(expected).items == [message("whole")]
    for at in range(1, len(STREAM)):
        assert merged(read(ResponseStream("m"), STREAM[:at], STREAM[at:])) == expected
    by_bytes = [STREAM[at : at + 1] for at in range(len(STREAM))]
    assert merged(read(ResponseStream("m"), *by_bytes)) == expected


def test_a_marker_is_never_seen_however_it_is_split_across_deltas() -> None:
    said = f"Known.{MARKER} More{MARKER}."
    for first, second in itertools.combinations(range(len(said) + 1), 2):
        stream, told = ResponseStream("m"), ""
        for part in (said[:first], said[first:second], said[second:]):
            told += text_of(read(stream, sse(delta(part))))
            assert "Known. More.".startswith(told)
        assert told == "Known. More."


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (f"A{CITE}cite{SEP}turn0sea", "A"),
        (f"A{CITE}", "A"),
        (f"A{STOP}B{SEP}C", "ABC"),
        (f"A{CITE}no marker at all, only a stray sign", "Ano marker at all, only a stray sign"),
        (f"A{CITE}{'x' * 600}{STOP}B", f"A{'x' * 600}B"),
        (f"A{CITE}cite\n{STOP}B", "Acite\nB"),
        (f"A{CITE}{MARKER}B", "AB"),
    ],
)
def test_half_a_marker_is_dropped_and_what_is_none_loses_only_its_signs(said: str, told: str) -> None:
    assert text_of(read(ResponseStream("m"), sse(delta(said), completed()))) == told
    by_characters = [sse(delta(one)) for one in said]
    assert text_of(read(ResponseStream("m"), *by_characters, sse(completed()))) == told


@pytest.mark.parametrize(
    ("said", "span", "place"),
    [
        ("Plain text", (0, 5), (0, 5)),
        (f"One{MARKER} two", (0, 3), (0, 3)),
        (f"One{MARKER} two", (3, 3 + len(MARKER)), (3, 3)),
        (f"One{MARKER} two", (len(MARKER) + 4, len(MARKER) + 7), (4, 7)),
        (f"One{MARKER} two{MARKER}", (0, len(MARKER) + 7), (0, 7)),
        ("a\x00b\x07c", (2, 5), (1, 3)),
        ("Short", (2, 500), (2, 5)),
    ],
)
def test_spans_are_corrected_for_what_was_taken_out(said: str, span: tuple[int, int], place: tuple[int, int]) -> None:
    pieces = read(ResponseStream("m"), sse(delta(said), annotation(*span), completed()))
    assert [piece.citation for piece in pieces if isinstance(piece, Cited)] == [Citation("https://a.example/", "A", *place)]


def test_spans_of_a_second_message_count_from_the_beginning_of_the_round() -> None:
    opened = {"type": "response.output_item.added", "item": {"id": "msg", "type": "message"}}
    pieces = read(
        ResponseStream("m"),
        sse(opened, delta(f"First{MARKER}."), opened, delta("Second."), annotation(0, 6), completed()),
    )
    text = text_of(pieces)
    assert text == "First.\n\nSecond."
    cited = next(piece.citation for piece in pieces if isinstance(piece, Cited))
    assert text[cited.start : cited.end] == "Second"


def test_a_source_that_is_told_with_the_message_only_is_cited_once() -> None:
    item = message("Known.")
    item["content"][0]["annotations"] = [annotation(0, 5)["annotation"]]
    done = {"type": "response.output_item.done", "item": item}
    told_twice = read(ResponseStream("m"), sse(delta("Known."), annotation(0, 5), done, completed(item)))
    told_late = read(ResponseStream("m"), sse(delta("Known."), done, completed(item)))
    for pieces in (told_twice, told_late):
        assert [piece for piece in pieces if isinstance(piece, Cited)] == [Cited(Citation("https://a.example/", "A", 0, 5))]


def test_what_postgres_cannot_store_is_in_no_piece() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":"\x00b"}', "status": "completed"}
    end = end_of(read(ResponseStream("m"), sse(delta("x"), completed(call))))
    assert [one.arguments for one in end.calls] == ['{"a":"b"}']
    assert "\x00" not in json.dumps(end.items).replace("\\u0000", "\x00")


def test_positions_come_once_a_read_and_never_stand_before_what_was_told() -> None:
    events = numbered(*EVENTS)
    stream = ResponseStream("m", is_kept=True)
    first = list(stream.read(sse(*events[:5])))
    assert first[-1] == Position("resp_1", 4)
    assert sum(isinstance(piece, Position) for piece in first) == 1
    rest = list(stream.read(sse(*events[5:])))
    assert [type(piece) for piece in rest[-2:]] == [Position, RoundEnd]
    assert text_of([*first, *rest]) == TEXT


def test_a_stream_that_is_read_again_tells_only_what_comes_after_the_place_it_was_read_to() -> None:
    events = numbered(*EVENTS)
    once = [list(ResponseStream("m", is_kept=True).read(sse(*events[: at + 1]))) for at in range(len(events))]
    everything = [piece for piece in once[-1] if not isinstance(piece, Position)]
    for at in range(len(events) - 1):
        told = [piece for piece in once[at] if not isinstance(piece, Position)]
        again = ResponseStream("m", is_kept=True, resumed=Position("resp_1", at))
        rest = [piece for event in events for piece in again.read(sse(event)) if not isinstance(piece, Position)]
        assert merged([*told, *rest]) == merged(everything)


def test_a_frame_without_an_end_is_an_error_and_no_memory() -> None:
    stream = ResponseStream("m")
    chunk = b"x" * (1024 * 1024)
    for _ in range(17):
        stream.read(chunk)
    assert stream.error is not None
