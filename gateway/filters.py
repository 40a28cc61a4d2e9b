"""The HTTP filters in the order in which a request meets them, one function each; an answer meets them from the last up.

Each function's first line becomes the comment above the filter in the written configuration.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gateway.contract import StreamForm
from gateway.refusals import errors_in_lua
from gateway.settings import EdgeSettings

Config = dict[str, Any]
_HTTP = "type.googleapis.com/envoy.extensions.filters.http"
JWKS_PATH = "/.well-known/jwks.json"
# Half of what the services take: gRPC counts 32 bytes more a header, and the edge adds some of its own.
LARGEST_HEADER_BYTES = 32 * 1024
_COOKIE_SCRIPT = "session_cookie.lua"
_HERE = Path(__file__).parent


def http_filters(settings: EdgeSettings, services: Sequence[str], directory: Path) -> list[Config]:
    """The whole chain of the edge's listener."""
    return [
        request_headers(),
        session_cookie(settings),
        whole_errors(),
        response_headers(),
        cors(),
        health_check(settings),
        grpc_web(),
        stream_frames(),
        jwt_authn(settings),
        body_limit(),
        _named("envoy.filters.http.grpc_json_transcoder", transcoder(settings, services, directory)),
        router(),
    ]


def comments() -> dict[str, str]:
    """Why each filter stands where it stands, by its name in the configuration."""
    filters: dict[str, Callable[..., object]] = {
        "request_headers": request_headers,
        "session_cookie": session_cookie,
        "whole_errors": whole_errors,
        "envoy.filters.http.header_mutation": response_headers,
        "envoy.filters.http.cors": cors,
        "envoy.filters.http.health_check": health_check,
        "envoy.filters.http.grpc_web": grpc_web,
        "stream_frames": stream_frames,
        "envoy.filters.http.jwt_authn": jwt_authn,
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
    return _lua("request_headers", limit + _script("request_headers.lua"))


def session_cookie(settings: EdgeSettings) -> Config:
    """Takes the access token out of a cookie where a browser can send no header; off but on the routes that read."""
    names = ", ".join(f'"{name}"' for name in settings.session_cookies)
    script = f"local SESSION_COOKIES = {{ {names} }}\n\n" + _script("session_cookie.lua")
    lua = {"@type": f"{_HTTP}.lua.v3.Lua", "source_codes": {_COOKIE_SCRIPT: {"inline_string": script}}}
    return {"name": "session_cookie", "disabled": True, "typed_config": lua}


def with_session_cookie() -> Config:
    """Switches the cookies on, on one route."""
    return {"@type": f"{_HTTP}.lua.v3.LuaPerRoute", "name": _COOKIE_SCRIPT}


def whole_errors() -> Config:
    """Makes errors whole: Retry-After as their RetryInfo says, the one shape for those that gRPC itself made."""
    return _lua("whole_errors", errors_in_lua() + _script("whole_errors.lua"))


def response_headers() -> Config:
    """Almost last on the way out: sets what every answer carries and takes out what REST clients must not see."""
    inner = {"remove": "x-envoy-upstream-healthchecked-cluster"}
    mutations = [
        _overwrite("x-content-type-options", "nosniff"),
        # The request id is there for the filter that makes errors whole.
        _overwrite("x-request-id", "%REQ(X-REQUEST-ID)%"),
        inner,
    ]
    return _filter("header_mutation", "HeaderMutation", mutations={"response_mutations": mutations})


def rest_headers(stream_form: StreamForm | None, *, is_personal: bool) -> Config:
    """On REST routes: what gRPC would take for its own goes neither in nor out; no cache keeps what is not public."""
    # The services' gRPC would fail on a malformed one, and obey a deadline that REST clients have no way to set.
    foreign = [{"remove_on_match": {"key_matcher": matcher}} for matcher in ({"prefix": "grpc-"}, {"suffix": "-bin"})]
    leaks = ("grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-encoding", "grpc-accept-encoding")
    mutations: list[Config] = [{"remove": name} for name in leaks]
    if stream_form is not None:
        mutations.append(_overwrite("x-accel-buffering", "no"))
    if stream_form == "events":
        mutations.append(_overwrite("cache-control", "no-cache"))
    elif is_personal:
        # Caches leave alone what was asked for with an Authorization header, but not what was asked for with a cookie.
        mutations.append(_overwrite("cache-control", "no-store"))
    return {
        "@type": f"{_HTTP}.header_mutation.v3.HeaderMutationPerRoute",
        "mutations": {"request_mutations": foreign, "response_mutations": mutations},
    }


def cors() -> Config:
    """Before identity, because a preflight has none."""
    return _filter("cors", "Cors")


def health_check(settings: EdgeSettings) -> Config:
    """Answers /health by what the active checks of the services say, whatever the Host: probes come by address."""
    return _filter(
        "health_check",
        "HealthCheck",
        pass_through_mode=False,
        headers=[
            {"name": ":path", "string_match": {"safe_regex": {"regex": r"(/api/v1)?/health(\?.*)?"}}},
            {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}},
        ],
        # One healthy process of a service is enough to serve.
        cluster_min_healthy_percentages={name: {"value": 1} for name in settings.endpoints()},
    )


def grpc_web() -> Config:
    """Turns gRPC-Web into gRPC, so that everything behind it knows only one of them."""
    return _filter("grpc_web", "GrpcWeb")


def stream_frames() -> Config:
    """Gives SSE frames their ids and heartbeats their form; off but on the routes of streams, which name their script."""
    return {"name": "stream_frames", "disabled": True, "typed_config": {"@type": f"{_HTTP}.lua.v3.Lua"}}


def stream_script(file: str) -> Config:
    """Switches a script on, on one route."""
    return {
        "@type": f"{_HTTP}.lua.v3.LuaPerRoute",
        "source_code": {"inline_string": _script("finished.lua") + _script(file)},
    }


def jwt_authn(settings: EdgeSettings) -> Config:
    """Identity at the door: a token is required wherever a route does not say that its RPC is public.

    The token goes on to the service, which verifies it again by itself. On a public RPC the edge does not look at a token;
    the service refuses a bad one.
    """
    provider = {
        "issuer": "parley",
        "audiences": ["parley"],
        "forward": True,
        # Only this header: a token in a query would end in logs.
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "require_expiration": True,
        "clock_skew_seconds": 5,
        # Verified tokens are remembered until they expire, on each worker.
        "jwt_cache_config": {"jwt_cache_size": 4096},
        "remote_jwks": {
            "http_uri": {"uri": f"http://auth{JWKS_PATH}", "cluster": "jwks", "timeout": "2s"},
            "cache_duration": f"{settings.jwks_refresh_seconds}s",
            # Fetched ahead and kept fresh; a start without auth heals a moment after auth comes.
            "async_fetch": {"fast_listener": True, "failed_refetch_duration": "0.5s"},
        },
    }
    return _filter(
        "jwt_authn",
        "JwtAuthentication",
        providers={"parley": provider},
        requirement_map={"user": {"provider_name": "parley"}},
        rules=[{"match": {"prefix": "/"}, "requires": {"provider_name": "parley"}}],
        strip_failure_response=False,
    )


def identity_rule(*, is_public: bool) -> Config:
    """The identity that one route asks for."""
    kind = f"{_HTTP}.jwt_authn.v3.PerRouteConfig"
    return {"@type": kind, "disabled": True} if is_public else {"@type": kind, "requirement_name": "user"}


def body_limit() -> Config:
    """Refuses a body that is too large, after identity, so that nobody unknown fills memory; on by the REST routes."""
    config = {"@type": f"{_HTTP}.buffer.v3.Buffer", "max_request_bytes": 1}
    return {"name": "envoy.filters.http.buffer", "disabled": True, "typed_config": config}


def rest_body_limit(settings: EdgeSettings) -> Config:
    """The limit that holds on REST routes; gRPC messages have the services' own."""
    return {
        "@type": f"{_HTTP}.buffer.v3.BufferPerRoute",
        "buffer": {"max_request_bytes": settings.max_body_bytes},
    }


def transcoder(settings: EdgeSettings, services: Sequence[str], directory: Path, *, is_ndjson: bool = False) -> Config:
    """REST becomes gRPC, last of all, so that every filter before sees the request as the client wrote it."""
    return {
        "@type": f"{_HTTP}.grpc_json_transcoder.v3.GrpcJsonTranscoder",
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
    return _filter("router", "Router", suppress_envoy_headers=True)


def outside_the_contract() -> Config:
    """For routes that lead to no RPC: neither identity nor transcoding."""
    off = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    return {
        "envoy.filters.http.jwt_authn": identity_rule(is_public=True),
        "envoy.filters.http.grpc_json_transcoder": off,
    }


def _script(file: str) -> str:
    return (_HERE / file).read_text()


def _lua(name: str, script: str) -> Config:
    return _named(name, {"@type": f"{_HTTP}.lua.v3.Lua", "default_source_code": {"inline_string": script}})


def _overwrite(name: str, value: str) -> Config:
    return {"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def _filter(name: str, message: str, **fields: object) -> Config:
    return _named(f"envoy.filters.http.{name}", {"@type": f"{_HTTP}.{name}.v3.{message}", **fields})


def _named(name: str, typed_config: Config) -> Config:
    return {"name": name, "typed_config": typed_config}
