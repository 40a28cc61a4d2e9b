"""The contract as a whole, read from the generated descriptor set: what every RPC, message, field and reason must have."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from parley.options.v1 import options_pb2
from parley.type.v1 import error_reason_pb2 as reasons
from services.runtime.calls import NOBODY
from services.runtime.errors import InvalidArgument
from services.runtime.rules import check_request, field_rules

ROOT = Path(__file__).parents[1]
FILES = descriptor_pb2.FileDescriptorSet.FromString((ROOT / "gen" / "parley.binpb").read_bytes()).file
OURS = [one for one in FILES if one.package.startswith("parley.")]
POOL = DescriptorPool()
for _file in FILES:
    POOL.Add(_file)

# Well-known types whose inside no rule of ours can bound. FieldMask: only bounded by the size of a request; a handler
# compares its paths with the few that it knows. Struct: bounded by services/chat/request/response_schema.py.
# HttpBody: a form, bounded like every request; services/sms/twilio_webhook.py reads the fields that it knows of it.
UNBOUNDED_TYPES = {
    "google.api.HttpBody",
    *("google.protobuf.FieldMask", "google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.Struct"),
}
# No rule bounds bytes: services/chat/request/images.py does.
BOUNDED_BYTES = {"parley.chat.v1.InputImage.data"}
# The best of what is there, as many as were asked for: a ranking has no second page.
RANKINGS = {"parley.memory.v1.MemoryService.SearchMemories"}
INTERNAL = {options_pb2.ACCESS_SERVICE, options_pb2.ACCESS_WORKLOAD}


def _methods() -> Iterator[MethodDescriptor]:
    for file in OURS:
        for service in file.service:
            yield from POOL.FindServiceByName(f"{file.package}.{service.name}").methods


METHODS = sorted(_methods(), key=lambda method: method.full_name)
REASONS = [name.removeprefix("ERROR_REASON_") for name in reasons.ErrorReason.keys() if not name.endswith("_UNSPECIFIED")]  # noqa: SIM118


def _access(method: MethodDescriptor) -> int:
    return method.GetOptions().Extensions[options_pb2.access]


def _bindings(method: MethodDescriptor) -> list[http_pb2.HttpRule]:
    options = method.GetOptions()
    # The type stubs of this extension say less than it is.
    http: Any = annotations_pb2.http
    if not options.HasExtension(http):
        return []
    rule: http_pb2.HttpRule = options.Extensions[http]
    return [rule, *rule.additional_bindings]


def _verb_and_path(rule: http_pb2.HttpRule) -> tuple[str, str]:
    verb = rule.WhichOneof("pattern") or ""
    return verb, getattr(rule, verb)


def _reachable(
    message: Descriptor, path: str = "", seen: frozenset[str] = frozenset()
) -> Iterator[tuple[str, FieldDescriptor]]:
    """Every field of a message and of what it holds, with its path."""
    if message.full_name in seen:
        return
    for field in message.fields:
        yield f"{path}{field.name}", field
        if field.message_type is not None and field.message_type.full_name not in UNBOUNDED_TYPES:
            yield from _reachable(field.message_type, f"{path}{field.name}.", seen | {message.full_name})


REQUEST_FIELDS = {
    f"{method.full_name}: {path}": field for method in METHODS for path, field in _reachable(method.input_type)
}


def test_there_is_a_contract_to_check() -> None:
    assert len(METHODS) >= 20
    assert len(REQUEST_FIELDS) >= 50
    assert {method.containing_service.full_name.split(".")[1] for method in METHODS} >= {"auth", "chat", "memory", "sms"}


def test_every_rpc_has_an_access_rule() -> None:
    assert [method.full_name for method in METHODS if _access(method) == options_pb2.ACCESS_UNSPECIFIED] == []


def _limit(method: MethodDescriptor) -> int:
    return method.GetOptions().Extensions[options_pb2.limit]


def test_every_rpc_has_a_limit_that_fits_who_calls() -> None:
    """Strangers are counted by address, and have to be by a class that somebody chose; users by user."""
    by_address = {options_pb2.LIMIT_SIGN_IN, options_pb2.LIMIT_REGISTRATION, options_pb2.LIMIT_PUBLIC}
    public = {options_pb2.ACCESS_PUBLIC}
    for method in METHODS:
        limit, access = _limit(method), _access(method)
        if access in INTERNAL:
            assert limit == options_pb2.LIMIT_UNSPECIFIED, f"{method.full_name} does not come through the edge"
        elif limit != options_pb2.LIMIT_NONE:
            assert (limit in by_address) == (access in public), method.full_name


# What asks a model before it answers. A new one belongs here, and in the class that costs.
COSTLY = {"CreateCompletion", "StreamCompletion", "ProcessUtterance", "EditMessage", "RegenerateReply", "DecideReply"}
# What tries a secret.
GUESSABLE = {"Login", "SetPassword"}


def test_what_costs_tokens_and_what_tries_secrets_is_limited_as_such() -> None:
    named = {method.name: _limit(method) for method in METHODS}
    assert {name for name, limit in named.items() if limit == options_pb2.LIMIT_MODEL} == COSTLY & set(named)
    assert {name for name, limit in named.items() if limit == options_pb2.LIMIT_SIGN_IN} == GUESSABLE & set(named)
    unlimited = {method.full_name for method in METHODS if _limit(method) == options_pb2.LIMIT_NONE}
    assert unlimited == {"parley.auth.v1.AuthService.GetJwks"}


def test_internal_rpcs_have_no_http_rule_and_all_others_do() -> None:
    wrong = [method.full_name for method in METHODS if bool(_bindings(method)) == (_access(method) in INTERNAL)]
    assert wrong == []


def test_http_paths_are_unique_whatever_their_variables_are_called() -> None:
    found = Counter(
        (verb, re.sub(r"\{[^}]*\}", "{}", path))
        for method in METHODS
        for verb, path in map(_verb_and_path, _bindings(method))
    )
    assert [path for path, count in found.items() if count > 1] == []


def test_variables_of_http_paths_are_fields_that_cannot_be_missing_or_somebody_elses() -> None:
    for method in METHODS:
        for rule in _bindings(method):
            verb, path = _verb_and_path(rule)
            names = re.findall(r"\{(\w+)[^}]*\}", path)
            assert verb in {"get", "delete"} or rule.body, path
            assert rule.body not in names, f"{path}: a body that is also in the path"
            for name in names:
                rules = field_rules(method.input_type.fields_by_name[name])
                assert rules.required or rules.caller_id, f"{path}: {name}"
                is_admins = method.GetOptions().Extensions[options_pb2.access] == options_pb2.ACCESS_ADMIN
                assert name != "user_id" or rules.caller_id or is_admins, f"{path}: user_id must be the caller's own"


def test_a_callers_id_stands_only_where_it_is_checked() -> None:
    """The runtime checks it at the top of a request, not in messages below."""
    deep = [where for where, field in REQUEST_FIELDS.items() if field_rules(field).caller_id and "." in where.split(": ")[1]]
    assert deep == []


def _is_entry(message: Descriptor | None) -> bool:
    return message is not None and message.GetOptions().map_entry


def _is_map(field: FieldDescriptor) -> bool:
    return _is_entry(field.message_type)


def _value(field: FieldDescriptor) -> FieldDescriptor:
    """The value of a map field."""
    assert field.message_type is not None
    return field.message_type.fields_by_name["value"]


def test_every_string_of_a_request_has_a_bound() -> None:
    loose = []
    for where, field in REQUEST_FIELDS.items():
        is_bytes = field.type == FieldDescriptor.TYPE_BYTES
        assert not is_bytes or field.full_name in BOUNDED_BYTES, f"{where}: no rule bounds bytes yet"
        holds_text = field.type == FieldDescriptor.TYPE_STRING and not _is_entry(field.containing_type)
        text_map = _is_map(field) and _value(field).type == FieldDescriptor.TYPE_STRING
        rules = field_rules(field)
        is_bound = rules.max_length or rules.uuid or list(rules.__getattribute__("in"))
        if (holds_text or text_map) and not is_bound:
            loose.append(where)
    assert loose == []


def test_every_list_and_map_of_a_request_has_a_bound() -> None:
    repeated = {where: field for where, field in REQUEST_FIELDS.items() if field.is_repeated}
    assert repeated
    assert [where for where, field in repeated.items() if not field_rules(field).max_items] == []
    maps = {where: field for where, field in repeated.items() if _is_map(field)}
    assert [where for where, field in maps.items() if not field_rules(field).max_key_length] == []


def test_every_list_method_has_pages() -> None:
    lists = [m for m in METHODS if re.match(r"(List|Search)[A-Z]", m.name) and m.full_name not in RANKINGS]
    assert lists
    for method in lists:
        request, answer = method.input_type.fields_by_name, method.output_type.fields_by_name
        assert {"page_size", "page_token"} <= set(request.keys()), method.full_name
        assert "next_page_token" in answer, method.full_name
        assert field_rules(request["page_size"]).HasField("at_least"), method.full_name


def test_streams_end_with_one_terminal_event_or_never() -> None:
    """The runtime wraps no client streams; which RPCs stream is part of the contract."""
    assert [method.full_name for method in METHODS if method.client_streaming] == []
    streams = {method.name for method in METHODS if method.server_streaming}
    of_replies = {"StreamCompletion", "SubscribeGeneration", "EditMessage", "RegenerateReply"}
    # A list that ends with a record of its own, `end`: what misses it is not whole.
    assert streams == of_replies | {"WatchTasks", "WatchEndedSessions"} | {"ExportMemories"}


def _every_field() -> Iterator[FieldDescriptor]:
    for file in OURS:
        names = [f"{file.package}.{message.name}" for message in file.message_type]
        for name in names:
            yield from POOL.FindMessageTypeByName(name).fields


def test_rules_make_sense() -> None:
    for field in _every_field():
        rules, where = field_rules(field), field.full_name
        re.compile(rules.pattern)
        assert bool(rules.pattern) == bool(rules.pattern_meaning), where
        assert rules.max_length == 0 or rules.min_length <= rules.max_length, where
        assert not rules.HasField("at_most") or rules.at_least <= rules.at_most, where
        is_text = field.type == FieldDescriptor.TYPE_STRING or _is_map(field)
        of_text = rules.max_length or rules.min_length or rules.pattern or rules.uuid or rules.email or rules.caller_id
        assert is_text or not of_text, where
        assert field.is_repeated or not rules.max_items, where
        assert _is_map(field) or not rules.max_key_length, where
        if "password" in field.name or field.name in {"credential", "refresh_token"}:
            in_request = where.rpartition(".")[0].endswith("Request")
            assert rules.secret or not in_request, f"{where} must be marked as a secret"


def test_every_message_can_be_made_sent_and_checked() -> None:
    names = [f"{file.package}.{message.name}" for file in OURS for message in file.message_type]
    for name in names:
        made = GetMessageClass(POOL.FindMessageTypeByName(name))()
        assert type(made).FromString(made.SerializeToString()) == made
        assert _problems(made) <= {"is required", "must be at least 1"}, name


def _problems(message: Message) -> set[str]:
    try:
        check_request(message, NOBODY)
    except InvalidArgument as error:
        return {one.description for one in error.violations}
    return set()


def _comments(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {tuple(one.path): one.leading_comments for one in file.source_code_info.location}


def _rpc_comments() -> dict[str, str]:
    found = {}
    for file in OURS:
        comments = _comments(file)
        for i, service in enumerate(file.service):
            for j, method in enumerate(service.method):
                found[f"{service.name}.{method.name}"] = comments.get((6, i, 2, j), "")
    return found


def test_every_element_is_documented() -> None:
    missing = []
    for file in OURS:
        comments = _comments(file)
        for i, message in enumerate(file.message_type):
            missing += [message.name] * ((4, i) not in comments)
            missing += [
                f"{message.name}.{field.name}"
                for j, field in enumerate(message.field)
                if not comments.get((4, i, 2, j), "").strip()
            ]
        missing += [service.name for i, service in enumerate(file.service) if not comments.get((6, i), "").strip()]
    missing += [name for name, comment in _rpc_comments().items() if not comment.strip()]
    assert missing == []


def test_reasons_that_an_rpc_names_exist() -> None:
    named: dict[str, set[str]] = {}
    for rpc, comment in _rpc_comments().items():
        _, said, listed = comment.partition("Reasons:")
        if said:
            named[rpc] = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", listed))
            assert named[rpc], f"{rpc} names no reason after `Reasons:`"
    assert named
    assert {rpc: rest for rpc, found in named.items() if (rest := found - set(REASONS))} == {}


def test_every_reason_has_an_example_payload() -> None:
    [file] = [one for one in OURS if one.name.endswith("error_reason.proto")]
    comments = _comments(file)
    codes = "|".join(code.upper() for code in _grpc_codes())
    for index, value in enumerate(file.enum_type[0].value):
        name = value.name.removeprefix("ERROR_REASON_")
        if name == "UNSPECIFIED":
            continue
        pattern = rf'^ +({codes}) \{{"reason": "{name}", "metadata": \{{.*\}}\}}$'
        assert re.search(pattern, comments[(5, 0, 2, index)], re.MULTILINE), f"{name} has no example payload"


def _grpc_codes() -> list[str]:
    return [code.name for code in grpc.StatusCode]


def _sources(*folders: str) -> str:
    paths = itertools.chain.from_iterable((ROOT / folder).rglob("*") for folder in folders)
    texts = (
        path.read_text(encoding="utf-8")
        for path in paths
        if path.suffix in {".py", ".lua", ".yaml", ".json"} and path.name != Path(__file__).name
    )
    return "\n".join(texts)


def _unmentioned(text: str) -> list[str]:
    return [name for name in REASONS if not re.search(rf"\b(ERROR_REASON_)?{name}\b", text)]


def test_every_reason_is_raised_somewhere_and_met_by_a_test() -> None:
    unraised, untested = _unmentioned(_sources("services", "gateway")), _unmentioned(_sources("tests"))
    assert {"raised nowhere": unraised, "met by no test": untested} == {"raised nowhere": [], "met by no test": []}
