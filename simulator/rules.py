"""What the simulated model says: rules, no model.

Owns the choice of an answer from a prompt. The same prompt always gets the same answer, and an answer is made so that a
person can see what the model received: it repeats the last message, counts the earlier ones, and recalls what they said.
It refuses to know anything that is not in the prompt.
"""

import re

import orjson

from simulator import consent_calls, memory_calls, provider_tools, recollection, structured, summaries, task_calls
from simulator.answers import Answer, Citation, FunctionCall, Reasoning, Text, WebSearch
from simulator.prompt import Output, Prompt
from simulator.tokens import tokenize

QUOTE_LIMIT = 280
TITLE_WORDS, TITLE_CHARACTERS = 6, 60

_ASKS_LAST = re.compile(
    r"\bwhat\s+(?:did|have)\s+i\s+(?:just\s+|last\s+)?(?:say|said|tell|told|write|written|ask|asked)\b", re.IGNORECASE
)
_ASKS_FIRST = re.compile(r"\bfirst\s+(?:thing|message|question)\b|\bsay\s+first\b", re.IGNORECASE)
_WANTS_TITLE = re.compile(r"\btitle\b[^.]*\b(?:conversation|chat|dialogue)\b", re.IGNORECASE | re.DOTALL)
_SPEAKER = re.compile(r"^\s*(?:user|person|human|q)\s*:\s*", re.IGNORECASE)
_GREETING = re.compile(r"^\s*(?:hi|hello|hey|good (?:morning|afternoon|evening))\b", re.IGNORECASE)

_REASONING_TOKENS = {"none": 0, "minimal": 0, "low": 8, "medium": 16, "high": 32, "xhigh": 48, "max": 64}


def answer_for(prompt: Prompt) -> Answer:
    """The answer to a prompt."""
    if prompt.tool_choice != "none":
        called = (
            consent_calls.next_call(prompt)
            or memory_calls.next_call(prompt)
            or task_calls.next_call(prompt)
            or provider_tools.run(prompt)
        )
        if called and _waits_for_caller(called):
            return called
        return (*called, *_closing(prompt, called))
    return _closing(prompt, ())


def numbered(count: int) -> Answer:
    """`tok0 tok1 tok2 …`: exactly `count` tokens, so that a lost, doubled or misplaced one is seen."""
    return (Text(tuple(f"tok{index}" if index == 0 else f" tok{index}" for index in range(count))),)


def reasoning_for(prompt: Prompt, *, effort: str, wants_summary: bool) -> Answer:
    """The thinking before an answer; nothing for an effort that does not think."""
    hidden = _REASONING_TOKENS[effort]
    if not hidden:
        return ()
    summary = f"**Reading the request** The user wrote: {quote(prompt.last_user.text)}" if wants_summary else ""
    return (Reasoning(tokenize(summary), hidden),)


def quote(text: str) -> str:
    """A message between quotation marks, cut where it is long."""
    flat = " ".join(text.split())
    return f'"{flat[:QUOTE_LIMIT]}…"' if len(flat) > QUOTE_LIMIT else f'"{flat}"'


def reply_text(prompt: Prompt) -> str:
    """The plain reply to the user's last message."""
    outputs = [item for item in prompt.since_last_user if isinstance(item, Output)]
    if outputs:
        return consent_calls.tell_results(prompt) or memory_calls.tell_results(prompt) or task_calls.tell_results(prompt)
    if asks_title(prompt):
        return title_of(prompt.last_user.text)
    if summaries.asks_summary(prompt):
        return summaries.summary_of(prompt)
    return _recalled(prompt) or _echo(prompt)


def _waits_for_caller(called: Answer) -> bool:
    return any(isinstance(item, FunctionCall) for item in called) or provider_tools.waits_for_approval(called)


def asks_title(prompt: Prompt) -> bool:
    """Whether the instructions want a title for a conversation, and nothing else."""
    return bool(_WANTS_TITLE.search(prompt.orders))


def title_of(text: str) -> str:
    """A title for a conversation that begins so: its first words, at most six and 60 characters, without a full stop."""
    first = next((line for line in text.splitlines() if line.strip()), "A conversation")
    words = _SPEAKER.sub("", first).split()[:TITLE_WORDS]
    title = " ".join(words)[:TITLE_CHARACTERS].rstrip(" .,;:!?")
    return title[:1].upper() + title[1:] if title else "A conversation"


def _closing(prompt: Prompt, called: Answer) -> Answer:
    """The text that ends an answer: JSON where it was asked for, else words, with sources after a search."""
    if prompt.schema is not None:
        return (Text(tokenize(structured.json_for(prompt.schema, prompt, reply_text(prompt)))),)
    if prompt.wants_json:
        return (Text(tokenize(orjson.dumps({"reply": reply_text(prompt)}).decode())),)
    found = provider_tools.tell_results(called)
    text = found or reply_text(prompt)
    return (Text(tokenize(text), _citations(text, called)),)


def _citations(text: str, called: Answer) -> tuple[Citation, ...]:
    searched = [item for item in called if isinstance(item, WebSearch)]
    spans = [(url, text.find(url)) for item in searched for url in item.sources]
    return tuple(Citation(url, f"Simulated source for {url}", at, at + len(url)) for url, at in spans if at >= 0)


def _recalled(prompt: Prompt) -> str | None:
    asked = prompt.last_user.text
    said = prompt.earlier_user_texts
    if _ASKS_FIRST.search(asked) and said:
        return f"The first thing you said was: {quote(said[0])}."
    if _ASKS_LAST.search(asked):
        return f"You just said: {quote(said[-1])}." if said else "You have not said anything before this."
    return recollection.answer_of(prompt)


def _echo(prompt: Prompt) -> str:
    message = prompt.last_user
    if not message.text and not message.images:
        return "I received no message."
    parts = ["Hello! " if _GREETING.match(message.text) else "", f"You said: {quote(message.text)}."]
    if message.images:
        parts.append(f" You sent {' and '.join(message.images)}.")
    parts.append(_earlier(prompt))
    return "".join(parts)


def _earlier(prompt: Prompt) -> str:
    if not prompt.earlier_messages:
        return " This is the first message that I received."
    received = f" Before it I received {_counted(prompt.earlier_messages, 'message')}"
    said = prompt.earlier_user_texts
    return f"{received}; you had said {quote(said[-1])}." if said else f"{received}."


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
