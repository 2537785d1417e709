"""How many bytes of replies and events the server holds for clients that do not read."""

from __future__ import annotations

from typing import Protocol

from taskd.server.flood_log import FloodLog


class Holder(Protocol):
    """A connection whose client does not read."""

    @property
    def address(self) -> str | None:
        """Where the client is."""

    def cut(self) -> None:
        """Close the connection now and free what it holds."""


class UnreadBytes:
    """Bounds the unread bytes of one user and of all.

    The bound of one connection is elsewhere: the server takes no more requests from a client that does not read, builds
    no more large replies for it, and ends its watch after a mebibyte of events. What is left is the number of
    connections. When a bound is passed, the connection that holds the most is closed. Bytes count from the moment on at
    which the transport's own buffer of 64 KiB is full.
    """

    def __init__(self, user_limit: int, limit: int, refusals: FloodLog) -> None:
        self._user_limit = user_limit
        self._limit = limit
        self._refusals = refusals
        self._holders: dict[Holder, tuple[int, int]] = {}
        self._users: dict[int, int] = {}
        self.total = 0

    def add(self, holder: Holder, user_id: int, size: int) -> None:
        """This connection of this user (0: not logged in) holds ``size`` bytes more. May cut this or other
        connections."""
        _, before = self._holders.get(holder, (user_id, 0))
        self._holders[holder] = user_id, before + size
        self._users[user_id] = self._users.get(user_id, 0) + size
        self.total += size
        if user_id and self._users[user_id] > self._user_limit:
            self._cut("the user's connections hold too many bytes that nobody reads", user_id)
        elif self.total > self._limit:
            self._cut("all connections hold too many bytes that nobody reads")

    def clear(self, holder: Holder) -> int:
        """The client has read everything, the connection is lost, or the user changes. Returns how many bytes the
        connection held."""
        user_id, size = self._holders.pop(holder, (0, 0))
        if size:
            self.total -= size
            self._users[user_id] -= size
            if not self._users[user_id]:
                del self._users[user_id]
        return size

    def _cut(self, why: str, only: int | None = None) -> None:
        sizes = {holder: size for holder, (user_id, size) in self._holders.items() if only in (None, user_id)}
        greatest = max(sizes, key=sizes.__getitem__)
        self.clear(greatest)
        self._refusals.note(why, greatest.address, f"this one held {sizes[greatest]:,}")
        greatest.cut()
