"""The tools that the provider itself runs: web search, code interpreter, MCP servers, simulated.

Owns when they run (a rule on the user's words), what they find, and how the reply tells it. Nothing here leaves the
process: no page is fetched, no server called, and of code only plain arithmetic is computed.
"""

import ast
import operator
import re
from collections.abc import Callable
from urllib.parse import quote_plus

import orjson

from simulator.answers import Answer, CodeRun, McpApproval, McpRun, McpTools, WebSearch
from simulator.prompt import Approval, Other, Prompt
from simulator.requests import JsonObject

_SEARCHES = re.compile(
    r"\b(?:search|look\s+up|latest|news|today|current(?:ly)?|weather|web|online|price of)\b", re.IGNORECASE
)
_COMPUTES = re.compile(r"\b(?:calculate|compute|python|code|run|how\s+much\s+is|what\s+is|what's)\b", re.IGNORECASE)
_ARITHMETIC = re.compile(r"[-+(]*\d[\d\s.+\-*/%()]*")
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
}
_MAX_EXPRESSION = 200


def run(prompt: Prompt) -> Answer:
    """What the provider's tools did for this prompt; empty where none was called for."""
    for tool in prompt.tools:
        kind = str(tool.get("type"))
        if kind.startswith("web_search") and _wanted(prompt, kind, _SEARCHES):
            return (_search(prompt.last_user.text),)
        if kind == "code_interpreter" and (expression := _expression(prompt, kind)):
            return (CodeRun(f"print({expression})", f"{_shown(expression)}\n"),)
        if kind == "mcp" and (called := _mcp(prompt, tool)):
            return called
    return ()


def waits_for_approval(called: Answer) -> bool:
    """True where the person must answer before the run can go on."""
    return any(isinstance(item, McpApproval) for item in called)


def tell_results(called: Answer) -> str | None:
    """The reply after the provider's tools ran; None where none did."""
    for item in called:
        match item:
            case WebSearch(query=query, sources=sources):
                return f'I searched the web for "{query}" and found two simulated sources: {sources[0]} and {sources[1]}.'
            case CodeRun(code=code, logs=logs):
                return f"I ran {code} and it printed {logs.strip()}."
            case McpRun(server_label=label, name=name, output=output):
                return f"I called {name} on {label} and it returned: {output}"
    return None


def _wanted(prompt: Prompt, kind: str, words: re.Pattern[str]) -> bool:
    choice = prompt.tool_choice
    forced = choice == "required" or (isinstance(choice, dict) and choice.get("type") == kind)
    return forced or bool(words.search(prompt.last_user.text))


def _search(text: str) -> WebSearch:
    query = " ".join(text.split())[:100]
    topic = quote_plus(query.lower())
    return WebSearch(query, (f"https://news.example.com/{topic}", f"https://wiki.example.org/{topic}"))


def _expression(prompt: Prompt, kind: str) -> str | None:
    """The arithmetic in the message; "0" where code is insisted on and there is none."""
    if not _wanted(prompt, kind, _COMPUTES):
        return None
    found = [match.strip() for match in _ARITHMETIC.findall(prompt.last_user.text)]
    usable = [one for one in found if len(one) <= _MAX_EXPRESSION and _value(one) is not None and not one.isdigit()]
    asks_for_code = re.search(r"\b(?:python|code|run)\b", prompt.last_user.text, re.IGNORECASE)
    return usable[0] if usable else ("0" if asks_for_code or prompt.tool_choice != "auto" else None)


def _shown(expression: str) -> str:
    value = _value(expression)
    return "ZeroDivisionError" if value is None else str(value)


def _value(expression: str) -> float | None:
    try:
        return _evaluate(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError):
        return None


def _evaluate(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd):
        return _evaluate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    raise ValueError("only plain arithmetic is computed")


def _mcp(prompt: Prompt, tool: JsonObject) -> Answer:
    label = str(tool.get("server_label"))
    names = _tool_names(tool)
    listing = () if _listed(prompt, label) else (McpTools(label, tuple(_described(name) for name in names)),)
    name = _mentioned(prompt, label, names)
    if name is None:
        return listing
    arguments = orjson.dumps({"text": prompt.last_user.text}).decode()
    if tool.get("require_approval", "always") == "never":
        return (*listing, McpRun(label, name, arguments, _answer(prompt)))
    answered = [item for item in prompt.since_last_user if isinstance(item, Approval)]
    if not answered:
        return (*listing, McpApproval(label, name, arguments))
    if not answered[-1].approved:
        return listing
    return (*listing, McpRun(label, name, arguments, _answer(prompt), answered[-1].request_id))


def _answer(prompt: Prompt) -> str:
    return f"echo: {prompt.last_user.text}"


def _tool_names(tool: JsonObject) -> list[str]:
    allowed = tool.get("allowed_tools")
    if isinstance(allowed, dict):
        allowed = allowed.get("tool_names")
    return [str(name) for name in allowed] if allowed else ["echo"]


def _described(name: str) -> JsonObject:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    return {"name": name, "description": f"The simulated tool {name}.", "input_schema": schema, "annotations": None}


def _listed(prompt: Prompt, label: str) -> bool:
    listings = [item.item for item in prompt.items if isinstance(item, Other)]
    return any(item.get("type") == "mcp_list_tools" and item.get("server_label") == label for item in listings)


def _mentioned(prompt: Prompt, label: str, names: list[str]) -> str | None:
    """The tool that the message names, or the first one where it names the server."""
    words = prompt.last_user.text.lower()
    named = next((name for name in names if name.lower() in words or name.lower().replace("_", " ") in words), None)
    return named or (names[0] if label.lower() in words else None)
