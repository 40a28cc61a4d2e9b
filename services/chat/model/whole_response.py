"""A response of the Responses API as a whole: how a round ended, and the events that would have told it.

Owns what the terminal events mean. Invariant: a failed or cancelled response is an error, never an end; a call that was
cut off is not to be made.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from services.chat.pieces import FunctionCall, RoundEnd
from services.chat.records import Usage
from services.runtime.openai import Refusal, from_refusal, unavailable

END_KINDS: Final = ("response.completed", "response.incomplete", "response.failed", "response.cancelled", "error")
UNFINISHED: Final = ("queued", "in_progress")
_INCOMPLETE: Final = {"max_output_tokens": "MAX_OUTPUT_TOKENS", "content_filter": "CONTENT_FILTER"}
Event = Mapping[str, Any]


def round_end(event: Event, items: Sequence[Event], model: str) -> RoundEnd:
    """What a terminal event says. `items` are used where its response does not carry its output. Raises ServiceError."""
    response = event.get("response") or {}
    if event["type"] in ("response.failed", "error"):
        refusal = Refusal(None, response.get("error") or event.get("error") or event)
        raise from_refusal(refusal, model) from refusal
    if event["type"] == "response.cancelled":
        raise unavailable(model)
    incomplete = None
    if event["type"] == "response.incomplete":
        stated = (response.get("incomplete_details") or {}).get("reason")
        incomplete = _INCOMPLETE.get(str(stated), "MAX_OUTPUT_TOKENS")
    output = list(response.get("output") or items)
    return RoundEnd(
        usage=_usage(response.get("usage")),
        incomplete_reason=incomplete,
        calls=() if incomplete else tuple(_calls(output)),
        items=output,
        response_id=str(response.get("id") or ""),
    )


def as_events(response: Event) -> Iterator[Event]:
    """The events, without numbers, that tell a response which has ended."""
    for item in response.get("output") or ():
        yield {"type": "response.output_item.added", "item": item}
        for part in item.get("summary") or () if item["type"] == "reasoning" else ():
            yield {"type": "response.reasoning_summary_part.added", "part": part}
            yield {"type": "response.reasoning_summary_text.delta", "delta": part["text"]}
        for part in item.get("content") or () if item["type"] == "message" else ():
            yield {"type": "response.content_part.added", "part": part}
            if part["type"] == "refusal":
                yield {"type": "response.refusal.delta", "delta": part["refusal"]}
            else:
                yield {"type": "response.output_text.delta", "delta": part["text"]}
        yield {"type": "response.output_item.done", "item": item}
    yield {"type": f"response.{response['status']}", "response": response}


def without_nul(value: Any) -> Any:
    """The same JSON without NUL characters, which Postgres does not store."""
    match value:
        case str():
            return value.replace("\x00", "")
        case list():
            return [without_nul(one) for one in value]
        case dict():
            return {without_nul(key): without_nul(one) for key, one in value.items()}
    return value


def _calls(output: Sequence[Event]) -> Iterator[FunctionCall]:
    for item in output:
        if item["type"] == "function_call" and item.get("status") in (None, "completed"):
            yield FunctionCall(item["call_id"], item["name"], item["arguments"])


def _usage(stated: Event | None) -> Usage | None:
    if not stated:
        return None
    return Usage(
        input_tokens=int(stated.get("input_tokens") or 0),
        cached_tokens=int((stated.get("input_tokens_details") or {}).get("cached_tokens") or 0),
        output_tokens=int(stated.get("output_tokens") or 0),
        reasoning_tokens=int((stated.get("output_tokens_details") or {}).get("reasoning_tokens") or 0),
    )
