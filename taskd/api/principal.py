"""Who sends a request."""

from __future__ import annotations

from dataclasses import dataclass

from taskd.model.addresses import is_loopback
from taskd.model.errors import Forbidden, TotpRequired
from taskd.model.users import Role


@dataclass(frozen=True)
class Principal:
    """Immutable: an action that changes who the client is returns a new one, and the transport installs it.

    ``user_id`` is 0 and ``username`` empty for a client that is not logged in. ``session`` is the hash of its session's
    token, or of its API token, which allows only its ``scopes`` (None: everything). ``address`` is where the client is,
    None for a connection that has no address, such as a UNIX socket. ``private``: nobody on a network can read what it
    sends. ``uid`` is the user of this machine whose process has connected, as the kernel says; None if that is not
    known, as on every connection but a UNIX socket. ``totp``: the account has a second factor. ``lacks_totp``: the
    settings want one of this admin, and its session has not shown one, so it may only do what a user may.
    """

    user_id: int = 0
    username: str = ""
    address: str | None = None
    role: Role = Role.USER
    session: bytes | None = None
    scopes: tuple[str, ...] | None = None
    private: bool = True
    uid: int | None = None
    totp: bool = False
    lacks_totp: bool = False

    @property
    def admin(self) -> bool:
        """Whether the client may do everything."""
        return self.role is Role.ADMIN and not self.lacks_totp

    @property
    def operator(self) -> bool:
        """Whether the client sees the tasks of all users."""
        return self.role is not Role.USER and not self.lacks_totp

    def role_refused(self, message: str, field: str | None = None) -> Forbidden:
        """The error for what needs a role that the client has not: with this message, unless a second factor would
        give the client its role."""
        if not self.lacks_totp:
            return Forbidden(message, field=field)
        if self.totp:
            return TotpRequired("admins need a second factor here: log in again with the code of your authenticator")
        return TotpRequired(
            "admins need a second factor here: set one up with totp_begin and totp_confirm (taskclient totp on)"
        )

    @property
    def local(self) -> bool:
        """Whether the client is on this machine: its address is a loopback address, or it has none."""
        return self.address is None or is_loopback(self.address)

    def logged_out(self) -> Principal:
        """The same client without a login."""
        return Principal(address=self.address, private=self.private, uid=self.uid)
