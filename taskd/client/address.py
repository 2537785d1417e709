"""Where the server is: ``HOST:PORT``, or any client endpoint string of Twisted."""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint

from taskd.client.connection_errors import os_reason
from taskd.client.errors import BadAddress

DEFAULT_PORT = 5000
DEFAULT_SERVER = f"127.0.0.1:{DEFAULT_PORT}"

_V6 = re.compile(r"\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\](?::(\d{1,5}))?")
_HOST = re.compile(r"([^\s:/\[\]]+)(?::(\d{1,5}))?")
_V4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")


def normalized(server: str) -> str:
    """The address with its port; the session is stored under this name. Raises BadAddress."""
    server = server.strip()
    for pattern, shape in ((_V6, "[{}]:{}"), (_HOST, "{}:{}")):
        found = pattern.fullmatch(server)
        if found:
            port = int(found[2] or DEFAULT_PORT)
            if not 1 <= port <= 65535:
                raise BadAddress("bad_port", server=server)
            return shape.format(found[1].lower(), port)
    if ":" not in server:
        raise BadAddress("bad_server", server=server)
    return server


def is_plain(server: str) -> bool:
    """Whether a connection to this normalized address certainly does not use TLS."""
    return bool(_V6.fullmatch(server) or _HOST.fullmatch(server)) or server.startswith(("tcp:", "unix:"))


def is_unix(server: str) -> bool:
    """Whether this normalized address is a UNIX socket."""
    return server.startswith("unix:")


def endpoint(reactor: Any, server: str, cafile: str | None = None) -> IStreamClientEndpoint:
    """The endpoint for a normalized address. ``cafile`` is a file or folder with the authorities that a TLS connection
    trusts; None: those of the machine. Raises BadAddress."""
    from twisted.internet import endpoints  # imports OpenSSL, which a program may want to avoid first

    # A numeric address needs neither a resolver nor its thread
    if found := _V6.fullmatch(server):
        return endpoints.TCP6ClientEndpoint(reactor, found[1], int(found[2]))
    if found := _HOST.fullmatch(server):
        if _V4.fullmatch(found[1]):
            return endpoints.TCP4ClientEndpoint(reactor, found[1], int(found[2]))
        return endpoints.HostnameEndpoint(reactor, found[1], int(found[2]))
    if server.startswith("tls:"):
        from taskd.client.tls import tls_endpoint

        return tls_endpoint(reactor, server, cafile)
    if server.startswith("ssl:"):  # Twisted checks neither the authority nor the host of such an endpoint
        raise BadAddress("bad_server", server=server)
    try:
        return endpoints.clientFromString(reactor, server)
    except TypeError:  # an argument is missing or unknown; the text names only a method of Twisted
        raise BadAddress("bad_server", server=server) from None
    except Exception as e:  # each kind of endpoint raises different errors for a bad string or a missing file
        raise BadAddress("bad_endpoint", server=server, why=os_reason(e)) from None
