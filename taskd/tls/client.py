"""TLS to a server whose certificate is checked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from ipaddress import ip_address

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity.exceptions import CertificateError, VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import CertificateOptions, PrivateCertificate, platformTrust
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from taskd.tls.files import Authorities
from taskd.tls.problems import Flaw, ICertificateListener, Problem

_EXPIRED, _NOT_YET_VALID = 10, 9
_UNTRUSTED = {2, 18, 19, 20, 21}
"""OpenSSL's numbers for a chain that does not lead to a trusted authority (X509_V_ERR_* in openssl/x509_vfy.h)."""


def _check(name: DNS_ID | IPAddress_ID, certificate: X509, error: int, depth: int, ok: int) -> Problem | None:
    """What is wrong with one certificate of a chain. OpenSSL has checked it; the server's own has depth 0."""
    try:
        if not ok:
            return _chain_problem(certificate.to_cryptography(), error)
        if depth == 0:
            try:
                verify_service_identity(extract_patterns(certificate), [name], [])
            except (VerificationError, CertificateError):
                return _host_problem(certificate.to_cryptography())
    except Exception as e:
        # an exception would be lost inside OpenSSL; what cannot be read is not trusted
        return Problem(Flaw.OTHER, str(e) or type(e).__name__)
    return None


def _service_id(host: str) -> DNS_ID | IPAddress_ID:
    try:
        ip_address(host)
    except ValueError:
        return DNS_ID(host)
    return IPAddress_ID(host)


def _chain_problem(certificate: x509.Certificate, error: int) -> Problem:
    if error == _EXPIRED:
        return Problem(Flaw.EXPIRED, _day(certificate.not_valid_after_utc))
    if error == _NOT_YET_VALID:
        return Problem(Flaw.NOT_YET_VALID, _day(certificate.not_valid_before_utc))
    if error in _UNTRUSTED:
        return Problem(Flaw.UNTRUSTED, _printable(certificate.issuer.rfc4514_string()) or "-")
    return Problem(Flaw.OTHER, f"OpenSSL's error {error}")


def _host_problem(certificate: x509.Certificate) -> Problem:
    names = host_names(certificate)
    return Problem(Flaw.OTHER_HOST, ", ".join(names)) if names else Problem(Flaw.NO_HOST, "")


def host_names(certificate: x509.Certificate) -> list[str]:
    """The hosts and addresses that the certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    found: Sequence[object] = [*names.get_values_for_type(x509.DNSName), *names.get_values_for_type(x509.IPAddress)]
    return [_printable(str(name)) for name in found]


def _printable(text: str) -> str:
    """The text without control characters: a stranger's certificate must not write to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")


@implementer(IOpenSSLClientConnectionCreator)
class ClientTls:
    """TLS 1.2 or newer to ``host``. Its certificate must be from one of the ``authorities`` (None: those of this
    machine), as OpenSSL checks, and be for this host, as service_identity checks.

    Twisted's own client checks the same, but its errors say neither dates nor names. Here the protocol above gets the
    problem, if it is an ICertificateListener. Raises ValueError for what cannot be the name of a host.
    """

    def __init__(
        self, host: str, authorities: Authorities | None = None, certificate: PrivateCertificate | None = None
    ) -> None:
        self._name = _service_id(host)
        own = {}
        if certificate is not None:
            own = {"privateKey": certificate.privateKey.original, "certificate": certificate.original}
        root = platformTrust() if authorities is None else authorities.root
        self._context = CertificateOptions(trustRoot=root, **own).getContext()

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """One connection."""

        def verify(_: SSL.Connection, certificate: X509, error: int, depth: int, ok: int) -> bool:
            problem = _check(self._name, certificate, error, depth, ok)
            if problem is None:
                return True
            listener = ICertificateListener(protocol.wrappedProtocol, None)
            if listener is not None:
                listener.certificate_refused(problem)
            return False

        connection = SSL.Connection(self._context, None)
        # RFC 6066 allows names only, no addresses
        if isinstance(self._name, DNS_ID):
            connection.set_tlsext_host_name(self._name.hostname)
        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection
