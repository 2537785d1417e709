"""Whether what a client sends can be read on its way."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Any, TypeAlias

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import INegotiated, ISSLTransport
from twisted.protocols.policies import ProtocolWrapper

from taskd.model.addresses import is_loopback, parsed
from taskd.server.proxy_header import ToldAddress

Network: TypeAlias = IPv4Network | IPv6Network


def is_private(transport: Any, trusted: Sequence[Network] = (), told: ToldAddress | None = None) -> bool:
    """Whether nobody on a network can read this connection, so that it may carry passwords and tokens.

    It is private if it uses TLS, or comes from a proxy in one of the ``trusted`` networks, which uses TLS with its
    clients. Else it must come from this machine. If a PROXY header was read, ``told`` is what it says: then the client
    that it names must be on this machine, because the peer is only the proxy.
    """
    if ISSLTransport.providedBy(transport) or INegotiated.providedBy(transport):
        return True
    sender = transport
    while isinstance(sender, ProtocolWrapper):
        sender = sender.transport
    peer = sender.getPeer()
    host = getattr(peer, "host", None)
    address = parsed(host)
    if address is not None and any(address in network for network in trusted):
        return True
    if told is not None:
        # a header that names no client says nothing about where the bytes come from
        return told.client is not None and is_loopback(str(told.client))
    return isinstance(peer, UNIXAddress) or is_loopback(host)
