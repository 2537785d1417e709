"""Whether what a client sends can be read on its way."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, TypeAlias

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import INegotiated, ISSLTransport
from twisted.protocols.policies import ProtocolWrapper

Network: TypeAlias = IPv4Network | IPv6Network


def is_private(transport: Any, trusted: Sequence[Network] = ()) -> bool:
    """Whether nobody on a network can read this connection, so that it may carry passwords and tokens.

    It is private if it uses TLS, is a UNIX socket, comes from this machine, or from a proxy in one of the ``trusted``
    networks, which uses TLS with its clients. An endpoint ``haproxy:`` tells the address of the proxy's client, and
    then that one counts, unless the proxy is trusted. To be called when a request has arrived: in ``connectionMade``
    the proxy has not told it yet.
    """
    if ISSLTransport.providedBy(transport) or INegotiated.providedBy(transport):
        return True
    sender = transport
    while isinstance(sender, ProtocolWrapper):
        sender = sender.transport
    return _is_in(sender.getPeer(), trusted) or _is_local(transport.getPeer())


def _is_local(peer: Any) -> bool:
    if isinstance(peer, UNIXAddress):
        return True
    address = _ip(peer)
    return address is not None and address.is_loopback


def _is_in(peer: Any, networks: Sequence[Network]) -> bool:
    address = _ip(peer)
    return address is not None and any(address in network for network in networks)


def _ip(peer: Any) -> IPv4Address | IPv6Address | None:
    host = getattr(peer, "host", None)
    if not isinstance(host, str):
        return None
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
