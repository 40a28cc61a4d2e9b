"""The HTTP filters in the order in which a request meets them, one function each; an answer meets them from the last up.

Each function's first line becomes the comment above the filter in the written configuration.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from gateway.contract import StreamForm
from gateway.filter_shapes import (
    HTTP,
    Config,
    add_if_absent,
    lua,
    lua_file,
    make_filter,
    named,
    on_demand,
    overwrite,
    switched_on,
)
from gateway.identity import exchange, ext_authz, identity_rule, jwt_authn, session_cookie, with_identity
from gateway.limits import BY_ADDRESS, BY_USER, counted, limit_by_address, limit_by_user
from gateway.refusals import errors_in_lua
from gateway.settings import EdgeSettings

# Half of what the services take: gRPC counts 32 bytes more a header, and the edge adds some of its own.
LARGEST_HEADER_BYTES = 32 * 1024
HSTS_SECONDS = 31_536_000
_HEALTH_SCRIPT = "health_parts.lua"


def http_filters(settings: EdgeSettings, services: Sequence[str], directory: Path) -> list[Config]:
    """The whole chain of the edge's listener."""
    return [
        request_headers(),
        session_cookie(settings),
        exchange(settings),
        whole_errors(),
        response_headers(settings),
        cors(),
        health_check(settings),
        grpc_web(),
        stream_frames(),
        *([limit_by_address(settings)] if settings.limits_enabled else []),
        ext_authz(),
        jwt_authn(settings),
        *([limit_by_user(settings)] if settings.limits_enabled else []),
        health_parts(settings),
        body_limit(),
        named("envoy.filters.http.grpc_json_transcoder", transcoder(settings, services, directory)),
        router(),
    ]


def comments() -> dict[str, str]:
    """Why each filter stands where it stands, by its name in the configuration."""
    filters: dict[str, Callable[..., object]] = {
        "request_headers": request_headers,
        "session_cookie": session_cookie,
        "exchange": exchange,
        "whole_errors": whole_errors,
        "envoy.filters.http.header_mutation": response_headers,
        "envoy.filters.http.cors": cors,
        "envoy.filters.http.health_check": health_check,
        "envoy.filters.http.grpc_web": grpc_web,
        "stream_frames": stream_frames,
        BY_ADDRESS: limit_by_address,
        "envoy.filters.http.ext_authz": ext_authz,
        "envoy.filters.http.jwt_authn": jwt_authn,
        BY_USER: limit_by_user,
        "health_parts": health_parts,
        "envoy.filters.http.buffer": body_limit,
        "envoy.filters.http.grpc_json_transcoder": transcoder,
        "envoy.filters.http.router": router,
    }
    return {name: " ".join((make.__doc__ or "").split("\n\n")[0].split()) for name, make in filters.items()}


def early_header_mutation() -> Config:
    """Before anything looks at a request: what only the suite may say is taken out, and a request id that is none."""
    # An id of up to 128 harmless characters is kept; anything else becomes empty, and Envoy makes one.
    sent = "request.headers['x-request-id']"
    request_id = f"%CEL(size({sent}) <= 128 && {sent}.matches('^[A-Za-z0-9._:-]+$') ? {sent} : '')%"
    return {
        "name": "strip",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [
                {"remove_on_match": {"key_matcher": {"prefix": "x-parley-"}}},
                {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}},
                {
                    "append": {
                        "header": {"key": "x-request-id", "value": request_id},
                        "append_action": "OVERWRITE_IF_EXISTS",
                        "keep_empty_value": True,
                    }
                },
            ],
        },
    }


def request_headers() -> Config:
    """Refuses headers too large or beyond what gRPC carries, and gRPC on a REST path; spells `Bearer` in one way."""
    limit = f"local LARGEST_HEADER_BYTES = {LARGEST_HEADER_BYTES}\n\n"
    return lua("request_headers", limit + lua_file("request_headers.lua"))


def whole_errors() -> Config:
    """Makes errors whole: Retry-After as their RetryInfo says, the one shape for those that gRPC itself made."""
    return lua("whole_errors", errors_in_lua() + lua_file("whole_errors.lua"))


def response_headers(settings: EdgeSettings) -> Config:
    """Almost last on the way out: sets what every answer carries and takes out what REST clients must not see."""
    inner = {"remove": "x-envoy-upstream-healthchecked-cluster"}
    mutations = [
        overwrite("x-content-type-options", "nosniff"),
        overwrite("referrer-policy", "no-referrer"),
        overwrite("x-frame-options", "DENY"),
        # What is no page has nothing to load and is in nobody's frame. Pages say their own.
        add_if_absent("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
        *([overwrite("strict-transport-security", f"max-age={HSTS_SECONDS}")] if settings.has_tls else []),
        # The request id is there for the filter that makes errors whole.
        overwrite("x-request-id", "%REQ(X-REQUEST-ID)%"),
        inner,
    ]
    return make_filter("header_mutation", "HeaderMutation", mutations={"response_mutations": mutations})


def rest_headers(stream_form: StreamForm | None, *, is_personal: bool) -> Config:
    """On REST routes: what gRPC would take for its own goes neither in nor out; no cache keeps what is not public."""
    # The services' gRPC would fail on a malformed one, and obey a deadline that REST clients have no way to set.
    foreign = [{"remove_on_match": {"key_matcher": matcher}} for matcher in ({"prefix": "grpc-"}, {"suffix": "-bin"})]
    leaks = ("grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-encoding", "grpc-accept-encoding")
    mutations: list[Config] = [{"remove": name} for name in leaks]
    if stream_form is not None:
        mutations.append(overwrite("x-accel-buffering", "no"))
    if stream_form == "events":
        mutations.append(overwrite("cache-control", "no-cache"))
    elif is_personal:
        # Caches leave alone what was asked for with an Authorization header, but not what was asked for with a cookie.
        mutations.append(overwrite("cache-control", "no-store"))
    return {
        "@type": f"{HTTP}.header_mutation.v3.HeaderMutationPerRoute",
        "mutations": {"request_mutations": foreign, "response_mutations": mutations},
    }


def cors() -> Config:
    """Before identity, because a preflight has none."""
    return make_filter("cors", "Cors")


def health_check(settings: EdgeSettings) -> Config:
    """Answers /health by what the active checks of the services say, whatever the Host: probes come by address."""
    return make_filter(
        "health_check",
        "HealthCheck",
        pass_through_mode=False,
        headers=[
            {"name": ":path", "string_match": {"safe_regex": {"regex": r"(/api/v1)?/health(\?.*)?"}}},
            {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}},
            # Who shows an identity is told more (health_parts).
            {"name": "authorization", "present_match": True, "invert_match": True},
        ],
        # One healthy process of a service is enough to serve.
        cluster_min_healthy_percentages={name: {"value": 1} for name in settings.endpoints()},
    )


def grpc_web() -> Config:
    """Turns gRPC-Web into gRPC, so that everything behind it knows only one of them."""
    return make_filter("grpc_web", "GrpcWeb")


def stream_frames() -> Config:
    """Gives SSE frames their ids and heartbeats their form; off but on the routes of streams, which name their script."""
    return {"name": "stream_frames", "disabled": True, "typed_config": {"@type": f"{HTTP}.lua.v3.Lua"}}


def stream_script(file: str) -> Config:
    """Switches a script on, on one route."""
    return {
        "@type": f"{HTTP}.lua.v3.LuaPerRoute",
        "source_code": {"inline_string": lua_file("finished.lua") + lua_file(file)},
    }


def health_parts(settings: EdgeSettings) -> Config:
    """Tells administrators what each part answers to this edge; off but on /health with an identity."""
    required = dict.fromkeys(settings.endpoints(), True)
    others = dict.fromkeys(["mcp", *(["limiter"] if settings.limits_enabled else [])], False)
    parts = ", ".join(f'{{ "{name}", {str(needed).lower()} }}' for name, needed in {**required, **others}.items())
    constants = f'local PARTS = {{ {parts} }}\nlocal VERSION = "{version("parley")}"\n\n'
    return on_demand("health_parts", _HEALTH_SCRIPT, constants + lua_file(_HEALTH_SCRIPT))


def with_health_parts(settings: EdgeSettings) -> Config:
    """On the routes of /health that ask for an identity."""
    return {
        **outside_the_contract(),
        "envoy.filters.http.jwt_authn": identity_rule(is_public=False),
        # Each makes Envoy's main thread write down all of its clusters.
        **counted(settings, "general", is_public=False),
        **with_identity(settings, is_rest=False),
        # Whoever shows no identity has the same routes, and may keep the word for a while.
        "envoy.filters.http.header_mutation": rest_headers(None, is_personal=False),
        "health_parts": switched_on(_HEALTH_SCRIPT),
    }


def body_limit() -> Config:
    """Refuses a body that is too large, after identity, so that nobody unknown fills memory; on by the REST routes."""
    config = {"@type": f"{HTTP}.buffer.v3.Buffer", "max_request_bytes": 1}
    return {"name": "envoy.filters.http.buffer", "disabled": True, "typed_config": config}


def rest_body_limit(settings: EdgeSettings) -> Config:
    """The limit that holds on REST routes; gRPC messages have the services' own."""
    return {
        "@type": f"{HTTP}.buffer.v3.BufferPerRoute",
        "buffer": {"max_request_bytes": settings.max_body_bytes},
    }


def transcoder(settings: EdgeSettings, services: Sequence[str], directory: Path, *, is_ndjson: bool = False) -> Config:
    """REST becomes gRPC, last of all, so that every filter before sees the request as the client wrote it."""
    return {
        "@type": f"{HTTP}.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor": str(directory / "parley.binpb"),
        "services": list(services),
        # A route says which RPC's rules hold; the path that the transcoder writes must not choose another one.
        "match_incoming_request_route": True,
        "convert_grpc_status": True,
        "print_options": {
            "preserve_proto_field_names": True,
            "always_print_primitive_fields": True,
            ("stream_newline_delimited" if is_ndjson else "stream_sse_style_delimited"): True,
        },
        "request_validation_options": {
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
        "max_request_body_size": settings.max_body_bytes,
        "max_response_body_size": settings.max_answer_bytes,
    }


def router() -> Config:
    """Sends the call to its service."""
    return make_filter("router", "Router", suppress_envoy_headers=True)


def outside_the_contract() -> Config:
    """For routes that lead to no RPC: neither identity nor transcoding."""
    off = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    return {
        "envoy.filters.http.jwt_authn": identity_rule(is_public=True),
        "envoy.filters.http.grpc_json_transcoder": off,
    }
