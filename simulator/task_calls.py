"""Function calls by intent: which task function the user's words ask for, and with which arguments.

Owns the reading of "add a task to buy groceries", "what is on my list", "done with groceries", the choice among the
functions offered in `tools` (add_task, list_tasks, complete_task, update_task, delete_task), and the telling of their
results. Where a function needs a task's id, the list is asked for first and the id taken from its output.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from simulator.answers import Answer, FunctionCall
from simulator.prompt import Call, Output, Prompt
from simulator.requests import JsonObject

_ITEM = r"(?P<subject>.+?)"
_TAIL = r"(?:\s+tasks?)?(?:\s+(?:to|on|from|off|in)\s+(?:my|the)\s+(?:to-?do\s+)?(?:list|tasks))?\s*[.!?]*\s*$"
_TASK = r"(?:(?:the|a|an|my|new)\s+)*(?:task\s*)?(?:(?:to|of|for|called|named|:)\s+)?"
_INTENTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.IGNORECASE | re.DOTALL))
    for name, pattern in (
        ("update_task", rf"\b(?:rename|change|update)\s+{_TASK}{_ITEM}\s+(?:to|into)\s+(?P<new>.+?)\s*[.!]*\s*$"),
        ("delete_task", rf"\b(?:delete|remove|drop)\s+{_TASK}{_ITEM}{_TAIL}"),
        (
            "complete_task",
            rf"\b(?:done\s+with|finished|completed?|tick\s+off|mark)\s+{_TASK}{_ITEM}(?:\s+as\s+(?:done|complete|completed))?{_TAIL}",
        ),
        ("add_task", rf"\b(?:add|create|make|remind\s+me(?:\s+to)?|remember\s+to|put)\s+{_TASK}{_ITEM}{_TAIL}"),
        ("list_tasks", r"\b(?:list|show|which|what)\b.*\b(?:list|tasks?|to-?dos?|to\s+do)\b"),
    )
)
_INTENT_CHARACTERS = 400
_TITLE_NAMES = ("title", "name", "task", "text", "content", "summary", "subject")
_NEW_NAMES = ("new_title", "new_name", *_TITLE_NAMES)
_NEEDS_TASK = ("complete_task", "update_task", "delete_task")


@dataclass(frozen=True, slots=True)
class Intent:
    """What the user wants done to which task."""

    function: str
    subject: str = ""
    new: str = ""


def read_intent(text: str) -> Intent | None:
    """The task intent of a message, if it has one; of a long message its beginning counts."""
    text = " ".join(text.split())[:_INTENT_CHARACTERS]
    for function, pattern in _INTENTS:
        found = pattern.search(text)
        if found:
            words = found.groupdict()
            return Intent(function, (words.get("subject") or "").strip(), (words.get("new") or "").strip())
    return None


def next_call(prompt: Prompt) -> Answer:
    """The next function call of this turn; empty where none is (any longer) needed."""
    offered = {str(tool.get("name")): tool for tool in prompt.tools if tool.get("type") == "function"}
    intent = read_intent(prompt.last_user.text) if offered else None
    if intent is None or intent.function not in offered:
        return _forced(prompt, offered)
    made = [item.name for item in prompt.since_last_user if isinstance(item, Call)]
    if intent.function in made:
        return ()
    schema = offered[intent.function].get("parameters") or {}
    if not _id_names(schema) or intent.function not in _NEEDS_TASK:
        return (_call(intent, schema, task_id=None),)
    task = _find_task(prompt, intent.subject)
    if task is not None:
        return (_call(intent, schema, task_id=task),)
    if "list_tasks" in offered and "list_tasks" not in made:
        return (_call(Intent("list_tasks"), offered["list_tasks"].get("parameters") or {}, task_id=None),)
    return ()


def tell_results(prompt: Prompt) -> str:
    """The results of this turn's function calls, in words."""
    names = {item.call_id: item.name for item in prompt.since_last_user if isinstance(item, Call)}
    outputs = [item for item in prompt.since_last_user if isinstance(item, Output)]
    last = outputs[-1]
    name = names.get(last.call_id, "function")
    intent = read_intent(prompt.last_user.text)
    if intent and name == "list_tasks" and intent.function in _NEEDS_TASK:
        return f'I found no task like "{intent.subject}". This is what list_tasks returned: {last.text}'
    return f"I called {name} and it returned: {last.text}"


def _forced(prompt: Prompt, offered: dict[str, JsonObject]) -> Answer:
    """A call that `tool_choice` insists on, once a turn, its required arguments filled by their schema."""
    if any(isinstance(item, Call) for item in prompt.since_last_user):
        return ()
    choice = prompt.tool_choice
    wanted = (choice.get("name") or (choice.get("function") or {}).get("name")) if isinstance(choice, dict) else None
    if choice == "required" and offered:
        wanted = next(iter(offered))
    if wanted not in offered:
        return ()
    schema = offered[str(wanted)].get("parameters") or {}
    return (_call(Intent(str(wanted), prompt.last_user.text), schema, task_id=None),)


def _call(intent: Intent, schema: JsonObject, *, task_id: Any) -> FunctionCall:
    arguments: JsonObject = {}
    properties: JsonObject = schema.get("properties") or {}
    titles = _NEW_NAMES if intent.function == "update_task" else _TITLE_NAMES
    title = next((name for name in titles if name in properties), None)
    if title and (intent.new or intent.subject) and (task_id is None or intent.new):
        arguments[title] = intent.new or intent.subject
    for name in _id_names(schema):
        if task_id is not None:
            arguments[name] = task_id
    for name in schema.get("required") or ():
        if name not in arguments:
            arguments[name] = _filler(properties.get(name) or {}, intent.subject)
    return FunctionCall(intent.function, orjson.dumps(arguments).decode())


def _filler(schema: JsonObject, subject: str) -> Any:
    """A value for a required argument that the words do not give: null where it may be."""
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "null" in kinds:
        return None
    if schema.get("enum"):
        return schema["enum"][0]
    fillers: dict[Any, Any] = {"boolean": False, "integer": 0, "number": 0, "array": [], "object": {}}
    return next((fillers[kind] for kind in kinds if kind in fillers), subject)


def _id_names(schema: JsonObject) -> list[str]:
    return [name for name in schema.get("properties") or {} if name in ("id", "task_id")]


def _find_task(prompt: Prompt, subject: str) -> Any:
    """The id of the first task, in any output of this turn, whose title has every word of the subject."""
    words = set(re.findall(r"\w+", subject.lower()))
    for item in prompt.since_last_user:
        if not isinstance(item, Output):
            continue
        for task in _objects(_loaded(item.text)):
            title = next((str(task[name]) for name in _TITLE_NAMES if isinstance(task.get(name), str)), "")
            if words and words <= set(re.findall(r"\w+", title.lower())):
                return task.get("task_id", task.get("id"))
    return None


def _loaded(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _objects(value: Any) -> Iterator[JsonObject]:
    if isinstance(value, dict):
        if "id" in value or "task_id" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _objects(inner)
