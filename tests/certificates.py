"""Certificates for tests: an authority, and what it issues."""

from __future__ import annotations

import datetime
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID


class Certificate:
    """A certificate with its key. Days count from now; ``issuer`` is None for a self-signed one."""

    def __init__(
        self,
        name: str,
        *,
        hosts: tuple[str, ...] = (),
        issuer: Certificate | None = None,
        authority: bool = False,
        days: tuple[int, int] = (-1, 30),
        with_rsa: bool = False,
    ) -> None:
        self.key: Any = rsa.generate_private_key(65537, 2048) if with_rsa else ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        begin, end = (now + datetime.timedelta(days=day) for day in days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name if issuer else self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_host, hosts))), critical=False)
        self.certificate = builder.sign(issuer.key if issuer else self.key, hashes.SHA256())
        self.last_day = f"{end:%Y-%m-%d}"
        self.first_day = f"{begin:%Y-%m-%d}"

    @cached_property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self, passphrase: str = "") -> bytes:
        """Its private key."""
        how: KeySerializationEncryption = NoEncryption()
        if passphrase:
            how = BestAvailableEncryption(passphrase.encode())
        return bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))

    def issue(self, *hosts: str, **options: Any) -> Certificate:
        """A certificate of this authority for these hosts."""
        return Certificate(hosts[0] if hosts else "server", hosts=hosts, issuer=self, **options)

    def write(self, folder: Path, *chain: Certificate) -> tuple[Path, Path]:
        """The files of its key, which only its owner can read, and of the certificate and its chain."""
        key, certificate = folder / "key.pem", folder / "cert.pem"
        key.unlink(missing_ok=True)
        key.touch(0o600)
        key.write_bytes(self.key_pem())
        certificate.write_bytes(b"".join(each.pem for each in (self, *chain)))
        return key, certificate


def authority(name: str = "Test authority", **options: Any) -> Certificate:
    """A self-signed authority."""
    return Certificate(name, authority=True, **options)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
