"""Whether what the client sends can be read on its way."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import INegotiated, ISSLTransport

from taskd.model.addresses import is_loopback


def is_private(transport: Any) -> bool:
    """Whether nobody on a network can read this connection: it uses TLS, or leads to this machine. The address that was
    connected to counts, and not the name that has led there."""
    if ISSLTransport.providedBy(transport) or INegotiated.providedBy(transport):
        return True
    peer = transport.getPeer()
    return isinstance(peer, UNIXAddress) or is_loopback(getattr(peer, "host", None))
