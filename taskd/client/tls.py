"""Endpoints of the client that use TLS: ``tls:HOST:PORT``, with the arguments that Twisted documents for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.endpoints import HostnameEndpoint, clientFromString, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import PrivateCertificate

from taskd.client.connection_errors import os_reason
from taskd.client.errors import BadAddress
from taskd.tls.client import ClientTls
from taskd.tls.files import Authorities, arguments

_ARGUMENTS = {"trustRoots", "certificate", "privateKey", "timeout", "bindAddress", "endpoint"}

TIMEOUT_SECONDS = 30


def tls_endpoint(reactor: Any, server: str, cafile: str | None) -> IStreamClientEndpoint:
    """The endpoint for ``tls:HOST:PORT``. ``cafile`` is a file or folder with the authorities to trust; the argument
    ``trustRoots`` of the address is the same, and comes first.

    It checks certificates as Twisted's own endpoint does, but its errors say what is wrong. Raises BadAddress.
    """
    plain, named = arguments(server)
    if len(plain) != 2 or not set(named) <= _ARGUMENTS:
        raise BadAddress("bad_server", server=server)
    host, port = plain
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise BadAddress("bad_port", server=server)
    trusted = named.get("trustRoots") or cafile
    authorities = _authorities(trusted) if trusted else None
    try:
        creator = ClientTls(host, authorities, _own_certificate(named))
        return wrapClientTLS(creator, _below(reactor, host, int(port), named))
    except Exception as e:  # a bad host name, a file that cannot be read, an argument that Twisted refuses
        raise BadAddress("bad_endpoint", server=server, why=os_reason(e)) from None


def _authorities(path: str) -> Authorities:
    try:
        return Authorities(Path(path))
    except FileNotFoundError:
        raise BadAddress("no_cafile", path=path) from None
    except OSError as e:
        raise BadAddress("unreadable_cafile", path=path, why=os_reason(e)) from None
    except ValueError:
        raise BadAddress("empty_cafile", path=path) from None


def _own_certificate(named: dict[str, str]) -> PrivateCertificate | None:
    certificate = named.get("certificate") or named.get("privateKey")
    if not certificate:
        return None
    key = named.get("privateKey") or certificate
    return PrivateCertificate.loadPEM(Path(certificate).read_bytes() + b"\n" + Path(key).read_bytes())


def _below(reactor: Any, host: str, port: int, named: dict[str, str]) -> IStreamClientEndpoint:
    """The endpoint without TLS. With the argument ``endpoint``, the host is only that of the certificate."""
    if "endpoint" in named:
        return clientFromString(reactor, named["endpoint"])
    bind = named.get("bindAddress")
    timeout = int(named.get("timeout", TIMEOUT_SECONDS))
    return HostnameEndpoint(reactor, host, port, timeout, (bind, 0) if bind else None)
