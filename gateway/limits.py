"""The filters that ask the limiter whether a call is one too many, and what each route has counted.

Invariant: strangers are counted by address before anything dear is done for them, users by their id behind identity. Who
shows a password or another issuer's token is a stranger until auth has traded it, and a user after that.
"""

from gateway.filter_shapes import HTTP, Config, named
from gateway.identity import CLAIMS, JWT_METADATA, MARK, MARK_METADATA
from gateway.settings import EdgeSettings

BY_ADDRESS, BY_USER = "limit_by_address", "limit_by_user"
# One household of IPv6 has so many addresses that only their common prefix means anything.
_IPV6_PREFIX_BITS = 64
_CLASS_KEY = "limit"


def limit_by_address(settings: EdgeSettings) -> Config:
    """Too many sign-ins, registrations or credentials to be traded of one address: before anything is done that is dear."""
    return _limit(BY_ADDRESS, settings)


def limit_by_user(settings: EdgeSettings) -> Config:
    """Too many calls of one user, whichever edges they came by: behind identity, so that nobody spends another's calls."""
    return _limit(BY_USER, settings)


def _limit(name: str, settings: EdgeSettings) -> Config:
    service = {"envoy_grpc": {"cluster_name": "limiter"}, "timeout": f"{settings.limiter_timeout_seconds:.3f}s"}
    return named(
        name,
        {
            "@type": f"{HTTP}.ratelimit.v3.RateLimit",
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


def counted(settings: EdgeSettings, limit_class: str | None, *, is_public: bool) -> Config:
    """On a route: what is counted of its calls, and whose they are.

    Where an identity is needed, what is traded for one is counted by address too, whatever the class: auth is asked before
    anybody knows whose call it is.
    """
    if not settings.limits_enabled:
        return {}
    address: Config = {"masked_remote_address": {"v6_prefix_mask_len": _IPV6_PREFIX_BITS}}
    # The mark is the name of the class.
    rules = {} if is_public else {BY_ADDRESS: _rule(_metadata(_CLASS_KEY, MARK_METADATA, MARK), address)}
    if limit_class is not None:
        by_class = {"generic_key": {"descriptor_key": _CLASS_KEY, "descriptor_value": limit_class}}
        whose = address if is_public else _metadata("user", JWT_METADATA, CLAIMS, "sub")
        rules[BY_ADDRESS if is_public else BY_USER] = _rule(by_class, whose)
    return rules


def _rule(limit_class: Config, whose: Config) -> Config:
    # Not counted by: how a refusal has to be written.
    content = {"request_headers": {"header_name": "content-type", "descriptor_key": "content", "skip_if_absent": True}}
    actions = [limit_class, whose, content]
    return {"@type": f"{HTTP}.ratelimit.v3.RateLimitPerRoute", "rate_limits": [{"actions": actions}]}


def _metadata(key: str, name: str, *path: str) -> Config:
    """What the metadata of a request says, as a key of what is counted. Where it says nothing, nothing is counted."""
    where = {"key": name, "path": [{"key": part} for part in path]}
    return {"metadata": {"descriptor_key": key, "metadata_key": where, "source": "DYNAMIC"}}
