"""The OpenAPI 3.1 document of the REST surface, made of the descriptor set and of nothing else.

Invariant: every REST face of every exposed RPC is an operation, and no operation is without one; the document says what the
contract says, in the contract's own words.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet, MethodDescriptorProto

from gateway.comments import read_comments
from gateway.contract import Binding, Rpc, exposed_rpcs
from gateway.reasons import Reason, named_in, read_reasons, responses
from gateway.routes import NDJSON
from gateway.schemas import Schemas, rules
from parley.options.v1 import options_pb2

Document = dict[str, Any]
_EDGE_TAG = "Edge"
_DESCRIPTION = """The REST face of Parley's gRPC services: the same calls, as JSON. Native gRPC and gRPC-Web are served on
the same port.

Sign in with `Login` or `Register` and send the access token as `authorization: Bearer …`. Every answer carries
`x-request-id`; every error has the one shape `Error`, whoever refused.

Name and password work too (HTTP Basic), with every call, and so does a cookie that holds the access token, for a browser
that can set no header: an EventSource, say. A call that changes something is taken with a cookie only from pages of the
edge's own or a listed origin (`Origin`), so that no other site can make a browser call it.

Calls are limited by user, and sign-ins and registrations by address. The headers `RateLimit-Limit`, `RateLimit-Remaining`
and `RateLimit-Reset` say where one stands; a call too many is 429 with `Retry-After`, and is not counted.

Streams of events are answered as server-sent events, each with its `sequence` as `id`; with `accept: application/x-ndjson`
as one JSON object a line. Exports are always one JSON object a line."""
_FINISHED: Document = {"204": {"description": "There is nothing after that event: an EventSource stops asking."}}
_LAST_EVENT_ID: Document = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The same thing as `after_sequence`; what an EventSource sends by itself when it comes back.",
    "schema": {"type": "integer", "format": "int32", "minimum": 0},
}
# What passes as it is, in either direction: only webhooks' forms and their answers do.
_RAW = "google.api.HttpBody"
_FORM: Document = {
    "application/x-www-form-urlencoded": {"schema": {"type": "object", "additionalProperties": {"type": "string"}}}
}
_XML: Document = {"text/xml": {"schema": {"type": "string"}}}
_ERROR: Document = {
    "type": "object",
    "description": "google.rpc.Status: what every error looks like.",
    "required": ["code", "message", "details"],
    "properties": {
        "code": {"type": "integer", "description": "The google.rpc.Code."},
        "message": {"type": "string", "description": "What to do, for people; may change."},
        "details": {
            "type": "array",
            "description": "ErrorInfo (`reason`, `domain`, `metadata`), BadRequest (`field_violations`), RetryInfo"
            " (`retry_delay`).",
            "items": {
                "type": "object",
                "required": ["@type"],
                "properties": {"@type": {"type": "string"}},
                "additionalProperties": True,
            },
        },
    },
}


def openapi_document(
    descriptors: FileDescriptorSet, *, version: str, session_cookies: Sequence[str], takes_basic: bool
) -> Document:
    """The whole document; equal contracts and credentials make an equal document."""
    schemes: Document = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    if takes_basic:
        schemes["basic"] = {"type": "http", "scheme": "basic"}
    schemes |= {_cookie_scheme(name): _cookie(name) for name in session_cookies}
    return _Writer(descriptors, schemes).document(version)


class _Writer:
    """Collects operations and the schemas that they refer to."""

    def __init__(self, descriptors: FileDescriptorSet, security_schemes: Document) -> None:
        self._security_schemes = security_schemes
        self._rpcs = [rpc for rpc in exposed_rpcs(descriptors) if rpc.bindings]
        self._comments = read_comments(descriptors)
        self._reasons: Mapping[str, Reason] = read_reasons(self._comments)
        self._methods: dict[str, MethodDescriptorProto] = {
            f"/{file.package}.{service.name}/{method.name}": method
            for file in descriptors.file
            for service in file.service
            for method in service.method
        }
        self._schemas = Schemas(descriptors, self._comments, [self._output(rpc) for rpc in self._rpcs])

    def document(self, version: str) -> Document:
        paths = self._paths()
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Parley",
                "version": version,
                "description": _DESCRIPTION,
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": "/"}],
            "tags": self._tags(),
            "paths": {**paths, **_edge_paths()},
            "components": {
                "securitySchemes": self._security_schemes,
                "schemas": {"Error": _ERROR, **self._schemas.components},
            },
        }

    def _tags(self) -> list[Document]:
        services = dict.fromkeys((rpc.service, rpc.full_service) for rpc in self._rpcs)
        tags = [{"name": short, "description": self._comments.get(full, "")} for short, full in services]
        return [*tags, {"name": _EDGE_TAG, "description": "What the edge answers by itself."}]

    def _paths(self) -> dict[str, Document]:
        paths: dict[str, Document] = {}
        for rpc in self._rpcs:
            for number, binding in enumerate(rpc.bindings):
                paths.setdefault(binding.template, {})[binding.method.lower()] = self._operation(rpc, binding, number)
        return paths

    def _operation(self, rpc: Rpc, binding: Binding, number: int) -> Document:
        comment = self._comment(rpc)
        parameters = self._parameters(rpc, binding)
        operation: Document = {
            "tags": [rpc.service],
            "operationId": f"{rpc.service}_{rpc.name}" + (f"_{number + 1}" if number else ""),
            # Unlike a description, a summary is no Markdown.
            "summary": comment.split(".")[0].replace("\n", " ").replace("`", "") + ".",
            "description": comment,
            "security": [] if rpc.is_public else [{name: []} for name in self._security_schemes],
            "x-access": options_pb2.Access.Name(rpc.access).removeprefix("ACCESS_").lower(),
        }
        if parameters:
            operation["parameters"] = parameters
        if binding.body:
            operation["requestBody"] = {"required": True, "content": self._body_content(rpc, binding)}
        answers = {"200": self._answer(rpc), **(_FINISHED if _follows(rpc, parameters) else {})}
        operation["responses"] = {**answers, **self._refusals(rpc, comment), "default": _any_error()}
        return operation

    def _comment(self, rpc: Rpc) -> str:
        return self._comments.get(f"{rpc.full_service}.{rpc.name}", "")

    def _request(self, rpc: Rpc) -> str:
        return self._methods[rpc.grpc_path].input_type.removeprefix(".")

    def _output(self, rpc: Rpc) -> str:
        return self._methods[rpc.grpc_path].output_type.removeprefix(".")

    def _body_content(self, rpc: Rpc, binding: Binding) -> Document:
        field = next((one for one in self._schemas.message(self._request(rpc)).field if one.name == binding.body), None)
        if field is not None and field.type_name == f".{_RAW}":
            return _FORM
        return {"application/json": {"schema": self._body(rpc, binding)}}

    def _body(self, rpc: Rpc, binding: Binding) -> Document:
        name = self._request(rpc)
        if binding.body != "*":
            field = next(field for field in self._schemas.message(name).field if field.name == binding.body)
            return self._schemas.field(name, field, is_answer=False)
        if binding.variables:
            return self._schemas.inline(name, is_answer=False, without=binding.variables)
        return self._schemas.reference(name, is_answer=False)

    def _parameters(self, rpc: Rpc, binding: Binding) -> list[Document]:
        name = self._request(rpc)
        fields = {field.name: field for field in self._schemas.message(name).field}
        inside = [self._parameter(name, fields[variable], "path") for variable in binding.variables]
        if not binding.body:
            asked = [field for field in fields.values() if field.name not in binding.variables]
            inside += [self._parameter(name, field, "query") for field in asked]
            if "after_sequence" in fields:
                inside.append(_LAST_EVENT_ID)
        elif "request_id" in fields:
            inside.append(
                {
                    "name": "Idempotency-Key",
                    "in": "header",
                    "description": "The same thing as `request_id` in the body.",
                    "schema": {"type": "string", "maxLength": rules(fields["request_id"]).max_length},
                }
            )
        return inside

    def _parameter(self, message: str, field: FieldDescriptorProto, place: str) -> Document:
        schema = self._schemas.field(message, field, is_answer=False)
        description = schema.pop("description", "")
        return {
            "name": field.name,
            "in": place,
            "required": place == "path" or rules(field).required,
            "description": description,
            "schema": schema,
        }

    def _answer(self, rpc: Rpc) -> Document:
        if self._output(rpc) == _RAW:
            return {"description": "Done; TwiML that asks for nothing.", "content": _XML}
        schema = self._schemas.reference(self._output(rpc), is_answer=True)
        if not rpc.is_stream:
            return {"description": "Done.", "content": {"application/json": {"schema": schema}}}
        if rpc.stream_form == "records":
            line = "The records, a JSON object a line. The schema is that of one line."
            return {"description": line, "content": {NDJSON: {"schema": schema}}}
        return {
            "description": "The stream. The schema is that of one frame, or of one line.",
            "content": {"text/event-stream": {"schema": _frame(schema)}, NDJSON: {"schema": schema}},
        }

    def _refusals(self, rpc: Rpc, comment: str) -> Document:
        names = ["INVALID_REQUEST", "REQUEST_TOO_LARGE"]
        if not rpc.is_public:
            names += ["IDENTITY_MISSING", "TOKEN_INVALID", "TOKEN_EXPIRED", "SESSION_ENDED", "IDENTITY_UNAVAILABLE"]
            names += ["CREDENTIALS_WRONG", "USER_INACTIVE", "EXTERNAL_IDENTITY_UNKNOWN", "ORIGIN_NOT_ALLOWED"]
        if rpc.limit_class is not None:
            names.append("RATE_LIMITED")
        if rpc.access == options_pb2.ACCESS_ADMIN:
            names.append("ACCESS_DENIED")
        others = {other.name: self._comment(other) for other in self._rpcs if other.full_service == rpc.full_service}
        names += [*named_in(comment, others), "DEPENDENCY_UNAVAILABLE", "DEADLINE_PASSED"]
        return responses(names, self._reasons)


def _frame(event: Document) -> Document:
    """A server-sent event, in the form that OpenAPI 3.2 gives it."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": event}
    return {"type": "object", "required": ["data"], "properties": {"id": {"type": "string"}, "data": data}}


def _follows(rpc: Rpc, parameters: Sequence[Document]) -> bool:
    # A stream of something that has an end, which may lie behind its reader.
    return rpc.is_stream and _LAST_EVENT_ID in parameters and any(each["in"] == "path" for each in parameters)


def _cookie_scheme(name: str) -> str:
    return f"cookie_{name}"


def _cookie(name: str) -> Document:
    return {
        "type": "apiKey",
        "in": "cookie",
        "name": name,
        "description": "An access token. What changes something also needs an allowed Origin.",
    }


def _any_error() -> Document:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": "Any other error, in the same shape.", "content": {"application/json": {"schema": schema}}}


def _edge_paths() -> dict[str, Document]:
    health = {"serving": "200", "not_serving": "503"}
    answers = {status: _word_answer("status", word) for word, status in health.items()}
    check = _edge_operation("Whether every service has a healthy process; may be 5 seconds old.", answers)
    name = _edge_operation("Name and version.", {"200": _word_answer("name", "parley")})
    return {
        path: {"get": {**operation, "operationId": identifier}}
        for path, identifier, operation in (
            ("/health", "Edge_Health", check),
            ("/api/v1/health", "Edge_HealthV1", check),
            ("/api", "Edge_Version", name),
        )
    }


def _edge_operation(summary: str, answers: Document) -> Document:
    return {"tags": [_EDGE_TAG], "summary": summary, "security": [], "responses": answers}


def _word_answer(key: str, word: str) -> Document:
    properties = {key: {"type": "string", "const": word}, "version": {"type": "string"}}
    schema = {"type": "object", "required": [key, "version"], "properties": properties}
    return {"description": f"`{word}`", "content": {"application/json": {"schema": schema}}}
