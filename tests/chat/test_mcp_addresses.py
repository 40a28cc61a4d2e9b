"""Which addresses may be called, and that a call goes to the one that was checked."""

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.chat.mcp.addresses import Address, AddressError, Addresses, is_public
from services.chat.mcp.transport import open_http
from services.runtime.errors import InvalidArgument

REFUSED = [
    "127.0.0.1", "127.9.9.9", "0.1.2.3", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "168.63.129.16",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1",
    "ff02::1", "2001:db8::1", "2001::1", "2002:7f00:1::", "2002:a9fe:a9fe::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1", "100::1",
    *("0.0.0.0",),  # noqa: S104 - not bound
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
NAME = "mcp.parley-test.example"


@pytest.fixture
async def public_only() -> AsyncIterator[Addresses]:
    addresses = Addresses(allow_private=False, timeout_seconds=2)
    yield addresses
    addresses.close()


@pytest.fixture
async def everything() -> AsyncIterator[Addresses]:
    addresses = Addresses(allow_private=True, timeout_seconds=2)
    yield addresses
    addresses.close()


class Told(Addresses):
    """Knows where a name is, as a resolver would say it at the time of the check, and at no other time."""

    def __init__(self, *addresses: str) -> None:
        super().__init__(allow_private=True, timeout_seconds=1)
        self._told = [ipaddress.ip_address(address) for address in addresses]

    async def resolve(self, host: str) -> Sequence[Address]:
        assert host == NAME
        return self._told


@pytest.mark.parametrize("address", REFUSED)
def test_reserved_addresses_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_others_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", REFUSED)
async def test_a_url_with_a_reserved_address_is_refused(public_only: Addresses, address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(InvalidArgument, match="private or reserved"):
        await public_only.check_url(f"https://{host}/mcp")


@pytest.mark.parametrize(
    "url",
    [
        "http://1.1.1.1/mcp", "ftp://1.1.1.1/", "file:///etc/passwd", "//1.1.1.1/", "1.1.1.1", "https://", "https:///mcp",
        "https://user:pass@1.1.1.1/", "https://user@1.1.1.1/", "https://@1.1.1.1/", "https://1.1.1.1/#part",
        "https://1.1.1.1/a b", "https://1.1.1.1\\@127.0.0.1/", "https://1.1.1.1/\n", "https://bücher.example/", "https://1.1.1.1:99999/",
        "https://1.1.1.1:0/", "https://[::1", "https://localhost/", "https://2130706433/", "https://0x7f.1/",
        "https://127.1/", "https://0177.0.0.1/", "https://①②⑦.0.0.1/", "gopher://1.1.1.1/", "https://.../",
    ],
)  # fmt: skip
async def test_a_url_that_is_not_plain_https_to_a_public_host_is_refused(public_only: Addresses, url: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await public_only.check_url(url, field="mcp_servers[0].url")
    assert [one.field for one in refused.value.violations] == ["mcp_servers[0].url"]


@pytest.mark.parametrize("url", ["https://1.1.1.1", "https://1.1.1.1:8443/mcp?key=x", "https://[2606:4700:4700::1111]/mcp"])
async def test_a_public_url_passes(public_only: Addresses, url: str) -> None:
    await public_only.check_url(url)


async def test_what_an_operator_allows_passes_but_for_credentials(everything: Addresses) -> None:
    for url in ("http://127.0.0.1:1/mcp", "http://localhost/", "https://10.0.0.1/"):
        await everything.check_url(url)
    with pytest.raises(InvalidArgument, match="credentials"):
        await everything.check_url("http://user:pass@127.0.0.1/")


async def test_a_name_without_an_address_passes_now_and_is_checked_again_when_called(public_only: Addresses) -> None:
    await public_only.check_url("https://nowhere.invalid/mcp")
    async with open_http(public_only, ssl.create_default_context(), headers={}, connect_seconds=1) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.post("https://nowhere.invalid/mcp")


async def test_one_private_address_among_public_ones_is_one_too_many(public_only: Addresses) -> None:
    # localhost is 127.0.0.1 and ::1 here.
    with pytest.raises(AddressError):
        await public_only.resolve("localhost")


async def test_what_was_found_is_remembered_and_no_more_than_so_much(
    public_only: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1_200):
        await public_only.resolve(f"1.1.{number // 250}.{number % 250 + 1}")
    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", None)
        await public_only.resolve("1.1.4.150")
    assert len(public_only._found) == 1_000


def _certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for a name, and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(private + pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return _certificate(tmp_path, NAME)


async def _serve(heads: list[bytes], context: ssl.SSLContext | None) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)


async def test_a_call_goes_to_the_checked_address_under_the_name_of_the_url(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    server_context, trusting = certificates
    heads: list[bytes] = []
    server = await _serve(heads, server_context)
    port = server.sockets[0].getsockname()[1]
    # No resolver knows the name: only the address that was checked can have been called. The first one does not answer.
    addresses = Told("127.0.0.2", "127.0.0.1")
    async with server, open_http(addresses, trusting, headers={}, connect_seconds=2) as client:
        response = await client.post(f"https://{NAME}:{port}/mcp", content=b"")
    assert response.text == "ok"
    assert f"host: {NAME}:{port}".encode() in heads[0].lower()
    addresses.close()


async def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    server_context, trusting = _certificate(tmp_path, "another.example")
    heads: list[bytes] = []
    server = await _serve(heads, server_context)
    addresses = Told("127.0.0.1")
    async with server, open_http(addresses, trusting, headers={}, connect_seconds=2) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.post(f"https://{NAME}:{server.sockets[0].getsockname()[1]}/mcp", content=b"")
    assert heads == []
    addresses.close()
