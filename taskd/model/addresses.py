"""Addresses of the internet protocol, as transports write them."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

_NAT64 = IPv6Network("64:ff9b::/96")

_KEPT = 4096
"""Addresses whose meaning is kept: it takes longer to read one than to accept a connection, and a flood comes from the
same ones again and again."""


@lru_cache(_KEPT)
def parsed(host: Any) -> IPv4Address | IPv6Address | None:
    """The address without its zone; None for what is no address, such as the name of a host. An IPv4 address that is
    mapped into IPv6 is IPv4."""
    if not isinstance(host, str):
        return None
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_loopback(host: Any) -> bool:
    """Whether what is sent there stays on this machine."""
    address = parsed(host)
    return address is not None and address.is_loopback


@lru_cache(_KEPT)
def network_of(address: str | None) -> str:
    """The source that an address belongs to: an IPv4 address itself, the /64 of an IPv6 address, because a single host
    has all of it. IPv4 inside of IPv6 (mapped, or NAT64's well-known prefix) is IPv4. Empty for a client without an
    address, such as one on a UNIX socket; a text that is no address is its own source."""
    if not address:
        return ""
    found = parsed(address)
    if isinstance(found, IPv6Address):
        if found in _NAT64:
            return str(IPv4Address(int(found) & 0xFFFFFFFF))
        return str(IPv6Network((int(found) >> 64 << 64, 64)))
    return address if found is None else str(found)
