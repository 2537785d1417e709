"""Networks of clients: what counts as one source of guesses."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network


def network_of(address: str | None) -> str:
    """The address, of IPv6 its first 64 bits, as text; empty for a client without an address. An IPv4 address inside
    IPv6 counts as the IPv4 address."""
    if address is None:
        return ""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ip_network((found, 64), strict=False))
