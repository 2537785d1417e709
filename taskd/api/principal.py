"""Who sends a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Principal:
    """Immutable: an action that changes who the client is returns a new one, and the transport installs it.

    ``user_id`` is 0 and ``username`` empty for a client that is not logged in. ``token`` is the session's.
    ``address`` is where the client is, for logs.
    """

    user_id: int = 0
    username: str = ""
    token: str | None = None
    address: str | None = None
