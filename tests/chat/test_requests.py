"""What a request may hold beyond its field rules: schemas, images, MCP servers; and that no secret stays in the clear."""

import base64
from typing import Any

import psycopg
import pytest
from google.protobuf import json_format, struct_pb2

from gateway.settings import EdgeSettings
from parley.chat.v1 import chat_pb2
from services.chat.request.images import MOST_BYTES_TOGETHER, MOST_IMAGE_BYTES, media_type_of
from services.chat.request.response_schema import SchemaError, read_schema
from simulator.server import Running
from suite.databases import ServiceDatabase
from tests.chat.service import User, refusal

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
IMAGES = {
    "image/png": PNG,
    "image/jpeg": b"\xff\xd8\xff\xe0" + b"\0" * 20,
    "image/gif": b"GIF89a" + b"\0" * 20,
    "image/webp": b"RIFF\x10\0\0\0WEBPVP8 " + b"\0" * 8,
}
SECRET = "Bearer the-secret-of-ana"


def image(**fields: Any) -> chat_pb2.InputImage:
    return chat_pb2.InputImage(**fields)


def struct(value: dict[str, Any]) -> struct_pb2.Struct:
    return json_format.ParseDict(value, struct_pb2.Struct())


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = schema()
    while levels > 2:
        found, levels = {"type": "object", "properties": {"a": found}}, levels - 2
    return found


@pytest.mark.parametrize(("media_type", "data"), IMAGES.items())
def test_the_first_bytes_of_an_image_tell_its_type(media_type: str, data: bytes) -> None:
    assert media_type_of(data) == media_type


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"RIFF1234WAVE", b"<svg/>", b"BM" + b"\0" * 30])
def test_what_does_not_begin_like_an_image_is_none(data: bytes) -> None:
    assert media_type_of(data) is None


def test_the_largest_images_pass_the_edge_as_base64_with_the_longest_message() -> None:
    default = EdgeSettings.model_fields["max_body_bytes"].default
    longest_message = 6 * 10_000  # each character as \\uXXXX
    assert len(base64.b64encode(b"\0" * MOST_BYTES_TOGETHER)) + longest_message + 64 * 1024 < default


async def test_images_reach_the_provider(user: User, simulator: Running) -> None:
    images = [image(data=PNG), image(url="https://a.example/cat.png")]
    completion = await user.create("What is this?", images=images)
    assert completion.message.status == "complete"
    [request] = await simulator.control.requests("responses")
    parts = request.body["input"][-1]["content"]
    urls = [part["image_url"] for part in parts if part["type"] == "input_image"]
    assert urls == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}", "https://a.example/cat.png"]


@pytest.mark.parametrize(
    ("images", "fields"),
    [
        ([image()], ["images[0]"]),
        ([image(url="https://a.example/x.png", data=PNG)], ["images[0]"]),
        ([image(data=PNG), image(url="http://a.example/x.png")], ["images[1].url"]),
        ([image(url="https://user:pass@a.example/x.png")], ["images[0].url"]),
        ([image(url="https:///x.png")], ["images[0].url"]),
        ([image(url="https://[bad/x.png")], ["images[0].url"]),
        ([image(url="data:image/png;base64,AAAA")], ["images[0].url"]),
        (
            [image(url="https://169.254.169.254/"), image(url="https://[::1]/x.png")],
            ["images[0].url", "images[1].url"],
        ),
        ([image(url="https://2130706433/x.png"), image(url="https://0x7f.1/x.png")], ["images[0].url", "images[1].url"]),
        ([image(url="https://LOCALHOST./x.png"), image(url="https://a.localhost/")], ["images[0].url", "images[1].url"]),
        ([image(data=b"<svg/>")], ["images[0].data"]),
        ([image(data=PNG + b"\0" * MOST_IMAGE_BYTES)], ["images[0].data"]),
        ([image(data=PNG + b"\0" * (MOST_IMAGE_BYTES - 100))] * 2, ["images"]),
        ([image(data=PNG)] * 9, ["images"]),
    ],
)
async def test_images_out_of_bounds_are_refused_by_name(
    user: User, images: list[chat_pb2.InputImage], fields: list[str]
) -> None:
    refused = await refusal(user.create("look", images=images))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", fields)


def test_a_schema_has_one_form_whatever_way_it_came() -> None:
    read = read_schema(struct({"type": "object", "properties": {"b": {"minimum": 1.0, "x": [1.5, None, True]}, "a": {}}}))
    assert read == {"properties": {"a": {}, "b": {"minimum": 1, "x": [1.5, None, True]}}, "type": "object"}
    assert list(read["properties"]) == ["a", "b"]
    assert isinstance(read["properties"]["b"]["minimum"], int)


def test_schemas_are_bounded() -> None:
    assert read_schema(struct(nested(20)))
    for wrong, said in (
        ({}, "type"),
        ({"type": "array"}, "type"),
        ({"type": "object", "properties": [1]}, "`properties` must be an object"),
        (schema(a={"required": [1]}), r"`properties\.a\.required` must hold names"),
        (schema(a={"items": {"anyOf": {"b": 1}}}), r"`properties\.a\.items\.anyOf` must be a list"),
        (schema(a="string"), r"`properties\.a` must be a schema"),
        (nested(22), "levels deep"),
        (schema(a={"description": "x" * 65_536}), "bytes"),
        (schema(a={"minimum": float("inf")}), "number"),
        (schema(a={"minimum": 1e300}), "number"),
        (schema(a={"maximum": -1e19}), "number"),
        (schema(a={"description": "a\0b"}), "control character"),
        ({"type": "object", "a\0": True}, "control character"),
        (schema(a={"enum": ["\x1b"]}), "control character"),
    ):
        value = struct_pb2.Struct()
        _fill(value, wrong)
        with pytest.raises(SchemaError, match=said):
            read_schema(value)


def _fill(value: struct_pb2.Struct, given: Any) -> None:
    """Like `struct`, but also numbers that JSON has not."""
    for key, one in given.items():
        if isinstance(one, dict):
            _fill(value.fields[key].struct_value, one)
            value.fields[key].struct_value.SetInParent()
        elif isinstance(one, float):
            value.fields[key].number_value = one
        else:
            value[key] = one


STRICT = schema(a={"type": "string"}) | {"required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(("given", "strict"), [(STRICT, True), (schema(a={"type": "string"}), False)])
async def test_a_schema_reaches_the_provider(user: User, simulator: Running, given: dict[str, Any], *, strict: bool) -> None:
    await user.create("hello", response_schema=struct(given))
    [request] = await simulator.control.requests("responses")
    form = request.body["text"]["format"]
    assert (form["type"], form["schema"], bool(form["strict"])) == ("json_schema", given, strict)


async def test_a_bad_schema_is_refused_by_name(user: User) -> None:
    refused = await refusal(user.create("hello", response_schema=struct({"type": "array"})))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", ["response_schema"])
    completion = await user.create("hello")
    edit = chat_pb2.EditMessageRequest(
        conversation_id=completion.conversation_id,
        message_id=completion.user_message.id,
        message="again",
        options=chat_pb2.CompletionOptions(response_schema=struct({"type": "array"})),
    )
    stream = user.chat.EditMessage(edit, metadata=user.metadata, timeout=10)
    assert (await refusal(stream.read())).fields == ["options.response_schema"]


def server(label: str = "notes", url: str = "https://93.184.215.14/mcp", **fields: Any) -> chat_pb2.McpServerOption:
    return chat_pb2.McpServerOption(label=label, url=url, **fields)


@pytest.mark.parametrize(
    ("servers", "fields"),
    [
        ([server("a"), server("A")], ["mcp_servers[1].label"]),
        ([server("a"), server("b", "https://127.0.0.1/mcp")], ["mcp_servers[1].url"]),
        ([server("a", "http://93.184.215.14/mcp"), server("b", "nonsense")], ["mcp_servers[0].url", "mcp_servers[1].url"]),
        ([server("no label")], ["mcp_servers[0].label"]),
        ([server(headers={"Host": "x"})], ["mcp_servers[0].headers"]),
        ([server(headers={"Authorization": "two\nlines"})], ["mcp_servers[0].headers"]),
        ([server(approval="sometimes")], ["mcp_servers[0].approval"]),
    ],
)
async def test_mcp_servers_that_cannot_be_used_are_refused_by_name(
    user: User, servers: list[chat_pb2.McpServerOption], fields: list[str]
) -> None:
    refused = await refusal(user.create("hello", mcp_servers=servers))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", fields)
    assert "two" not in refused.message


async def test_a_secret_of_a_request_is_stored_sealed_only(user: User, database: ServiceDatabase) -> None:
    offered = server(headers={"Authorization": SECRET}, url="https://93.184.215.14:9/mcp")
    call = user.open_stream("hello", mcp_servers=[offered], request_id="once")
    started = await call.read()
    assert started.WhichOneof("event") == "started"
    async with await psycopg.AsyncConnection.connect(database.migration_url, autocommit=True) as connection:
        await connection.execute("select set_config('parley.scope', 'service', false)")
        cursor = await connection.execute("select to_jsonb(generations)::text from generations")
        [(stored,)] = await cursor.fetchall()
    call.cancel()
    for form in (SECRET, SECRET.encode().hex(), base64.b64encode(SECRET.encode()).decode()):
        assert form not in stored
    assert "93.184.215.14" in stored


async def test_another_header_is_another_request(user: User) -> None:
    offered = [server(headers={"Authorization": SECRET}, url="https://93.184.215.14:9/mcp")]
    stream = user.open_stream("hello", mcp_servers=offered, request_id="once")
    await stream.read()
    offered[0].headers["Authorization"] = "Bearer another"
    refused = await refusal(user.create("hello", mcp_servers=offered, request_id="once"))
    assert refused.reason == "REQUEST_ID_REUSED"
    stream.cancel()
