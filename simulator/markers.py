"""Citation markers: what OpenAI's models write into a text beside its annotations, and clients are not to show.

Owns their form, `U+E200 cite U+E202 turn0search<n> U+E201`, and that one comes in several deltas. Offsets of the annotations
count the text as it is sent, markers included.
"""

from dataclasses import replace

from simulator.answers import Answer, Text

BEGIN, SEPARATOR, END = "\ue200", "\ue202", "\ue201"


def with_markers(answer: Answer) -> Answer:
    """The answer with a marker behind the span of each citation."""
    return tuple(_marked(item) if isinstance(item, Text) else item for item in answer)


def marker(number: int) -> tuple[str, ...]:
    """One marker, in the pieces that it is sent in."""
    return (f"{BEGIN}ci", "te", f"{SEPARATOR}turn0", f"search{number}", END)


def _marked(text: Text) -> Text:
    """Pieces keep their cuts but where a marker stands; spans move by the markers before them."""
    ends = sorted({citation.end for citation in text.citations})
    markers = {end: marker(number) for number, end in enumerate(ends)}

    def moved(place: int) -> int:
        return place + sum(len("".join(pieces)) for end, pieces in markers.items() if end <= place)

    tokens: list[str] = []
    said = 0
    for token in text.tokens:
        tokens += _cut(token, said, markers)
        said += len(token)
    # A span's end stands before its own marker.
    citations = [
        replace(one, start=moved(one.start), end=moved(one.end) - len("".join(markers[one.end]))) for one in text.citations
    ]
    return Text(tuple(tokens), tuple(citations))


def _cut(token: str, begin: int, markers: dict[int, tuple[str, ...]]) -> list[str]:
    pieces: list[str] = []
    last = 0
    for end in sorted(end - begin for end in markers if begin < end <= begin + len(token)):
        pieces += [token[last:end], *markers[begin + end]]
        last = end
    return [piece for piece in (*pieces, token[last:]) if piece]
