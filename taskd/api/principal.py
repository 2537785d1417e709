"""Who sends a request."""

from __future__ import annotations

from dataclasses import dataclass

from taskd.model.addresses import is_loopback
from taskd.model.users import Role


@dataclass(frozen=True)
class Principal:
    """Immutable: an action that changes who the client is returns a new one, and the transport installs it.

    ``user_id`` is 0 and ``username`` empty for a client that is not logged in. ``session`` is the hash of its session's
    token, or of its API token, which allows only its ``scopes`` (None: everything). ``address`` is where the client is,
    None for a connection that has no address, such as a UNIX socket. ``private``: nobody on a network can read what it
    sends. ``uid`` is the user of this machine whose process has connected, as the kernel says; None if that is not
    known, as on every connection but a UNIX socket.
    """

    user_id: int = 0
    username: str = ""
    address: str | None = None
    role: Role = Role.USER
    session: bytes | None = None
    scopes: tuple[str, ...] | None = None
    private: bool = True
    uid: int | None = None

    @property
    def admin(self) -> bool:
        """Whether the client may do everything."""
        return self.role is Role.ADMIN

    @property
    def operator(self) -> bool:
        """Whether the client sees the tasks of all users."""
        return self.role is not Role.USER

    @property
    def local(self) -> bool:
        """Whether the client is on this machine: its address is a loopback address, or it has none."""
        return self.address is None or is_loopback(self.address)

    def logged_out(self) -> Principal:
        """The same client without a login."""
        return Principal(address=self.address, private=self.private, uid=self.uid)
