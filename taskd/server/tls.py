"""TLS of the server: ``ssl:`` endpoints with modern ciphers, whose certificates are read again on SIGHUP."""

from __future__ import annotations

import os
import re
import signal
import stat
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509, PKey
from twisted.internet.endpoints import SSL4ServerEndpoint, serverFromString
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IStreamServerEndpoint
from twisted.internet.ssl import AcceptableCiphers, CertificateOptions, TLSVersion
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from taskd.model.errors import SettingsError
from taskd.tls.files import arguments, certificates

CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
    ":ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
    ":ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
)
"""Those of TLS 1.2 with forward secrecy and authenticated encryption (RFC 9325, section 4.2). Twisted's defaults also
have static RSA and CBC. TLS 1.3 has no others."""

DEFAULT_BACKLOG = 50
DEFAULT_KEY = "server.pem"
"""As in Twisted's own ssl: endpoint."""

_ARGUMENTS = {"privateKey", "certKey", "extraCertChain", "interface", "backlog"}


class Listeners:
    """Makes the endpoints on which a server listens, and reads their certificates again on SIGHUP."""

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._contexts: list[ServerTls] = []
        self._had_terminal = False

    def endpoint(self, reactor: Any, description: str) -> IStreamServerEndpoint:
        """The endpoint for a description in Twisted's syntax, which listens by this reactor. Raises SettingsError, and
        what Twisted raises for a description that it does not understand."""
        if description.partition(":")[0] != "ssl":
            return serverFromString(reactor, description)
        plain, named = arguments(description)
        if unknown := sorted(set(named) - _ARGUMENTS):
            raise SettingsError(
                f"unknown argument {unknown[0]}; an ssl: endpoint has a port and {', '.join(sorted(_ARGUMENTS))}"
            )
        if len(plain) != 1 or not re.fullmatch("[0-9]{1,5}", plain[0]) or int(plain[0]) > 65535:
            raise SettingsError("an ssl: endpoint begins with its port, such as ssl:5001:privateKey=key.pem")
        backlog = named.get("backlog", str(DEFAULT_BACKLOG))
        if not re.fullmatch("[0-9]{1,9}", backlog):
            raise SettingsError(f"backlog must be a whole number, not {backlog!r}")
        key = Path(named.get("privateKey", DEFAULT_KEY))
        chain = Path(named["extraCertChain"]) if "extraCertChain" in named else None
        context = ServerTls(key, Path(named.get("certKey", key)), chain)
        self._contexts.append(context)
        return SSL4ServerEndpoint(reactor, int(plain[0]), context, int(backlog), named.get("interface", ""))

    def reload(self) -> None:
        """Read all certificates again. Open connections go on; new ones get the new certificate. One that cannot be
        used changes nothing."""
        if not self._contexts:
            self._log.info("SIGHUP: there is nothing to read again, because no endpoint uses TLS")
        for context in self._contexts:
            try:
                context.reload()
            except SettingsError as e:
                self._log.error("SIGHUP: the old certificate stays in use: {reason}", reason=str(e))
            else:
                self._log.info("SIGHUP: new connections get the certificate of {path}", path=str(context.certificate))

    def reload_on_hangup(self) -> None:
        """Call :meth:`reload` on SIGHUP from now on. To be called when the reactor runs."""
        if hasattr(signal, "SIGHUP"):
            self._had_terminal = _has_terminal()
            signal.signal(signal.SIGHUP, lambda number, frame: self._reactor.callFromThread(self.hangup))

    def hangup(self) -> None:
        """SIGHUP has arrived. It also tells that the terminal of the server was closed: then the server stops."""
        if self._had_terminal and not _has_terminal():
            self._log.info("SIGHUP: the terminal was closed; stopping")
            self._reactor.stop()
        else:
            self.reload()


def _has_terminal() -> bool:
    try:
        return os.isatty(0)
    except OSError:
        return False


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """TLS with the certificate of these files. Raises SettingsError if they cannot be used.

    ``certificate`` may hold the whole chain, the server's own certificate first; ``chain`` has the rest of it.
    """

    _log = Logger()

    def __init__(self, key: Path, certificate: Path, chain: Path | None = None) -> None:
        self.key = key
        self.certificate = certificate
        self.chain = chain
        self._context, own = self._load()
        if why := _not_valid(own):
            self._log.warn("{path}: {why}; clients will refuse it", path=str(certificate), why=why)

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection with the certificate that was read last."""
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(protocol)  # Twisted's ALPN callback reads it
        return connection

    def reload(self) -> None:
        """Read the files again. Raises SettingsError, and keeps the old certificate, if they cannot be used or the new
        certificate is not valid now."""
        context, own = self._load()
        if why := _not_valid(own):
            raise SettingsError(f"{self.certificate}: {why}")
        self._context = context

    def _load(self) -> tuple[SSL.Context, x509.Certificate]:
        own, *others = _certificates(self.certificate)
        if self.chain is not None:
            others += [each for each in _certificates(self.chain) if each not in (own, *others)]
        key = self._private_key()
        public = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        if key.public_key().public_bytes(*public) != own.public_key().public_bytes(*public):
            raise SettingsError(f"the key in {self.key} does not belong to the certificate in {self.certificate}")
        options = CertificateOptions(
            privateKey=PKey.from_cryptography_key(key),
            certificate=X509.from_cryptography(own),
            extraCertChain=[X509.from_cryptography(each) for each in others],
            acceptableCiphers=AcceptableCiphers.fromOpenSSLCipherString(CIPHERS),
            # not lower than this; Twisted's default is the same today
            insecurelyLowerMinimumTo=TLSVersion.TLSv1_2,
        )
        try:
            context = options.getContext()
        except SSL.Error as e:
            raise SettingsError(f"OpenSSL refuses the certificate in {self.certificate}: {_ssl_reason(e)}") from None
        # a client that renegotiates again and again would cost the server much more than itself
        context.set_options(SSL.OP_NO_RENEGOTIATION)
        return context, own

    def _private_key(self) -> Any:
        try:
            data = self.key.read_bytes()
            exposed = bool(self.key.stat().st_mode & stat.S_IROTH)
        except OSError as e:
            raise SettingsError(f"{self.key}: the key cannot be read: {e.strerror}") from None
        try:
            key = load_pem_private_key(data, password=None)
        except TypeError:
            raise SettingsError(
                f"{self.key}: the key has a passphrase, which a daemon cannot ask for; write it without one, for"
                " example with openssl pkey"
            ) from None
        except Exception:  # not ValueError alone: each kind of key has errors of its own
            raise SettingsError(f"{self.key} has no private key in PEM form") from None
        if exposed:
            self._log.warn(
                "{path}: every user of this machine can read this private key; run: chmod 600 {path}",
                path=str(self.key),
            )
        return key


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return certificates(path)
    except OSError as e:
        raise SettingsError(f"{path}: the certificate cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise SettingsError(str(e)) from None


def _not_valid(certificate: x509.Certificate) -> str | None:
    now = datetime.now(timezone.utc)
    if now > certificate.not_valid_after_utc:
        return f"the certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    if now < certificate.not_valid_before_utc:
        return f"the certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}"
    return None


def _ssl_reason(e: SSL.Error) -> str:
    errors = e.args[0] if e.args else None
    return str(errors[0][-1]) if isinstance(errors, list) and errors else str(e) or type(e).__name__
