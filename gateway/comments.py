"""The comments of the protos, by the full name of what they stand above."""

from collections.abc import Iterator, Mapping

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

# Field numbers inside descriptor.proto, of which the paths of source locations are made.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _NESTED, _NESTED_ENUMS = 2, 3, 4
_METHODS, _VALUES = 2, 2

_Path = tuple[int, ...]


def read_comments(descriptors: FileDescriptorSet) -> Mapping[str, str]:
    """Every comment of the set, line breaks kept; names without one are absent. Enum values are named under their enum."""
    comments: dict[str, str] = {}
    for file in descriptors.file:
        texts = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for path, name in _names(file):
            text = "\n".join(line.removeprefix(" ") for line in texts.get(path, "").rstrip().split("\n"))
            if text:
                comments[name] = text
    return comments


def _names(file: FileDescriptorProto) -> Iterator[tuple[_Path, str]]:
    for index, message in enumerate(file.message_type):
        yield from _message((_MESSAGES, index), file.package, message)
    for index, enum in enumerate(file.enum_type):
        yield from _enum((_ENUMS, index), file.package, enum)
    for index, service in enumerate(file.service):
        yield from _service((_SERVICES, index), file.package, service)


def _message(path: _Path, parent: str, message: DescriptorProto) -> Iterator[tuple[_Path, str]]:
    name = f"{parent}.{message.name}"
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, _FIELDS, index), f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        yield from _message((*path, _NESTED, index), name, nested)
    for index, enum in enumerate(message.enum_type):
        yield from _enum((*path, _NESTED_ENUMS, index), name, enum)


def _enum(path: _Path, parent: str, enum: EnumDescriptorProto) -> Iterator[tuple[_Path, str]]:
    name = f"{parent}.{enum.name}"
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, _VALUES, index), f"{name}.{value.name}"


def _service(path: _Path, parent: str, service: ServiceDescriptorProto) -> Iterator[tuple[_Path, str]]:
    name = f"{parent}.{service.name}"
    yield path, name
    for index, method in enumerate(service.method):
        yield (*path, _METHODS, index), f"{name}.{method.name}"
