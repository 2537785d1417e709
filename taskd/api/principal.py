"""Who sends a request."""

from __future__ import annotations

from dataclasses import dataclass

from taskd.model.errors import AuthRequired
from taskd.model.users import User


@dataclass(frozen=True)
class Principal:
    """Immutable: an action that changes who the client is returns a new one, and the transport installs it.

    ``user`` and ``token`` are None for a client that is not logged in. ``address`` is where the client is, for logs.
    """

    user: User | None = None
    token: str | None = None
    address: str | None = None

    @property
    def user_id(self) -> int:
        """The id of the logged-in user. Raises AuthRequired."""
        return self.logged_in().id

    def logged_in(self) -> User:
        """The logged-in user. Raises AuthRequired."""
        if self.user is None:
            raise AuthRequired("log in first")
        return self.user
