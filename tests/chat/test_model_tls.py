"""The provider over TLS, straight and through a proxy: only who can be trusted is told the key."""

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.runtime.errors import Unavailable
from tests.chat.providers import (
    Answer,
    Provider,
    completed,
    delta,
    message,
    opened,
    provider,
    request,
    sse,
    text_of,
    written,
)

GOOD = Answer([sse(delta("Safe."), completed(message("Safe.")))])


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of `localhost` with its key, signed by nobody."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "localhost.pem"
    plain = serialization.NoEncryption()
    told = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(told + signed.public_bytes(serialization.Encoding.PEM))
    return file


@asynccontextmanager
async def provider_behind_tls(certificate: Path, *answers: Answer) -> AsyncIterator[Provider]:
    """A provider, and before it a server that ends TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with provider(*answers) as remote:
        port = int(remote.url.rpartition(":")[2].removesuffix("/v1"))

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _joined(reader, writer, port)

        async with await asyncio.start_server(forward, "localhost", 0, ssl=context) as server:
            remote.url = f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"
            yield remote


async def _joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    far_reader, far_writer = await asyncio.open_connection("localhost", port)

    async def copied(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
        target.close()

    try:
        async with asyncio.TaskGroup() as copying:
            copying.create_task(copied(reader, far_writer))
            copying.create_task(copied(far_reader, writer))
    except* ConnectionError:
        writer.close()


async def test_a_certificate_that_is_trusted_is_spoken_to(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with provider_behind_tls(certificate, GOOD) as remote, opened(remote.url) as model:
        assert text_of(await written(model, request())) == "Safe."


async def test_a_certificate_that_is_not_trusted_gets_nothing(certificate: Path) -> None:
    async with provider_behind_tls(certificate) as remote, opened(remote.url) as model:
        with pytest.raises(Unavailable):
            await written(model, request())
    assert remote.requests == []


async def test_a_proxy_carries_the_connection_and_never_sees_the_key(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[str] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await _joined(reader, writer, int(heads[-1].split(" ")[1].rpartition(":")[2]))

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with provider_behind_tls(certificate, GOOD) as remote, await asyncio.start_server(carry, "localhost", 0) as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:word@localhost:{proxy.sockets[0].getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with opened(remote.url) as model:
            assert text_of(await written(model, request())) == "Safe."
    (head,) = heads
    assert head.startswith("CONNECT localhost:")
    assert "proxy-authorization: basic bwu6d29yza==" in head.lower()
    assert "bearer" not in head.lower()
    assert remote.requests[0].headers["authorization"] == "Bearer any"
