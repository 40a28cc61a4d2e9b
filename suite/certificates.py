"""Certificates for development: an authority of this machine, one certificate a service, one for the edge's clients.

`make certs` writes them into a folder; PARLEY_CERTIFICATES names it to `make run`. A service's certificate names it as
`<service>.parley`, which is what its callers look for. Keys are readable by this user alone, and the authority's own is
thrown away. Running it again makes new ones of a new authority: everything has to be started anew.
"""

import argparse
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from suite.private_files import write_private

PARTS = ("auth", "chat", "memory", "sms", "limiter", "edge")
PUBLIC = "public"
AUTHORITY = "ca"
_DAYS = 825
_LOCAL = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class _Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def write_certificates(folder: Path) -> None:
    """Writes ca.pem, and for each part and the edge's clients `<name>.pem` and `<name>.key`."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = _make_authority()
    (folder / f"{AUTHORITY}.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    for name in (*PARTS, PUBLIC):
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName("localhost" if name == PUBLIC else f"{name}.parley")]
        if name == PUBLIC:
            names += [x509.IPAddress(ipaddress.ip_address(address)) for address in _LOCAL]
        certificate = _sign(authority, key, name, names)
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(folder / f"{name}.key", private.decode())


def _make_authority() -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Parley development")])
    builder = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return _Authority(key, builder.sign(key, hashes.SHA256()))


def _sign(
    authority: _Authority, key: ec.EllipticCurvePrivateKey, name: str, names: list[x509.GeneralName]
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(subject, authority.certificate.subject, key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both[:1] if name == PUBLIC else both), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    return builder.sign(authority.key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        # Strict clients (Python 3.13 is one) refuse certificates without the names of keys.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def main() -> None:
    """Reads the folder from the command line."""
    parser = argparse.ArgumentParser(prog="python -m suite.certificates", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("certs"))
    folder = parser.parse_args().output
    write_certificates(folder)
    print(f"certificates for development are in {folder}; PARLEY_CERTIFICATES={folder} makes `make run` use them")


if __name__ == "__main__":
    main()
