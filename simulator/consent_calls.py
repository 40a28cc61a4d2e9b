"""Calls of `set_text_messages` by intent: "don't text me", "you may text me again"; once a turn, where it is offered."""

import re
from typing import Final

import orjson

from simulator.answers import Answer, FunctionCall
from simulator.prompt import Call, Output, Prompt

_NAME: Final = "set_text_messages"
_TEXTS: Final = r"(?:text(?:ing)?\s+me|send(?:ing)?\s+me\s+(?:any\s+(?:more\s+)?)?(?:texts?|text messages|sms))"
_NO_MORE: Final = re.compile(rf"\b(?:don't|do not|stop|never|no longer)\s+(?:ever\s+)?{_TEXTS}\b", re.IGNORECASE)
_AGAIN: Final = re.compile(rf"\b(?:you (?:may|can)|feel free to|start)\s+{_TEXTS}(?:\s+again)?\b", re.IGNORECASE)


def _wanted(prompt: Prompt) -> bool | None:
    text = " ".join(prompt.last_user.text.replace("\u2019", "'").split())
    if _NO_MORE.search(text):
        return False
    return True if _AGAIN.search(text) else None


def next_call(prompt: Prompt) -> Answer:
    """The call of this turn; empty where none is (any longer) needed."""
    wanted = _wanted(prompt)
    is_offered = any(tool.get("type") == "function" and tool.get("name") == _NAME for tool in prompt.tools)
    is_made = any(isinstance(item, Call) and item.name == _NAME for item in prompt.since_last_user)
    if wanted is None or not is_offered or is_made:
        return ()
    return (FunctionCall(_NAME, orjson.dumps({"wanted": wanted}).decode()),)


def tell_results(prompt: Prompt) -> str | None:
    """The result of this turn's call, in words; None where there is none to tell."""
    names = {item.call_id: item.name for item in prompt.since_last_user if isinstance(item, Call)}
    told = [item.text for item in prompt.since_last_user if isinstance(item, Output) and names.get(item.call_id) == _NAME]
    if not told:
        return None
    try:
        answer = orjson.loads(told[-1])
    except orjson.JSONDecodeError:
        return f"I could not do that: {told[-1]}"
    if not isinstance(answer, dict) or "text_messages_wanted" not in answer:
        return f"I could not do that: {told[-1]}"
    return "You may get text messages again." if answer["text_messages_wanted"] else "You will get no more text messages."
