"""What the edge answers by itself: health, name and version, the documentation and the OpenAPI document."""

import re
from collections.abc import AsyncIterator
from importlib.metadata import version

import httpx2
import pytest
from openapi_spec_validator import validate

from gateway.contract import DESCRIPTORS, exposed_rpcs, read_descriptors
from tests.gateway.backend import Script, Service, endpoints_of, running_services
from tests.gateway.edge import Edge, running_edge


@pytest.fixture
async def own_services(script: Script) -> AsyncIterator[dict[str, Service]]:
    async with running_services(script) as services:
        yield services


@pytest.fixture
async def own_edge(own_services: dict[str, Service]) -> AsyncIterator[Edge]:
    endpoints = endpoints_of(own_services)
    async with running_edge(endpoints, health_check_interval_seconds=0.1) as edge:
        yield edge


async def test_health_follows_every_service(own_edge: Edge, own_services: dict[str, Service]) -> None:
    async with own_edge.client() as client:
        await own_edge.until_answers("/health", 200)
        await own_services["memory"].tell_health(is_serving=False)
        await own_edge.until_answers("/health", 503)
        for path in ("/health", "/api/v1/health"):
            response = await client.get(path)
            assert (response.status_code, response.headers["cache-control"]) == (503, "max-age=5")
            assert response.json() == {"status": "not_serving", "version": version("parley")}
        await own_services["memory"].tell_health(is_serving=True)
        await own_edge.until_answers("/api/v1/health", 200)
        assert (await client.get("/health")).json() == {"status": "serving", "version": version("parley")}
        await own_services["chat"].stop()
        await own_edge.until_answers("/health", 503)


async def test_health_is_public_and_takes_a_query(client: httpx2.AsyncClient) -> None:
    response = await client.get("/api/v1/health?verbose=1")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert (await client.head("/health")).status_code == 200


async def test_name_and_version(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/api")).json() == {"name": "parley", "version": version("parley")}


async def test_root_leads_to_the_documentation(client: httpx2.AsyncClient) -> None:
    response = await client.get("/")
    assert response.status_code == 302
    assert httpx2.URL(response.headers["location"]).path == "/docs"


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_a_page_is_found_with_a_slash_too(client: httpx2.AsyncClient, path: str) -> None:
    response = await client.get(f"{path}/")
    assert response.status_code == 301
    assert httpx2.URL(response.headers["location"]).path == path
    assert (await client.post(f"{path}/")).status_code == 405


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_pages_refer_only_to_what_is_served_here(client: httpx2.AsyncClient, path: str) -> None:
    page = await client.get(path)
    assert page.headers["content-type"].startswith("text/html")
    links = re.findall(r'(?:src|href|spec-url)="([^"]+)"', page.text)
    scripts = [link for link in links if link.endswith(".js")]
    assert scripts
    for link in links:
        assert link.startswith("/")
        assert not link.startswith("//")
        asset = await client.get(link)
        assert asset.status_code == 200
        assert len(asset.content) > 100
    assert "default-src 'none'" in page.text
    for script in scripts:
        assert (await client.get(script)).headers["content-type"].startswith("text/javascript")


async def test_documentation_asks_for_our_document(client: httpx2.AsyncClient) -> None:
    assert '"/openapi.json"' in (await client.get("/assets/docs.js")).text
    assert 'spec-url="/openapi.json"' in (await client.get("/redoc")).text


async def test_openapi_document_is_valid_and_complete(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    validate(document)
    written = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    rpcs = exposed_rpcs(read_descriptors(DESCRIPTORS))
    promised = {(binding.template, binding.method) for rpc in rpcs for binding in rpc.bindings}
    edge = {("/health", "GET"), ("/api/v1/health", "GET"), ("/api", "GET")}
    assert written == promised | edge


async def test_openapi_document_says_what_the_contract_says(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    username = schemas["RegisterRequest"]["properties"]["username"]
    assert (username["minLength"], username["maxLength"]) == (3, 50)
    assert re.fullmatch(username["pattern"], "ana.b-c_1")
    assert schemas["RegisterRequest"]["properties"]["password"]["writeOnly"] is True
    assert schemas["RegisterRequest"]["required"] == ["username", "email", "password"]
    assert schemas["User"]["properties"]["create_time"]["format"] == "date-time"
    assert "create_time" not in schemas["User"]["required"]
    assert "is_admin" in schemas["User"]["required"]
    request = schemas["CompletionRequest"]["properties"]
    assert request["reasoning_effort"]["enum"] == ["minimal", "low", "medium", "high"]
    assert (request["temperature"]["minimum"], request["temperature"]["maximum"]) == (0, 2)
    assert request["metadata"]["maxProperties"] == 16
    assert request["metadata"]["propertyNames"] == {"minLength": 1, "maxLength": 64}
    stream = document["paths"]["/api/v1/chat/stream"]["post"]
    assert set(stream["responses"]["200"]["content"]) == {"text/event-stream", "application/x-ndjson"}
    assert [name for each in stream["security"] for name in each] == [
        "bearer",
        "basic",
        "cookie_session_token",
        "cookie_better-auth.session_token",
    ]
    assert "CONVERSATION_NOT_FOUND" in stream["responses"]["404"]["content"]["application/json"]["examples"]
    assert document["paths"]["/api/v1/auth/login"]["post"]["security"] == []
    by_user = document["paths"]["/api/v1/chat/{user_id}"]["post"]
    assert by_user["parameters"][0]["name"] == "user_id"
    body = by_user["requestBody"]["content"]["application/json"]["schema"]
    assert "user_id" not in body["properties"]
    listing = document["paths"]["/api/v1/chat/conversations/{conversation_id}/messages"]["get"]
    places = {parameter["name"]: parameter["in"] for parameter in listing["parameters"]}
    assert places == {
        "conversation_id": "path",
        "page_size": "query",
        "page_token": "query",
        "include_superseded": "query",
    }


async def test_openapi_summaries_are_no_markdown(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    assert any("`" in operation.get("description", "").split(".")[0] for operation in operations)
    assert not [operation["summary"] for operation in operations if "`" in operation["summary"]]


async def test_openapi_document_hides_what_clients_cannot_reach(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    names = " ".join([*document["components"]["schemas"], *(operation["operationId"] for operation in operations)])
    names += " ".join(tag["name"] for tag in document["tags"])
    for name in ("TokenService", "RecordTurn", "AssembleContext", "InvalidateContext", "ExchangeForUser"):
        assert name not in names


async def test_openapi_document_describes_following(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    follow = document["paths"]["/api/v1/chat/generations/{generation_id}/events"]["get"]
    places = {parameter["name"]: parameter["in"] for parameter in follow["parameters"]}
    assert places == {"generation_id": "path", "after_sequence": "query", "Last-Event-ID": "header"}
    assert set(follow["responses"]) >= {"200", "204", "401", "404"}
    cookies = [name for each in follow["security"] for name in each if name not in {"bearer", "basic"}]
    assert [document["components"]["securitySchemes"][name]["name"] for name in cookies] == [
        "session_token",
        "better-auth.session_token",
    ]
    watch = document["paths"]["/api/v1/tasks:watch"]["get"]
    assert set(watch["responses"]["200"]["content"]) == {"text/event-stream", "application/x-ndjson"}
    assert "204" not in watch["responses"]


async def test_openapi_document_describes_every_kind_of_field(client: httpx2.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    request = schemas["CompletionRequest"]["properties"]
    assert request["response_schema"]["type"] == "object"
    assert request["images"]["items"] == {"$ref": "#/components/schemas/InputImage"}
    assert schemas["InputImage"]["properties"]["data"]["contentEncoding"] == "base64"
    assert request["memory_enabled"]["type"] == "boolean"
    server = schemas["McpServerOption"]["properties"]
    assert server["headers"]["additionalProperties"]["writeOnly"] is True
    # Two services have something of this name.
    assert {"AuthListSessionsResponse", "ChatListSessionsResponse"} <= set(schemas)


async def test_openapi_document_takes_over_the_reasons_that_another_rpc_names(client: httpx2.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    edit = paths["/api/v1/chat/conversations/{conversation_id}/messages/{message_id}:edit"]["post"]["responses"]
    refusals = [each["content"]["application/json"] for status, each in edit.items() if status != "200"]
    named = {name for each in refusals for name in each.get("examples", {})}
    assert {"NOT_LAST_TURN", "MESSAGE_NOT_FOUND", "CONVERSATION_BUSY", "READER_TOO_SLOW"} <= named
    assert "NOT_LAST_TURN" in edit["400"]["content"]["application/json"]["examples"]
