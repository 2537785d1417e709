"""Addresses of the internet protocol, as transports write them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any


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
