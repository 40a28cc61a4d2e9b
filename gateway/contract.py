"""The contracts as the edge sees them: the exposed RPCs with their REST faces, read from the descriptor set.

Invariant: an RPC for services or workloads never appears here, whatever its annotations say; an RPC without an access rule
is refused.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto
from google.rpc import error_details_pb2, status_pb2

from parley.options.v1 import options_pb2

# What needs no identity here: anybody may call, or somebody whose own signature the service verifies.
OPEN = frozenset({options_pb2.ACCESS_PUBLIC, options_pb2.ACCESS_PROVIDER})
EXPOSED = OPEN | {options_pb2.ACCESS_USER, options_pb2.ACCESS_ADMIN}
# Whose calls are counted. Whoever else may call from outside proves who they are by a signature, and is waited for.
LIMITED = frozenset({options_pb2.ACCESS_PUBLIC, options_pb2.ACCESS_USER, options_pb2.ACCESS_ADMIN})
# Counted by address; the other classes by user.
LIMITS_BY_ADDRESS = frozenset({options_pb2.LIMIT_SIGN_IN, options_pb2.LIMIT_REGISTRATION, options_pb2.LIMIT_PUBLIC})
# Beside the stubs, in a checkout and in an installed wheel (where gen/parley becomes the package parley) alike.
DESCRIPTORS = Path(options_pb2.__file__).parents[3] / "parley.binpb"
# `events` are numbered, and their stream has a terminal one; `records` are what a list would hold, for as long as it takes.
StreamForm = Literal["events", "records"]
_VARIABLE = re.compile(r"\{([a-z0-9_.]+)\}")


class ContractError(Exception):
    """The protos say something that the edge cannot keep."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One REST face of an RPC; `body` is `*`, a field or empty."""

    method: str
    template: str
    body: str

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the request's fields that the path holds."""
        return tuple(_VARIABLE.findall(self.template))

    @property
    def regex(self) -> str:
        """RE2 that matches the path as a whole; a variable is one segment without its custom verb."""
        pieces = _VARIABLE.split(self.template)
        return "".join("[^/:]+" if index % 2 else re.escape(piece) for index, piece in enumerate(pieces))

    @property
    def specificity(self) -> tuple[int, int, str]:
        """Sorts literal paths before those with variables, so that `/chat/stream` is never taken for `/chat/{user_id}`."""
        return (len(self.variables), -len(self.template), self.template)


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC that clients may reach."""

    package: str
    service: str
    name: str
    access: options_pb2.Access.ValueType
    limit: options_pb2.Limit.ValueType
    stream_form: StreamForm | None
    bindings: tuple[Binding, ...]

    @property
    def is_stream(self) -> bool:
        """Whether it answers with more than one message."""
        return self.stream_form is not None

    @property
    def grpc_path(self) -> str:
        """`/package.Service/Method`."""
        return f"/{self.full_service}/{self.name}"

    @property
    def full_service(self) -> str:
        """Full name of the service."""
        return f"{self.package}.{self.service}"

    @property
    def owner(self) -> str:
        """The service of the suite that implements it: `auth` for parley.auth.v1."""
        return self.package.split(".")[1]

    @property
    def is_public(self) -> bool:
        """Whether it needs no identity."""
        return self.access in OPEN

    @property
    def limit_class(self) -> str | None:
        """The class of its limit, as the limiter knows it; None where the edge does not limit."""
        if self.limit == options_pb2.LIMIT_NONE or self.access not in LIMITED:
            return None
        return options_pb2.Limit.Name(self.limit or options_pb2.LIMIT_GENERAL).removeprefix("LIMIT_").lower()


def read_descriptors(path: Path) -> FileDescriptorSet:
    """Reads the descriptor set that `make proto` writes."""
    return FileDescriptorSet.FromString(path.read_bytes())


def exposed_rpcs(descriptors: FileDescriptorSet) -> tuple[Rpc, ...]:
    """Every RPC that clients may reach, in the order of the protos; ContractError names one without an access rule."""
    numbered = frozenset(_numbered_messages(descriptors))
    return tuple(rpc for file in descriptors.file for rpc in _rpcs_of(file, numbered))


def transcoding_descriptors(descriptors: FileDescriptorSet) -> FileDescriptorSet:
    """What Envoy needs: the set without comments, and with the types of error details, which print as JSON only then."""
    files = {file.name: file for file in descriptors.file}
    for module in (status_pb2, error_details_pb2):
        for descriptor in (*module.DESCRIPTOR.dependencies, module.DESCRIPTOR):
            files.setdefault(descriptor.name, _proto_of(descriptor))
    lean = FileDescriptorSet(file=files.values())
    for file in lean.file:
        file.ClearField("source_code_info")
    return lean


def _proto_of(descriptor: FileDescriptor) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    descriptor.CopyToProto(proto)
    return proto


def _numbered_messages(descriptors: FileDescriptorSet) -> Iterator[str]:
    for file in descriptors.file:
        for message in file.message_type:
            if any(field.name == "sequence" for field in message.field):
                yield f".{file.package}.{message.name}"


def _rpcs_of(file: FileDescriptorProto, numbered: Collection[str]) -> Iterator[Rpc]:
    for service in file.service:
        for method in service.method:
            access = method.options.Extensions[options_pb2.access]
            if access == options_pb2.ACCESS_UNSPECIFIED:
                raise ContractError(f"{file.package}.{service.name}.{method.name} has no access rule")
            if access in EXPOSED:
                limit = method.options.Extensions[options_pb2.limit]
                _check_limit(f"{file.package}.{service.name}.{method.name}", access, limit)
                yield Rpc(
                    package=file.package,
                    service=service.name,
                    name=method.name,
                    access=access,
                    limit=limit,
                    stream_form=_stream_form(method, numbered),
                    bindings=tuple(_bindings(method)),
                )


def _check_limit(name: str, access: options_pb2.Access.ValueType, limit: options_pb2.Limit.ValueType) -> None:
    """A user's calls are counted by user, a stranger's by address: the class must be one of those."""
    is_public = access == options_pb2.ACCESS_PUBLIC
    if limit != options_pb2.LIMIT_NONE and access in LIMITED and is_public != (limit in LIMITS_BY_ADDRESS):
        raise ContractError(f"{name} needs a limit that counts by {'address' if is_public else 'user'}")


def _stream_form(method: MethodDescriptorProto, numbered: Collection[str]) -> StreamForm | None:
    if not method.server_streaming:
        return None
    return "events" if method.output_type in numbered else "records"


def _bindings(method: MethodDescriptorProto) -> Iterator[Binding]:
    http: Any = annotations_pb2.http
    if not method.options.HasExtension(http):
        return
    rule: http_pb2.HttpRule = method.options.Extensions[http]
    for face in (rule, *rule.additional_bindings):
        verb, template = _verb_and_template(face)
        if "*" in template:
            raise ContractError(f"{template}: a variable of several segments; the edge knows only {{name}}")
        yield Binding(verb, template, face.body)


def _verb_and_template(rule: http_pb2.HttpRule) -> tuple[str, str]:
    kind = rule.WhichOneof("pattern")
    if kind is None:
        raise ContractError("an http rule without a path")
    if kind == "custom":
        return rule.custom.kind, rule.custom.path
    return kind.upper(), getattr(rule, kind)
