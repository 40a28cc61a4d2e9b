"""The HTTP filters in the order in which a request meets them, one function each; an answer meets them from the last up.

Each function's first line becomes the comment above the filter in the written configuration.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
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
# Above what a password may wait for its turn to be hashed.
EXCHANGE_SECONDS = 8
HSTS_SECONDS = 31_536_000
_COOKIE_SCRIPT = "session_cookie.lua"
_EXCHANGE_SCRIPT = "exchange.lua"
_HEALTH_SCRIPT = "health_parts.lua"
# What the mark of exchange.lua is called, for ext_authz to look at.
_MARK = "parley"
BY_ADDRESS, BY_USER = "limit_by_address", "limit_by_user"
_JWT_METADATA = "envoy.filters.http.jwt_authn"
# One household of IPv6 has so many addresses that only their common prefix means anything.
_IPV6_PREFIX_BITS = 64
_HERE = Path(__file__).parent


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
        _named("envoy.filters.http.grpc_json_transcoder", transcoder(settings, services, directory)),
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
    return _lua("request_headers", limit + _script("request_headers.lua"))


def session_cookie(settings: EdgeSettings) -> Config:
    """Takes the access token out of a cookie, where no header names one; off but on REST routes that need an identity."""
    names = ", ".join(f'"{name}"' for name in settings.session_cookies)
    script = f"local SESSION_COOKIES = {{ {names} }}\n\n" + _origins(settings) + _script(_COOKIE_SCRIPT)
    return _on_demand("session_cookie", _COOKIE_SCRIPT, script)


def exchange(settings: EdgeSettings) -> Config:
    """Marks what must be traded for a token of ours first; off but on the routes that need an identity."""
    switches = (("TAKES_BASIC", settings.basic_auth_enabled), ("TAKES_FOREIGN", settings.external_tokens_enabled))
    constants = "".join(f"local {name} = {str(is_on).lower()}\n" for name, is_on in switches)
    script = constants + "\n" + _origins(settings) + _script(_EXCHANGE_SCRIPT)
    return _on_demand("exchange", _EXCHANGE_SCRIPT, script)


def with_identity(settings: EdgeSettings, *, is_rest: bool) -> Config:
    """On a route that needs an identity: the ways to one beside the bearer token."""
    ways: Config = {"exchange": _switched_on(_EXCHANGE_SCRIPT)}
    if is_rest and settings.cookie_auth_enabled:
        ways["session_cookie"] = _switched_on(_COOKIE_SCRIPT)
    return ways


def _on_demand(name: str, file: str, script: str) -> Config:
    lua = {"@type": f"{_HTTP}.lua.v3.Lua", "source_codes": {file: {"inline_string": script}}}
    return {"name": name, "disabled": True, "typed_config": lua}


def _switched_on(file: str) -> Config:
    return {"@type": f"{_HTTP}.lua.v3.LuaPerRoute", "name": file}


def _origins(settings: EdgeSettings) -> str:
    listed = ", ".join(f'["{origin}"] = true' for origin in settings.cors_allowed_origins if origin != "*")
    return f"local ALLOWED_ORIGINS = {{ {listed} }}\n\n" + _script("origins.lua") + "\n"


def whole_errors() -> Config:
    """Makes errors whole: Retry-After as their RetryInfo says, the one shape for those that gRPC itself made."""
    return _lua("whole_errors", errors_in_lua() + _script("whole_errors.lua"))


def response_headers(settings: EdgeSettings) -> Config:
    """Almost last on the way out: sets what every answer carries and takes out what REST clients must not see."""
    inner = {"remove": "x-envoy-upstream-healthchecked-cluster"}
    mutations = [
        _overwrite("x-content-type-options", "nosniff"),
        _overwrite("referrer-policy", "no-referrer"),
        _overwrite("x-frame-options", "DENY"),
        # What is no page has nothing to load and is in nobody's frame. Pages say their own.
        _add_if_absent("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
        *([_overwrite("strict-transport-security", f"max-age={HSTS_SECONDS}")] if settings.has_tls else []),
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
            # Who shows an identity is told more (health_parts).
            {"name": "authorization", "present_match": True, "invert_match": True},
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


def limit_by_address(settings: EdgeSettings) -> Config:
    """Too many sign-ins or registrations of one address: before anything is done that a stranger could make dear."""
    return _limit(BY_ADDRESS, settings)


def limit_by_user(settings: EdgeSettings) -> Config:
    """Too many calls of one user, whichever edges they came by: behind identity, so that nobody spends another's calls."""
    return _limit(BY_USER, settings)


def _limit(name: str, settings: EdgeSettings) -> Config:
    service = {"envoy_grpc": {"cluster_name": "limiter"}, "timeout": f"{settings.limiter_timeout_seconds:.3f}s"}
    return _named(
        name,
        {
            "@type": f"{_HTTP}.ratelimit.v3.RateLimit",
            "domain": "parley",
            "stat_prefix": name,
            "timeout": f"{settings.limiter_timeout_seconds:.3f}s",
            # A limiter that is away stops nobody; auth slows down whoever tries passwords by itself.
            "failure_mode_deny": False,
            "rate_limited_as_resource_exhausted": True,
            "disable_x_envoy_ratelimited_header": True,
            "rate_limit_service": {"grpc_service": service, "transport_api_version": "V3"},
        },
    )


def limits(settings: EdgeSettings, limit_class: str | None, *, is_public: bool) -> Config:
    """On a route: what is counted of its calls, and whose they are."""
    if limit_class is None or not settings.limits_enabled:
        return {}
    subject = {"key": _JWT_METADATA, "path": [{"key": "claims"}, {"key": "sub"}]}
    whose: Config = (
        {"masked_remote_address": {"v6_prefix_mask_len": _IPV6_PREFIX_BITS}}
        if is_public
        else {"metadata": {"descriptor_key": "user", "metadata_key": subject, "source": "DYNAMIC"}}
    )
    counted = {"generic_key": {"descriptor_key": "limit", "descriptor_value": limit_class}}
    # Not counted by: how a refusal has to be written.
    content = {"request_headers": {"header_name": "content-type", "descriptor_key": "content", "skip_if_absent": True}}
    actions = [counted, whose, content]
    rule = {"@type": f"{_HTTP}.ratelimit.v3.RateLimitPerRoute", "rate_limits": [{"actions": actions}]}
    return {BY_ADDRESS if is_public else BY_USER: rule}


def ext_authz() -> Config:
    """Trades a password or another issuer's token for a token of ours, which everything behind sees; for marked requests."""
    return _filter(
        "ext_authz",
        "ExtAuthz",
        transport_api_version="V3",
        grpc_service={"envoy_grpc": {"cluster_name": "auth"}, "timeout": f"{EXCHANGE_SECONDS}s"},
        filter_enabled_metadata={"filter": _MARK, "path": [{"key": "exchange"}], "value": {"bool_match": True}},
        # Auth is away: not the caller's fault.
        status_on_error={"code": "ServiceUnavailable"},
        # All that auth needs to know: no cookies, no bodies.
        allowed_headers={"patterns": [{"exact": name} for name in ("authorization", "content-type", "x-request-id")]},
    )


def jwt_authn(settings: EdgeSettings) -> Config:
    """Identity at the door: a token is required wherever a route does not say that its RPC is public.

    The token goes on to the service, which verifies it again by itself. On a public RPC the edge does not look at a token;
    the service refuses a bad one.
    """
    provider = {
        "issuer": "parley",
        "audiences": ["parley"],
        "forward": True,
        "payload_in_metadata": "claims",
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


def health_parts(settings: EdgeSettings) -> Config:
    """Tells administrators what each part answers to this edge; off but on /health with an identity."""
    required = dict.fromkeys(settings.endpoints(), True)
    others = dict.fromkeys(["mcp", *(["limiter"] if settings.limits_enabled else [])], False)
    parts = ", ".join(f'{{ "{name}", {str(needed).lower()} }}' for name, needed in {**required, **others}.items())
    constants = f'local PARTS = {{ {parts} }}\nlocal VERSION = "{version("parley")}"\n\n'
    return _on_demand("health_parts", _HEALTH_SCRIPT, constants + _script(_HEALTH_SCRIPT))


def with_health_parts(settings: EdgeSettings) -> Config:
    """On the routes of /health that ask for an identity."""
    return {
        **outside_the_contract(),
        "envoy.filters.http.jwt_authn": identity_rule(is_public=False),
        **with_identity(settings, is_rest=False),
        "health_parts": _switched_on(_HEALTH_SCRIPT),
    }


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


def _add_if_absent(name: str, value: str) -> Config:
    return {"append": {"header": {"key": name, "value": value}, "append_action": "ADD_IF_ABSENT"}}


def _filter(name: str, message: str, **fields: object) -> Config:
    return _named(f"envoy.filters.http.{name}", {"@type": f"{_HTTP}.{name}.v3.{message}", **fields})


def _named(name: str, typed_config: Config) -> Config:
    return {"name": name, "typed_config": typed_config}
