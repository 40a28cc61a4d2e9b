"""JSON Schemas of the messages, as the transcoder reads and writes them, with the field rules of the contract.

Invariant: what a schema refuses, the runtime refuses too; field names are those of the protos.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet

from gateway.contract import ContractError
from parley.options.v1 import options_pb2

Schema = dict[str, Any]
_F = FieldDescriptorProto
_SCALARS: dict[int, Schema] = {
    _F.TYPE_STRING: {"type": "string"},
    _F.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    _F.TYPE_BOOL: {"type": "boolean"},
    _F.TYPE_INT32: {"type": "integer", "format": "int32"},
    _F.TYPE_SINT32: {"type": "integer", "format": "int32"},
    _F.TYPE_UINT32: {"type": "integer", "format": "int32", "minimum": 0},
    # JSON numbers cannot hold every one of these.
    _F.TYPE_INT64: {"type": "string", "format": "int64"},
    _F.TYPE_UINT64: {"type": "string", "format": "uint64"},
    _F.TYPE_FLOAT: {"type": "number", "format": "float"},
    _F.TYPE_DOUBLE: {"type": "number", "format": "double"},
}
_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$", "examples": ["1.5s"]},
    "google.protobuf.FieldMask": {"type": "string", "examples": ["title"]},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
    "google.protobuf.Empty": {"type": "object"},
}


class Schemas:
    """Schemas of every message of a descriptor set, collected as they are referred to."""

    def __init__(self, descriptors: FileDescriptorSet, comments: Mapping[str, str], answers: Iterable[str]) -> None:
        self._messages = dict(_all_messages(descriptors))
        self._enums = {f"{file.package}.{enum.name}": enum for file in descriptors.file for enum in file.enum_type}
        self._comments = comments
        self._used: dict[str, Schema] = {}
        self._answered: set[str] = set()
        for answer in answers:
            self._note_answered(answer)

    @property
    def components(self) -> dict[str, Schema]:
        """Every schema that was referred to so far, by name."""
        return dict(sorted(self._used.items()))

    def message(self, name: str) -> DescriptorProto:
        """The message of this full name."""
        return self._messages[name]

    def reference(self, name: str, *, is_answer: bool) -> Schema:
        """A reference to a message's schema. In answers every field that is always printed is required."""
        if name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        # What stands in answers has other required fields when it comes in a request.
        short = self._short(name) + ("Input" if not is_answer and name in self._answered else "")
        if short not in self._used:
            # Taken before it is made: a message may hold itself.
            self._used[short] = {}
            self._used[short].update(self.inline(name, is_answer=is_answer))
        known = self._used[short].get("x-proto", name)
        if known != name:
            raise ContractError(f"{name} and {known} would share the schema name {short}")
        return {"$ref": f"#/components/schemas/{short}"}

    def inline(self, name: str, *, is_answer: bool, without: Collection[str] = ()) -> Schema:
        """The schema of a message, some fields left out."""
        message = self._messages[name]
        fields = [field for field in message.field if field.name not in without]
        required = [f.name for f in fields if (is_always_printed(f, self._is_map(f)) if is_answer else rules(f).required)]
        schema: Schema = {"type": "object", "x-proto": name, "description": self._comments.get(name, "")}
        schema["properties"] = {field.name: self.field(name, field, is_answer=is_answer) for field in fields}
        return {**schema, "required": required} if required else schema

    def field(self, message: str, field: FieldDescriptorProto, *, is_answer: bool) -> Schema:
        """The schema of one field: its type, its rules, its comment."""
        rule = rules(field)
        description = self._comments.get(f"{message}.{field.name}", "")
        single = self._single(field, is_answer=is_answer)
        if self._is_map(field):
            value = self._messages[field.type_name.removeprefix(".")].field[1]
            values = {**self._single(value, is_answer=is_answer), **_of_value(rule)}
            schema: Schema = {"type": "object", **_of_keys(rule), "additionalProperties": values}
            schema |= _of_count(rule, "Properties")
        elif field.label == _F.LABEL_REPEATED:
            schema = {"type": "array", "items": {**single, **_of_value(rule)}, **_of_count(rule, "Items")}
        else:
            schema = {**single, **_of_value(rule), **_of_required_string(field, rule)}
        return {**schema, "description": description} if description else schema

    def _short(self, name: str) -> str:
        package, short = name.rsplit(".", 1)
        # Two services may well have a ListSessionsResponse: then both are called by their service, `AuthListSessions…`.
        is_shared = len([other for other in self._messages if other.rsplit(".", 1)[1] == short]) > 1
        return (package.split(".")[1].capitalize() if is_shared else "") + short

    def _note_answered(self, name: str) -> None:
        if name in self._answered or name not in self._messages:
            return
        self._answered.add(name)
        for field in self._messages[name].field:
            self._note_answered(field.type_name.removeprefix("."))

    def _single(self, field: FieldDescriptorProto, *, is_answer: bool) -> Schema:
        name = field.type_name.removeprefix(".")
        if field.type == _F.TYPE_MESSAGE:
            return {} if self._is_map(field) else self.reference(name, is_answer=is_answer)
        if field.type == _F.TYPE_ENUM:
            return {"type": "string", "enum": [value.name for value in self._enums[name].value]}
        return dict(_SCALARS[field.type])

    def _is_map(self, field: FieldDescriptorProto) -> bool:
        message = self._messages.get(field.type_name.removeprefix("."))
        return message is not None and message.options.map_entry


def rules(field: FieldDescriptorProto) -> options_pb2.FieldRules:
    """What the contract demands of a field."""
    return field.options.Extensions[options_pb2.rules]


def is_always_printed(field: FieldDescriptorProto, is_map: bool) -> bool:  # noqa: FBT001
    """Whether the transcoder prints the field even when it is empty."""
    if field.HasField("oneof_index"):
        return False
    return is_map or field.label == _F.LABEL_REPEATED or field.type != _F.TYPE_MESSAGE


def _of_value(rule: options_pb2.FieldRules) -> Schema:
    pairs: dict[str, Any] = {
        "minLength": rule.min_length,
        "maxLength": rule.max_length,
        "pattern": f"^(?:{rule.pattern})$" if rule.pattern else "",
        "enum": list(getattr(rule, "in")),
        "format": "uuid" if rule.uuid else "email" if rule.email else "password" if rule.secret else "",
        "writeOnly": rule.secret,
    }
    schema = {key: value for key, value in pairs.items() if value}
    if rule.HasField("at_least"):
        schema["minimum"] = _number(rule.at_least)
    if rule.HasField("at_most"):
        schema["maximum"] = _number(rule.at_most)
    return schema


def _of_keys(rule: options_pb2.FieldRules) -> Schema:
    return {"propertyNames": {"minLength": 1, "maxLength": rule.max_key_length}} if rule.max_key_length else {}


def _of_count(rule: options_pb2.FieldRules, kind: str) -> Schema:
    schema: Schema = {f"min{kind}": 1} if rule.required else {}
    return {**schema, f"max{kind}": rule.max_items} if rule.max_items else schema


def _of_required_string(field: FieldDescriptorProto, rule: options_pb2.FieldRules) -> Schema:
    # A required string is not empty; an `in` list says so by itself.
    if field.type == _F.TYPE_STRING and rule.required and not getattr(rule, "in"):
        return {"minLength": max(1, rule.min_length)}
    return {}


def _number(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _all_messages(descriptors: FileDescriptorSet) -> Iterator[tuple[str, DescriptorProto]]:
    for file in descriptors.file:
        for message in file.message_type:
            yield from _with_nested(file.package, message)


def _with_nested(parent: str, message: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    name = f"{parent}.{message.name}"
    yield name, message
    for nested in message.nested_type:
        yield from _with_nested(name, nested)
