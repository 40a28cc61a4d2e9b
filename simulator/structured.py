"""Structured output: a JSON text that satisfies the schema of a request.

Owns the filling of a JSON schema: yes/no decisions by rule, texts from the plain reply, every other value the plainest
one the schema allows. The same prompt and schema always give the same object. Beyond `MAX_DEPTH` levels or
`MAX_VALUES` values a schema is refused.
"""

import re
from dataclasses import dataclass
from typing import Any

import orjson

from simulator import decisions, extraction
from simulator.errors import invalid
from simulator.prompt import Prompt
from simulator.requests import JsonObject

MAX_DEPTH = 20
MAX_VALUES = 5_000
MAX_LENGTH = 100_000

_REFUSES = re.compile(
    r"\b(?:stop|unsubscribe|no thanks|not interested|do not (?:reply|contact|text)|don't (?:reply|contact|text))\b",
    re.IGNORECASE,
)
_EMPTY_TALK = re.compile(r"^\W*(?:(?:ok(?:ay)?|k|thanks?|thank you|thx|lol|bye|cool|great|np)\b\W*)*$", re.IGNORECASE)
_AFFIRMATIVE = ("yes", "true", "y", "reply", "respond", "accept", "allow")
_NEGATIVE = ("no", "false", "n", "ignore", "skip", "none", "reject", "deny")
_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "email": "someone@example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/",
}


def decide(text: str) -> bool:
    """The yes/no rule: yes to anything that calls for an answer, no to a refusal or to mere politeness."""
    return not (_REFUSES.search(text) or _EMPTY_TALK.match(text))


def json_for(schema: JsonObject, prompt: Prompt, reply: str) -> str:
    """A JSON text satisfying `schema`. Raises ApiError (400) for a schema that is too deep or too wide."""
    if extraction.asks_operations(schema):
        return extraction.operations_for(prompt)
    if decisions.asks_decision(schema):
        return decisions.decision_for(prompt)
    filler = _Filler(schema, decide(prompt.last_user.text), reply)
    return orjson.dumps(filler.value(schema, name="", depth=0)).decode()


@dataclass(slots=True)
class _Filler:
    root: JsonObject
    decision: bool
    reply: str
    values: int = 0

    def value(self, schema: JsonObject, *, name: str, depth: int) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise invalid(f"The schema asks for more than {MAX_VALUES} values.", param="text.format.schema")
        if depth > MAX_DEPTH:
            raise invalid(f"The schema nests more than {MAX_DEPTH} levels deep.", param="text.format.schema")
        inner = self._indirection(schema)
        if inner is not None:
            return self.value(inner, name=name, depth=depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._choice(schema["enum"])
        return self._typed(schema, name=name, depth=depth)

    def _indirection(self, schema: JsonObject) -> JsonObject | None:
        """The schema that this one stands for: a definition, or a branch of a union."""
        if "$ref" in schema:
            return self._resolve(schema["$ref"])
        branches: list[JsonObject] = schema.get("anyOf") or schema.get("oneOf") or []
        return next((branch for branch in branches if branch.get("type") != "null"), branches[0]) if branches else None

    def _typed(self, schema: JsonObject, *, name: str, depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        match kind:
            case "object":
                properties: JsonObject = schema.get("properties") or {}
                return {key: self.value(inner, name=key, depth=depth + 1) for key, inner in properties.items()}
            case "array":
                inner, length = schema.get("items") or {}, schema.get("minItems", 0)
                return [self.value(inner, name=name, depth=depth + 1) for _ in range(length)]
            case "boolean":
                return self.decision
            case "integer" | "number":
                return _number(schema, whole=kind == "integer")
            case "null":
                return None
        return self._string(schema)

    def _string(self, schema: JsonObject) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        text = self.reply[: schema.get("maxLength", len(self.reply))]
        return text.ljust(min(schema.get("minLength", 0), MAX_LENGTH), ".")

    def _choice(self, options: list[Any]) -> Any:
        wanted = _AFFIRMATIVE if self.decision else _NEGATIVE
        return next((option for option in options if str(option).lower() in wanted), options[0])

    def _resolve(self, reference: str) -> JsonObject:
        target: Any = self.root
        for step in reference.removeprefix("#").strip("/").split("/"):
            target = target.get(step) if step and isinstance(target, dict) else target
        if not isinstance(target, dict):
            raise invalid(f"The schema refers to '{reference}', which it does not define.", param="text.format.schema")
        return target


def _number(schema: JsonObject, *, whole: bool) -> float:
    """The number nearest to zero that the bounds allow."""
    low, high = schema.get("minimum"), schema.get("maximum")
    step = 1 if whole else 0.5
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + step
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - step
    if low is not None and low > 0:
        return int(low) if whole else float(low)
    if high is not None and high < 0:
        return int(high) if whole else float(high)
    return 0
