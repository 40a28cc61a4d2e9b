"""TLS at the edge and mutual TLS behind it, with the certificates of `make certs`, by real handshakes."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from pydantic import ValidationError

from gateway.settings import Address, EdgeSettings
from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from services.auth.__main__ import assembled
from services.auth.settings import AuthSettings
from services.runtime.channels import open_channel
from services.runtime.peers import RemoteKeys
from services.runtime.tls import Tls, TlsSettings
from suite.certificates import write_certificates
from suite.databases import ServiceDatabase
from suite.health import Certificates
from tests.auth.harness import PASSWORD, make_settings, new_name
from tests.gateway.backend import Service, endpoints_of
from tests.gateway.edge import Edge, running_edge
from tests.gateway.test_exchange import basic


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    write_certificates(folder)
    return folder


def files(folder: Path, name: str) -> dict[str, Path]:
    return {name.lower(): Path(path) for name, path in Certificates(folder).of(name).items()}


def tls(folder: Path, name: str) -> Tls:
    found = Tls.from_settings(TlsSettings(**files(folder, name)))  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.fixture
async def secured_auth(auth_database: ServiceDatabase, tmp_path: Path, certificates: Path) -> AsyncIterator[int]:
    """The port of a real auth that asks for certificates."""
    settings = make_settings(auth_database, tmp_path, **files(certificates, "auth"))
    stop, served = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with assembled(settings) as assembly:
            served.set_result(await assembly.server.start(tls=Tls.from_settings(settings)))
            await stop.wait()
            await assembly.server.stop(wait_seconds=0, drain_seconds=1)

    task = asyncio.create_task(serve())
    yield await served
    stop.set()
    await task


async def test_strict_clients_accept_the_certificates(certificates: Path) -> None:
    """Python checks certificates like that by default since its release 3.13."""
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
    theirs = ssl.create_default_context(cafile=certificates / "ca.pem")
    for name, context in (("edge", theirs), ("auth", ours)):
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.verify_mode = ssl.CERT_REQUIRED
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=ours) as server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=theirs, server_hostname="auth.parley")
        assert await reader.read() == b""
        writer.close()


async def test_a_service_speaks_only_to_who_shows_a_certificate_of_the_suite(
    secured_auth: int, certificates: Path, tmp_path: Path
) -> None:
    target = f"127.0.0.1:{secured_auth}"
    async with open_channel(
        target, audience="auth", tokens=None, timeout_seconds=5, tls=tls(certificates, "chat")
    ) as channel:
        assert await RemoteKeys(channel).public_keys()
    write_certificates(tmp_path / "others")
    ca = (certificates / "ca.pem").read_bytes()
    options = [("grpc.ssl_target_name_override", "auth.parley")]
    strangers = {
        "plain": grpc.aio.insecure_channel(target),
        "no certificate": grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(ca), options=options),
        "another authority's": grpc.aio.secure_channel(
            target,
            grpc.ssl_channel_credentials(
                ca, (tmp_path / "others/chat.key").read_bytes(), (tmp_path / "others/chat.pem").read_bytes()
            ),
            options=options,
        ),
    }
    for name, channel in strangers.items():
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await auth_pb2_grpc.AuthServiceStub(channel).GetJwks(auth_pb2.GetJwksRequest(), timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, name


async def test_no_service_stands_in_for_another(secured_auth: int, certificates: Path) -> None:
    target = f"127.0.0.1:{secured_auth}"
    async with open_channel(
        target, audience="memory", tokens=None, timeout_seconds=5, tls=tls(certificates, "chat")
    ) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await auth_pb2_grpc.AuthServiceStub(channel).GetJwks(auth_pb2.GetJwksRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
async def secured_edge(services: dict[str, Service], secured_auth: int, certificates: Path) -> AsyncIterator[Edge]:
    endpoints = endpoints_of(services) | {"auth": (Address("127.0.0.1", secured_auth),)}
    settings: dict[str, Any] = {
        **files(certificates, "edge"),
        "edge_tls_certificate_file": certificates / "public.pem",
        "edge_tls_key_file": certificates / "public.key",
        "jwks_refresh_seconds": 1,
    }
    async with running_edge(endpoints, **settings) as edge:
        yield edge


async def test_clients_speak_tls_and_the_edge_shows_its_certificate_behind(secured_edge: Edge, certificates: Path) -> None:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    async with httpx2.AsyncClient(base_url=secured_edge.url, verify=context, trust_env=False, http2=True) as client:
        registered = await _until_served(client)
        assert registered.http_version == "HTTP/2"
        assert registered.headers["strict-transport-security"] == "max-age=31536000"
        name = registered.json()["user"]["username"]
        # Every way to auth goes through mutual TLS: the exchange, the keys, the call itself.
        assert (await client.get("/api/v1/auth/me", headers=basic(name))).json()["username"] == name
    unknown = ssl.create_default_context()
    async with httpx2.AsyncClient(base_url=secured_edge.url, verify=unknown, trust_env=False) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get("/api")
    async with httpx2.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx2.TransportError):
            await client.get(secured_edge.url.replace("https", "http") + "/api")


async def _until_served(client: httpx2.AsyncClient) -> httpx2.Response:
    async with asyncio.timeout(10):
        while True:
            name = new_name()
            body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
            answer = await client.post("/api/v1/auth/register", json=body)
            if answer.status_code == 200:
                # The edge may not have fetched the keys yet.
                token = answer.json()["tokens"]["access_token"]
                me = await client.get("/api/v1/auth/me", headers={"authorization": f"Bearer {token}"})
                if me.status_code == 200:
                    return answer
            await asyncio.sleep(0.1)


async def test_old_protocols_are_refused(secured_edge: Edge) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    _, writer = await asyncio.open_connection("127.0.0.1", secured_edge.port, ssl=context)
    writer.close()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection("127.0.0.1", secured_edge.port, ssl=context)


def test_keys_are_this_users_alone_and_the_authoritys_is_not_there(certificates: Path) -> None:
    for path in certificates.glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not (certificates / "ca.key").exists()


def test_half_of_the_files_is_refused(certificates: Path) -> None:
    one = {"service_tls_ca_file": certificates / "ca.pem"}
    for settings in (TlsSettings, EdgeSettings):
        with pytest.raises(ValidationError, match="SERVICE_TLS_CERTIFICATE_FILE"):
            settings.model_validate(one)
    with pytest.raises(ValidationError, match="EDGE_TLS"):
        EdgeSettings.model_validate({"edge_tls_certificate_file": certificates / "public.pem"})
    with pytest.raises(ValidationError, match="no file"):
        EdgeSettings.model_validate({name: Path("/no/such") for name in files(certificates, "edge")})
    assert set(TlsSettings.model_fields) <= set(AuthSettings.model_fields)
