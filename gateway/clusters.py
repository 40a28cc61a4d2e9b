"""Where the services are: one cluster a service, and the loop through which the edge fetches the signing keys.

Invariant: no limit of a cluster is below the number of streams that the settings promise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.settings import Address, EdgeSettings

Config = dict[str, Any]
# A unix socket has no longer path than this.
_SOCKET_PATH_BYTES = 103
_PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def clusters(settings: EdgeSettings, directory: Path) -> list[Config]:
    """Every cluster, the services' in the order of the settings."""
    services = [_service(settings, name, where) for name, where in settings.endpoints().items()]
    limiter = [_service(settings, "limiter", settings.limiter_endpoints)] if settings.limits_enabled else []
    return [*services, _mcp(settings), *limiter, _jwks_loop(directory), _admin(settings)]


def _mcp(settings: EdgeSettings) -> Config:
    """The one part that is not spoken to by gRPC: MCP is HTTP, and so is its health."""
    cluster = _service(settings, "mcp", settings.mcp_endpoints)
    (check,) = cluster["health_checks"]
    del check["grpc_health_check"]
    check["http_health_check"] = {"path": "/health"}
    cluster["typed_extension_protocol_options"] = {_PROTOCOL: _http1()}
    # The same processes as chat's, by the same certificates.
    cluster |= _mutual_tls(settings, "chat", alpn="http/1.1")
    return cluster


def _http1() -> Config:
    return {
        "@type": f"type.googleapis.com/{_PROTOCOL}",
        # Below what chat keeps idle connections for (620 s), so that no request meets one that is just being closed.
        "common_http_protocol_options": {"idle_timeout": "600s"},
        "explicit_http_config": {"http_protocol_options": {}},
    }


def _mutual_tls(settings: EdgeSettings, service: str, *, alpn: str) -> Config:
    """On a cluster: the edge shows its certificate and takes only one that names the service."""
    if settings.service_tls_ca_file is None:
        return {}
    name = f"{service}.parley"
    pair = {
        "certificate_chain": {"filename": str(settings.service_tls_certificate_file)},
        "private_key": {"filename": str(settings.service_tls_key_file)},
    }
    context = {
        "alpn_protocols": [alpn],
        "tls_certificates": [pair],
        "validation_context": {
            "trusted_ca": {"filename": str(settings.service_tls_ca_file)},
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": name}}],
        },
    }
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    typed = {"@type": kind, "sni": name, "common_tls_context": context}
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": typed}}


def _service(settings: EdgeSettings, name: str, endpoints: Sequence[Address]) -> Config:
    is_static = all(endpoint.is_ip for endpoint in endpoints)
    return {
        "name": name,
        "type": "STATIC" if is_static else "STRICT_DNS",
        "connect_timeout": "2s",
        "lb_policy": "ROUND_ROBIN",
        # Only healthy processes are asked; with nobody healthy a call is refused at once, not left to a frozen process.
        # Streams that run go on: a process that drains says NOT_SERVING while it ends them.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [_health_check(settings)],
        **_mutual_tls(settings, name, alpn="h2"),
        "circuit_breakers": {"thresholds": [_breaker(settings)]},
        "typed_extension_protocol_options": {_PROTOCOL: _http2(settings)},
        # Dead peers are found by TCP: gRPC servers take frequent HTTP/2 pings for abuse.
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_time": 30, "keepalive_interval": 10, "keepalive_probes": 3}
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(each)}} for each in endpoints]}],
        },
    }


def socket_address(address: Address) -> Config:
    """An address as Envoy writes it."""
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def jwks_address(directory: Path) -> Config:
    """The unix socket on which the edge answers its own fetch of the signing keys; OSError when its path is too long.

    A socket and not Envoy's internal listener: keys are fetched ahead on the main thread, which cannot reach that one.
    """
    path = str(directory / "jwks.sock")
    if len(path.encode()) > _SOCKET_PATH_BYTES:
        raise OSError(f"{path} is too long for a unix socket: choose a folder with a shorter path")
    return {"pipe": {"path": path, "mode": 0o600}}


def _health_check(settings: EdgeSettings) -> Config:
    interval = f"{settings.health_check_interval_seconds:.3f}s"
    return {
        "timeout": "2s",
        "interval": interval,
        # Without these a service that nobody called is looked at once a minute.
        "no_traffic_interval": interval,
        "no_traffic_healthy_interval": interval,
        # NOT_SERVING counts at once; a check that got no answer must fail this often.
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "grpc_health_check": {},
    }


def _breaker(settings: EdgeSettings) -> Config:
    most = settings.max_streams
    return {"max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": 100}


def _http2(settings: EdgeSettings) -> Config:
    options = {
        "max_concurrent_streams": settings.max_streams,
        "initial_stream_window_size": 256 * 1024,
        "initial_connection_window_size": 8 * 1024 * 1024,
    }
    return {
        "@type": f"type.googleapis.com/{_PROTOCOL}",
        "explicit_http_config": {"http2_protocol_options": options},
    }


def _admin(settings: EdgeSettings) -> Config:
    """Envoy's own account of its clusters, for health_parts.lua alone: no route leads there."""
    endpoint = {"address": socket_address(settings.edge_admin_address)}
    return {
        "name": "admin",
        "type": "STATIC" if settings.edge_admin_address.is_ip else "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "admin", "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
    }


def _jwks_loop(directory: Path) -> Config:
    endpoint = {"address": jwks_address(directory)}
    return {
        "name": "jwks",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "jwks", "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
    }
