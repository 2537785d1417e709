"""Who may be connected: strangers for a short time and few from one address, users with many connections each.

A *stranger* is a connection that is not logged in.
"""

from __future__ import annotations

from itertools import islice
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from taskd.config import ConnectionLimits
from taskd.model.addresses import network_of
from taskd.model.errors import AuthRequired, RateLimited, TaskdError
from taskd.server.deadlines import Deadlines
from taskd.server.flood_log import FloodLog

SETTLE_SECONDS = 1.0
"""A stranger that is younger does not make room for another one: its first request may be on its way."""

RETRY_SECONDS = 5.0

MAX_LOOKS = 64
"""Strangers to look at for one that asks for nothing."""

FULL = "the server has as many connections as its limit of open files allows"


class Visitor(Protocol):
    """A connection."""

    @property
    def address(self) -> str | None:
        """Where the client is; None for one without an address, such as a UNIX socket."""

    @property
    def busy(self) -> bool:
        """Whether a request waits for its answer."""

    def refuse(self, error: TaskdError) -> None:
        """Send this error as the last line, and close."""


class Admission:
    """Counts the connections of one server."""

    def __init__(self, clock: IReactorTime, limits: ConnectionLimits, refusals: FloodLog) -> None:
        self._clock = clock
        self._limits = limits
        self._refusals = refusals
        # the times at which the strangers of an address have come
        self._strangers: dict[str, dict[Visitor, float]] = {}
        self._users: dict[int, int] = {}
        self._logins: Deadlines[Visitor] = Deadlines(clock, limits.login_seconds, self._late)
        # of those whose login was under way when their time was over
        self._last_logins: Deadlines[Visitor] = Deadlines(clock, limits.login_seconds, self._too_late)

    def enter(self, visitor: Visitor) -> None:
        """A stranger has connected. If the address has too many, the oldest that asks for nothing is closed; if there
        is none, the new one is."""
        place = network_of(visitor.address)
        others = self._strangers.get(place, {})
        if len(others) >= self._limits.strangers:
            settled = self._clock.seconds() - SETTLE_SECONDS
            oldest = next((other for other, since in others.items() if since <= settled and not other.busy), None)
            count = self._limits.strangers
            text = f"{count} connections from this address are not logged in; log in before you open more"
            self._refuse(oldest or visitor, "too many from this address are not logged in", text)
            if oldest is None:
                return
        self.add_stranger(visitor)

    def make_room(self) -> bool:
        """The server has as many connections as it can have: close the stranger that has been here for the longest time
        and asks for nothing. False if there is none."""
        settled = self._clock.seconds() - SETTLE_SECONDS
        for visitor in islice(self._logins, MAX_LOOKS):
            if self._strangers[network_of(visitor.address)][visitor] > settled:
                break
            if not visitor.busy:
                text = "the server has no room for more connections; log in soon after you connect"
                self._refuse(visitor, FULL, text)
                return True
        return False

    def _refuse(self, visitor: Visitor, why: str, text: str) -> None:
        self._forget(visitor)
        self._refusals.note(why, visitor.address)
        visitor.refuse(RateLimited(text, retry_after=RETRY_SECONDS))

    def add_stranger(self, visitor: Visitor) -> None:
        """This connection is not logged in, or not any more. It is accepted in any case."""
        self._strangers.setdefault(network_of(visitor.address), {})[visitor] = self._clock.seconds()
        self._logins.add(visitor)

    def check(self, visitor: Visitor, before: int, user_id: int) -> None:
        """Whether the user of a connection may change. Raises RateLimited when the new user has too many."""
        count = self._users.get(user_id, 0)
        if user_id != before and count >= self._limits.user_connections:
            self._refusals.note("the user has too many connections", visitor.address)
            text = f"this user has {count} connections to this server already; close some of them first"
            raise RateLimited(text, retry_after=RETRY_SECONDS)

    def log_in(self, visitor: Visitor, before: int, user_id: int) -> None:
        """The user of a connection changes; 0 is nobody."""
        if user_id == before:
            return
        self.leave(visitor, before)
        if user_id:
            self._users[user_id] = self._users.get(user_id, 0) + 1
        else:
            self.add_stranger(visitor)

    def leave(self, visitor: Visitor, user_id: int) -> None:
        """The connection of this user, or of a stranger (0), is lost or gets another user."""
        if not user_id:
            self._forget(visitor)
        elif self._users[user_id] > 1:
            self._users[user_id] -= 1
        else:
            del self._users[user_id]

    def _forget(self, visitor: Visitor) -> None:
        self._logins.discard(visitor)
        self._last_logins.discard(visitor)
        place = network_of(visitor.address)
        others = self._strangers.get(place)
        if others is not None:
            others.pop(visitor, None)
            if not others:
                del self._strangers[place]

    def _late(self, visitor: Visitor) -> None:
        if visitor.busy:
            # the login may wait for a hash or for the database
            self._last_logins.add(visitor)
        else:
            self._too_late(visitor)

    def _too_late(self, visitor: Visitor) -> None:
        if visitor.busy:
            # the line of logins may be longer than that; it is bounded itself
            self._last_logins.add(visitor)
            return
        self._forget(visitor)
        self._refusals.note("nobody has logged in in time", visitor.address)
        text = f"no login within {self._limits.login_seconds:g} seconds; connect again, and log in first"
        visitor.refuse(AuthRequired(text))
