"""The RPCs of the contract, as the matrix calls them: over gRPC by name, and over REST by their bindings."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from parley.options.v1 import options_pb2
from services.runtime.rules import field_rules

FILES = descriptor_pb2.FileDescriptorSet.FromString((Path(__file__).parents[2] / "gen" / "parley.binpb").read_bytes()).file
POOL = DescriptorPool()
for _file in FILES:
    POOL.Add(_file)

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Binding:
    """One REST face of an RPC."""

    verb: str
    path: str
    body: str

    def request(self, message: Message) -> tuple[str, str, Any]:
        """Verb, path with query, and JSON body for a request."""
        said = json_format.MessageToDict(message, preserving_proto_field_name=True)
        path = re.sub(r"\{(\w+)[^}]*\}", lambda match: quote(str(said.pop(match[1], "")), safe=""), self.path)
        body = None
        if self.body == "*":
            body, said = said, {}
        elif self.body:
            body = said.pop(self.body, {})
        query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in _flat(said))
        return self.verb.upper(), f"{path}?{query}" if query else path, body

    def names(self, field: str) -> bool:
        return f"{{{field}" in self.path


def _flat(said: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in said.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield from ((f"{prefix}{name}", one) for one in value)
        else:
            yield f"{prefix}{name}", str(value).lower() if isinstance(value, bool) else value


@dataclass(frozen=True)
class Rpc:
    """An RPC of the contract."""

    method: MethodDescriptor

    @property
    def name(self) -> str:
        return str(self.method.full_name)

    @property
    def path(self) -> str:
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def service(self) -> str:
        return self.name.split(".")[1]

    @property
    def access(self) -> str:
        """The rule's name: USER, ADMIN and so on."""
        return options_pb2.Access.Name(self.method.GetOptions().Extensions[options_pb2.access]).removeprefix("ACCESS_")

    @property
    def is_stream(self) -> bool:
        return bool(self.method.server_streaming)

    @cached_property
    def bindings(self) -> list[Binding]:
        options = self.method.GetOptions()
        # The type stubs of this extension say less than it is.
        http: Any = annotations_pb2.http
        if not options.HasExtension(http):
            return []
        rule: http_pb2.HttpRule = options.Extensions[http]
        return [_binding(one) for one in (rule, *rule.additional_bindings)]

    @property
    def caller_fields(self) -> list[str]:
        """Fields that may name nobody but the caller."""
        return [field.name for field in self.method.input_type.fields if field_rules(field).caller_id]

    def message(self, fields: Fields) -> Message:
        return json_format.ParseDict(dict(fields), GetMessageClass(self.method.input_type)())

    def writable(self) -> Iterator[tuple[str, FieldDescriptor]]:
        """Every field that a request may set, one level down where it holds a resource."""
        yield from _fields(self.method.input_type)


def _fields(message: Descriptor, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    for field in message.fields:
        inner = field.message_type
        is_ours = inner is not None and inner.full_name.startswith("parley.") and not field.is_repeated
        if inner is not None and is_ours and not prefix and not inner.GetOptions().map_entry:
            yield from _fields(inner, f"{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def _binding(rule: http_pb2.HttpRule) -> Binding:
    verb = rule.WhichOneof("pattern") or ""
    return Binding(verb, getattr(rule, verb), rule.body)


def all_rpcs() -> dict[str, Rpc]:
    """Every RPC of every service of the contract, by its full name."""
    services = (
        POOL.FindServiceByName(f"{file.package}.{service.name}")
        for file in FILES
        if file.package.startswith("parley.")
        for service in file.service
    )
    return {method.full_name: Rpc(method) for service in services for method in service.methods}
