"""Which request goes where: generated from the RPCs that clients may reach, in the order in which Envoy tries them.

Invariant: a route carries one RPC's identity rule and one RPC's timeouts; a path without a route is 404, a path with a
route but without the method 405, a Host that is not served 421. Nothing reaches a service but through a route made here.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from gateway import filters
from gateway.contract import Binding, Rpc
from gateway.identity import identity_rule, with_identity
from gateway.limits import counted
from gateway.refusals import plain_json
from gateway.settings import EdgeSettings
from gateway.web import GREATEST_PAGE_BYTES, HTML, PAGE_POLICY, PAGES

Config = dict[str, Any]
NDJSON = "application/x-ndjson"
# What a browser may send and read across origins.
CORS_REQUEST_HEADERS = (
    "accept,authorization,content-type,grpc-timeout,idempotency-key,last-event-id,mcp-method,mcp-name,mcp-protocol-version,"
    "mcp-session-id,x-grpc-web,x-request-id,x-user-agent"
)
CORS_RESPONSE_HEADERS = (
    "grpc-message,grpc-status,grpc-status-details-bin,ratelimit-limit,ratelimit-policy,ratelimit-remaining,ratelimit-reset,"
    "retry-after,x-request-id"
)
CORS_MAX_AGE_SECONDS = 600
PAGE_MAX_AGE_SECONDS = 300
# What people type for a page.
_SLASHED = ("/docs/", "/redoc/")
MCP_PATH = "/mcp"
HEALTH_PATHS = ("/health", "/api/v1/health")
MCP_METHODS = ("DELETE", "GET", "POST")
_READS: Config = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}


def route_configuration(settings: EdgeSettings, rpcs: Sequence[Rpc], directory: Path, version: str) -> Config:
    """Virtual hosts with every route; without `*` among the allowed hosts the last host refuses all others."""
    routes = [
        *_preflight_routes(settings.cors_allowed_origins),
        *_grpc_routes(settings, rpcs),
        *_rest_routes(settings, rpcs, directory),
        *_mcp_routes(settings),
        *_health_routes(settings),
        *_page_routes(directory, version),
        _refusal({"prefix": "/"}, 404),
    ]
    hosts = [_virtual_host(settings, "suite", list(settings.allowed_hosts), routes)]
    if "*" not in settings.allowed_hosts:
        hosts.append(_virtual_host(settings, "unknown", ["*"], [_refusal({"prefix": "/"}, 421)]))
    return {
        "name": "edge",
        "ignore_port_in_host_matching": True,
        "max_direct_response_body_size_bytes": GREATEST_PAGE_BYTES,
        # They are for the edge, and for other applications of the same host: no service has a use for them.
        "request_headers_to_remove": ["cookie"],
        "virtual_hosts": hosts,
    }


def _virtual_host(settings: EdgeSettings, name: str, domains: list[str], routes: list[Config]) -> Config:
    host: Config = {"name": name, "domains": domains, "routes": routes}
    if settings.cors_allowed_origins:
        host["typed_per_filter_config"] = {"envoy.filters.http.cors": _cors_policy(settings.cors_allowed_origins)}
    return host


def _cors_policy(origins: Sequence[str]) -> Config:
    return {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [_origin(origin) for origin in origins],
        "allow_methods": "GET,POST,PUT,PATCH,DELETE",
        "allow_headers": CORS_REQUEST_HEADERS,
        "expose_headers": CORS_RESPONSE_HEADERS,
        "max_age": str(CORS_MAX_AGE_SECONDS),
        # A page of an origin that the operator named may send the session's cookie, any other page may not.
        "allow_credentials": "*" not in origins,
    }


def _origin(origin: str) -> Config:
    return {"safe_regex": {"regex": ".+"}} if origin == "*" else {"exact": origin}


def _preflight_routes(origins: Sequence[str]) -> Iterator[Config]:
    # The cors filter answers before the cluster is asked, but only on a route that has one. Other origins get no further
    # than the path's 405.
    # An empty header asks for nothing: the filter would let such a request through.
    asks = {"name": "access-control-request-method", "string_match": {"safe_regex": {"regex": ".+"}}}
    for origin in origins:
        from_origin = {"name": "origin", "string_match": _origin(origin)}
        yield {
            "match": {"prefix": "/", "headers": [_has_method("OPTIONS"), from_origin, asks]},
            "route": {"cluster": "auth"},
            "typed_per_filter_config": filters.outside_the_contract(),
        }


def _grpc_routes(settings: EdgeSettings, rpcs: Iterable[Rpc]) -> Iterator[Config]:
    content = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    for rpc in rpcs:
        match = {"path": rpc.grpc_path, "headers": [_has_method("POST"), content]}
        yield _to_service(settings, rpc, match, _door(settings, rpc, is_rest=False))


def _door(settings: EdgeSettings, rpc: Rpc, *, is_rest: bool) -> Config:
    """Who may come through a route, by which credentials, and how often."""
    return {
        "envoy.filters.http.jwt_authn": identity_rule(is_public=rpc.is_public),
        **counted(settings, rpc.limit_class, is_public=rpc.is_public),
        **({} if rpc.is_public else with_identity(settings, is_rest=is_rest)),
    }


def _rest_routes(settings: EdgeSettings, rpcs: Iterable[Rpc], directory: Path) -> Iterator[Config]:
    faces = sorted(((binding, rpc) for rpc in rpcs for binding in rpc.bindings), key=lambda face: face[0].specificity)
    for _template, same in groupby(faces, key=lambda face: face[0].template):
        here = list(same)
        for binding, rpc in here:
            yield from _face_routes(settings, rpc, binding, directory)
        # Before the paths with variables, which would take a literal one with another method for theirs.
        binding = here[0][0]
        yield _refusal(_path_match(binding), 405, allow=sorted({each.method for each, _rpc in here}))


def _face_routes(settings: EdgeSettings, rpc: Rpc, binding: Binding, directory: Path) -> Iterator[Config]:
    match = {**_path_match(binding), "headers": [_has_method(binding.method)]}
    per_filter = {
        **_door(settings, rpc, is_rest=True),
        "envoy.filters.http.header_mutation": filters.rest_headers(rpc.stream_form, is_personal=not rpc.is_public),
        "envoy.filters.http.buffer": filters.rest_body_limit(settings),
    }
    if rpc.stream_form == "records":
        yield _ndjson_route(settings, rpc, match, per_filter, directory)
        return
    if rpc.stream_form == "events":
        accepts = {"name": "accept", "string_match": {"contains": NDJSON, "ignore_case": True}}
        asked = {**match, "headers": [*match["headers"], accepts]}
        yield _ndjson_route(settings, rpc, asked, per_filter, directory)
        per_filter["stream_frames"] = filters.stream_script("sse.lua")
    yield _to_service(settings, rpc, match, per_filter)


def _ndjson_route(settings: EdgeSettings, rpc: Rpc, match: Config, per_filter: Config, directory: Path) -> Config:
    lines = {
        **per_filter,
        "envoy.filters.http.grpc_json_transcoder": filters.transcoder(
            settings, [rpc.full_service], directory, is_ndjson=True
        ),
        "stream_frames": filters.stream_script("ndjson.lua"),
    }
    return _to_service(settings, rpc, match, lines)


def _to_service(settings: EdgeSettings, rpc: Rpc, match: Config, per_filter: Config) -> Config:
    if rpc.is_stream:
        limits: Config = {"timeout": "0s", "idle_timeout": f"{settings.stream_idle_timeout_seconds}s"}
    else:
        limits = {"timeout": f"{settings.request_timeout_seconds}s"}
    # Both conditions mean that no service has seen the call yet, so that even a POST is not done twice.
    retry = {"retry_on": "connect-failure,refused-stream", "num_retries": 2}
    return {
        "match": match,
        "route": {"cluster": rpc.owner, **limits, "retry_policy": retry},
        "typed_per_filter_config": per_filter,
    }


def _mcp_routes(settings: EdgeSettings) -> Iterator[Config]:
    """MCP is HTTP of its own: it passes to chat as it came, with an identity."""
    match: Config = {"path_separated_prefix": MCP_PATH}
    methods = {"name": ":method", "string_match": {"safe_regex": {"regex": "|".join(MCP_METHODS)}}}
    yield {
        "match": {**match, "headers": [methods]},
        "route": {
            "cluster": "mcp",
            # An answer may be a stream.
            "timeout": "0s",
            "idle_timeout": f"{settings.stream_idle_timeout_seconds}s",
            "retry_policy": {"retry_on": "connect-failure", "num_retries": 2},
        },
        "typed_per_filter_config": {
            **filters.outside_the_contract(),
            "envoy.filters.http.jwt_authn": identity_rule(is_public=False),
            **counted(settings, "general", is_public=False),
            **with_identity(settings, is_rest=False),
            "envoy.filters.http.header_mutation": filters.rest_headers("events", is_personal=True),
            "envoy.filters.http.buffer": filters.rest_body_limit(settings),
        },
    }
    yield _refusal(match, 405, allow=MCP_METHODS)


def _health_routes(settings: EdgeSettings) -> Iterator[Config]:
    """For who shows an identity; the health_check filter has answered everybody else."""
    for path in HEALTH_PATHS:
        yield {
            "match": {"path": path, "headers": [_READS]},
            # health_parts answers before the cluster is asked, but only on a route that has one are calls counted.
            "route": {"cluster": "auth"},
            "typed_per_filter_config": filters.with_health_parts(settings),
        }


def _page_routes(directory: Path, version: str) -> Iterator[Config]:
    yield {
        "match": {"path": "/", "headers": [_READS]},
        "redirect": {"path_redirect": "/docs", "response_code": "FOUND"},
        "typed_per_filter_config": filters.outside_the_contract(),
    }
    for path in _SLASHED:
        yield {
            "match": {"path": path, "headers": [_READS]},
            "redirect": {"path_redirect": path.removesuffix("/"), "response_code": "MOVED_PERMANENTLY"},
            "typed_per_filter_config": filters.outside_the_contract(),
        }
    yield _page("/api", {"inline_string": plain_json(name="parley", version=version)}, "application/json")
    for path, page in PAGES.items():
        yield _page(path, {"filename": str(directory / "web" / page.file)}, page.content_type)
    for path in ("/", "/api", *PAGES, *_SLASHED, *HEALTH_PATHS):
        yield _refusal({"path": path}, 405, allow=["GET", "HEAD"])


def _page(path: str, body: Config, content_type: str) -> Config:
    headers = [("content-type", content_type), ("cache-control", f"public, max-age={PAGE_MAX_AGE_SECONDS}")]
    if content_type == HTML:
        headers.append(("content-security-policy", PAGE_POLICY))
    return {
        "match": {"path": path, "headers": [_READS]},
        "direct_response": {"status": 200, "body": body},
        "response_headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"} for key, value in headers
        ],
        "typed_per_filter_config": filters.outside_the_contract(),
    }


def _refusal(match: Config, status: int, *, allow: Sequence[str] = ()) -> Config:
    route: Config = {
        "match": match,
        "direct_response": {"status": status},
        "typed_per_filter_config": filters.outside_the_contract(),
    }
    if allow:
        header = {"header": {"key": "allow", "value": ", ".join(allow)}}
        route["response_headers_to_add"] = [header]
    return route


def _path_match(binding: Binding) -> Config:
    if binding.variables:
        return {"safe_regex": {"regex": binding.regex}}
    return {"path": binding.template}


def _has_method(method: str) -> Config:
    return {"name": ":method", "string_match": {"exact": method}}
