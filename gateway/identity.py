"""The filters by which the edge knows who calls: cookie and exchange, which lead to a token of ours, and the check of it.

Invariant: behind these an RPC that is not public is reached with one of auth's access tokens in the Authorization header,
and with nothing else that proves who somebody is.
"""

from gateway.filter_shapes import HTTP, Config, lua_file, make_filter, on_demand, switched_on
from gateway.settings import EdgeSettings

JWKS_PATH = "/.well-known/jwks.json"
# Under which name the claims of the caller's token stand in a request's metadata.
JWT_METADATA, CLAIMS = "envoy.filters.http.jwt_authn", "claims"
# Above what a password may wait for its turn to be hashed.
EXCHANGE_SECONDS = 8
_COOKIE_SCRIPT = "session_cookie.lua"
_EXCHANGE_SCRIPT = "exchange.lua"
# Where the mark of exchange.lua stands in a request's metadata, for ext_authz and the limits to look at; and what it says.
MARK_METADATA, MARK, MARKED = "parley", "credentials", "exchange"
# What auth is shown of a marked request; the client's address stands in the last of them.
_SHOWN_HEADERS = ("authorization", "content-type", "x-request-id", "x-forwarded-for")


def session_cookie(settings: EdgeSettings) -> Config:
    """Takes the access token out of a cookie, where no header names one; off but on REST routes that need an identity."""
    names = ", ".join(f'"{name}"' for name in settings.session_cookies)
    script = f"local SESSION_COOKIES = {{ {names} }}\n\n" + _origins(settings) + lua_file(_COOKIE_SCRIPT)
    return on_demand("session_cookie", _COOKIE_SCRIPT, script)


def exchange(settings: EdgeSettings) -> Config:
    """Marks what must be traded for a token of ours first; off but on the routes that need an identity."""
    switches = (("TAKES_BASIC", settings.basic_auth_enabled), ("TAKES_FOREIGN", settings.external_tokens_enabled))
    constants = "".join(f"local {name} = {str(is_on).lower()}\n" for name, is_on in switches)
    script = constants + "\n" + _origins(settings) + lua_file(_EXCHANGE_SCRIPT)
    return on_demand("exchange", _EXCHANGE_SCRIPT, script)


def with_identity(settings: EdgeSettings, *, is_rest: bool) -> Config:
    """On a route that needs an identity: the ways to one beside the bearer token."""
    ways: Config = {"exchange": switched_on(_EXCHANGE_SCRIPT)}
    if is_rest and settings.cookie_auth_enabled:
        ways["session_cookie"] = switched_on(_COOKIE_SCRIPT)
    return ways


def _origins(settings: EdgeSettings) -> str:
    listed = ", ".join(f'["{origin}"] = true' for origin in settings.cors_allowed_origins if origin != "*")
    return f"local ALLOWED_ORIGINS = {{ {listed} }}\n\n" + lua_file("origins.lua") + "\n"


def ext_authz() -> Config:
    """Trades a password or another issuer's token for a token of ours, which everything behind sees; for marked requests."""
    return make_filter(
        "ext_authz",
        "ExtAuthz",
        transport_api_version="V3",
        grpc_service={"envoy_grpc": {"cluster_name": "auth"}, "timeout": f"{EXCHANGE_SECONDS}s"},
        filter_enabled_metadata={
            "filter": MARK_METADATA,
            "path": [{"key": MARK}],
            "value": {"string_match": {"exact": MARKED}},
        },
        # Auth is away: not the caller's fault.
        status_on_error={"code": "ServiceUnavailable"},
        # All that auth needs to know: no cookies, no bodies.
        allowed_headers={"patterns": [{"exact": name} for name in _SHOWN_HEADERS]},
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
        "payload_in_metadata": CLAIMS,
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
    return make_filter(
        "jwt_authn",
        "JwtAuthentication",
        providers={"parley": provider},
        requirement_map={"user": {"provider_name": "parley"}},
        rules=[{"match": {"prefix": "/"}, "requires": {"provider_name": "parley"}}],
        strip_failure_response=False,
    )


def identity_rule(*, is_public: bool) -> Config:
    """The identity that one route asks for."""
    kind = f"{HTTP}.jwt_authn.v3.PerRouteConfig"
    return {"@type": kind, "disabled": True} if is_public else {"@type": kind, "requirement_name": "user"}
