"""Citation markers: in pieces, beside annotations whose offsets count them."""

from typing import Any

from simulator.control import Control, ScriptedAnswer, ScriptedCitation
from tests.simulator.wire import Wire

MARKER = "\ue200cite\ue202turn0search{}\ue201"
TEXT = "Rain in Porto. Sun in Faro."


def said(events: list[Any]) -> list[str]:
    return [event.delta for event in events if event.type == "response.output_text.delta"]


async def test_a_marker_stands_behind_each_citation_and_comes_in_pieces(wire: Wire, control: Control) -> None:
    citations = [
        ScriptedCitation(url="https://a.example", title="A", start=0, end=13),
        ScriptedCitation(url="https://b.example", title="B", start=15, end=26),
    ]
    await control.script(ScriptedAnswer(text=TEXT, citations=citations, citation_markers=True))
    events = await wire.events(model="m", input="weather")
    text = "".join(said(events))
    assert text == f"Rain in Porto{MARKER.format(0)}. Sun in Faro{MARKER.format(1)}."
    assert not [delta for delta in said(events) if MARKER.format(0) in delta]
    annotations = [event.annotation for event in events if event.type == "response.output_text.annotation.added"]
    shown = [text[one.start_index : one.end_index] for one in annotations]
    assert shown == ["Rain in Porto", "Sun in Faro"]
    assert [one.url for one in annotations] == ["https://a.example", "https://b.example"]


async def test_what_the_rules_found_is_marked_too(wire: Wire, control: Control) -> None:
    await control.script(ScriptedAnswer(citation_markers=True))
    events = await wire.events(model="m", input="search the web for cats", tools=[{"type": "web_search"}])
    text = "".join(said(events))
    annotations = [event.annotation for event in events if event.type == "response.output_text.annotation.added"]
    assert len(annotations) == 2
    for number, one in enumerate(annotations):
        assert text[one.start_index : one.end_index] == one.url
        assert text[one.end_index :].startswith(MARKER.format(number))


async def test_markers_are_cut_anywhere_by_deltas(wire: Wire, control: Control) -> None:
    deltas = ["Rain\ue200", "cite", "\ue202turn0search0", "\ue201."]
    await control.script(ScriptedAnswer(deltas=deltas))
    assert said(await wire.events(model="m", input="weather")) == deltas
