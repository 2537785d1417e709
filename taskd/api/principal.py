"""Who sends a request."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address


@dataclass(frozen=True)
class Principal:
    """Immutable: an action that changes who the client is returns a new one, and the transport installs it.

    ``user_id`` is 0 and ``username`` empty for a client that is not logged in. ``token`` is the session's. An ``admin``
    may do more than others.
    ``address`` is where the client is, None for a connection that has no address, such as a UNIX socket.
    """

    user_id: int = 0
    username: str = ""
    token: str | None = None
    address: str | None = None
    admin: bool = False

    @property
    def local(self) -> bool:
        """Whether the client is on this machine: its address is a loopback address, or it has none."""
        if self.address is None:
            return True
        try:
            address = ip_address(self.address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return address.is_loopback
