"""Mutual TLS between the processes of the suite: off unless its three files are named.

Each process has a certificate of the suite's own authority that names its service (`auth.parley`), shows it on every
connection and asks for one on every connection. Invariant: with it on, nothing that is not of the suite gets as far as a
method, and no service can stand in for another. The files are read at the start: new certificates come with a restart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
from pydantic import model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

SUFFIX = ".parley"


class TlsSettings(BaseSettings):
    """All three files, or none."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    service_tls_ca_file: Path | None = None
    """PEM of the authority that signed the certificates of every service."""
    service_tls_certificate_file: Path | None = None
    """PEM of this process' own certificate, with what stands between it and the authority."""
    service_tls_key_file: Path | None = None
    """PEM of its private key."""

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        files = (self.service_tls_ca_file, self.service_tls_certificate_file, self.service_tls_key_file)
        named = [path for path in files if path is not None]
        if named and len(named) < len(files):
            raise ValueError(
                "SERVICE_TLS_CA_FILE, SERVICE_TLS_CERTIFICATE_FILE and SERVICE_TLS_KEY_FILE go together: name all or none"
            )
        for path in named:
            try:
                path.read_bytes()
            except OSError as error:
                raise ValueError(f"cannot read {path}: {error.strerror}") from None
        return self


@dataclass(frozen=True, slots=True)
class Tls:
    """What a process shows and whom it believes, in PEM."""

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def from_settings(cls, settings: TlsSettings) -> "Tls | None":
        """None where connections are plain."""
        ca, certificate, key = (
            settings.service_tls_ca_file,
            settings.service_tls_certificate_file,
            settings.service_tls_key_file,
        )
        if ca is None or certificate is None or key is None:
            return None
        return cls(ca.read_bytes(), certificate.read_bytes(), key.read_bytes())


def listen(server: grpc.aio.Server, address: str, tls: Tls | None) -> int:
    """Binds a server; returns the port. Raises OSError when the address cannot be had."""
    try:
        if tls is None:
            return server.add_insecure_port(address)
        pair = [(tls.key, tls.certificate)]
        credentials = grpc.ssl_server_credentials(pair, root_certificates=tls.authority, require_client_auth=True)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: is the port taken?") from error


def connect(
    target: str,
    service: str,
    tls: Tls | None,
    *,
    options: Sequence[tuple[str, Any]],
    interceptors: Sequence[grpc.aio.ClientInterceptor],
) -> grpc.aio.Channel:
    """A channel to a service, which must prove to be that service."""
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
    credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
    named = (*options, ("grpc.ssl_target_name_override", service + SUFFIX))
    return grpc.aio.secure_channel(target, credentials, options=named, interceptors=interceptors)
