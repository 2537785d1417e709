"""What a server knows of how much a user has used of the quotas."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from taskd.model.quotas import Limits
from taskd.ports.quotas import Usage

SHARE = 16
"""A server lets in one part in so many of what was left before it asks again: as many servers may do so at once."""

FORGOTTEN = 60.0
"""Seconds without a question after which a user is forgotten."""

NO_LIMIT = 1 << 62
"""The room where there is no limit."""


class KnownUsage:
    """A user: what the store has said (``usage``, None until its first answer), and how many tasks may still be
    ``open`` and ``daily``, and how many ``bytes`` may still be stored. ``start`` is how much that was when the store
    had answered; the difference is what was let in and is not in the answer. With less than ``low`` left, so much was
    let in that the store is to be asked again. ``stored`` is how much of it is in the store by now. ``doubtful``: some
    of it was stored while the question was under way, so the answer may have it.

    ``asked`` and ``answered`` are by the clock; ``ask_again`` is the earliest time for the next question. ``reading``:
    a question is under way; ``stale``: what it answers may be older than a change of the limits. ``among_others``: the
    last question was about other users too; ``alone``: the next one is not.
    """

    __slots__ = (
        "alone",
        "among_others",
        "answered",
        "ask_again",
        "asked",
        "bytes",
        "daily",
        "doubtful",
        "limits",
        "low",
        "open",
        "reading",
        "stale",
        "start",
        "stored_bytes",
        "stored_daily",
        "stored_open",
        "usage",
        "user_id",
        "waiting",
    )

    def __init__(self, user_id: int, now: float) -> None:
        self.user_id = user_id
        self.usage: Usage | None = None
        self.limits = Limits()
        self.asked = self.answered = self.ask_again = now
        # there is no room for anything until the first answer
        self.start = self.low = Limits(-1, -1, -1)
        self.open, self.daily, self.bytes = self.start
        self.stored_open = self.stored_daily = self.stored_bytes = 0
        self.doubtful = False
        self.reading = self.stale = False
        self.among_others = self.alone = False
        self.waiting: list[Deferred[None]] = []

    def has_room(self, opened: int, created: int, size: int) -> bool:
        """Whether so much more is within all limits. No creation of tasks needs no room for them; whatever it is, it is
        refused while bytes are at their limit: an open task may get a result and a log."""
        return (
            (not opened or opened <= self.open)
            and (not created or created <= self.daily)
            and max(size, 1) <= self.bytes
        )

    def may_have_ended(self, opened: int) -> bool:
        """Whether so many tasks more exceed the limit, but would not if all stored since the answer have ended."""
        return self.open < opened <= self.open + self.stored_open

    def let_in(self, opened: int, created: int, size: int) -> None:
        """So much is let in; with negative numbers, it was not stored, or is in the answer."""
        self.open = min(self.open - opened, self.start.open)
        self.daily = min(self.daily - created, self.start.daily)
        self.bytes = min(self.bytes - size, self.start.bytes)

    def stored(self) -> Limits:
        """How much of what was let in is in the store."""
        return Limits(self.stored_open, self.stored_daily, self.stored_bytes)

    def is_outdated(self, now: float) -> bool:
        """Whether this user is to be forgotten."""
        return now - self.asked >= FORGOTTEN and not self.reading

    def has_taken_its_share(self) -> bool:
        """Whether more was let in than one answer is good for."""
        low = self.low
        return self.open < low.open or self.daily < low.daily or self.bytes < low.bytes

    def forget(self) -> None:
        """What the store has said counts no more, nor does what it is about to say."""
        self.stale = self.reading
        let_in = [start - room for start, room in zip(self.start, (self.open, self.daily, self.bytes), strict=True)]
        self.usage = None
        self.start = self.low = Limits(-1, -1, -1)
        self.open, self.daily, self.bytes = (-1 - of for of in let_in)

    def answer(self, usage: Usage, limits: Limits, now: float) -> None:
        """The store has said this."""
        let_in = [start - room for start, room in zip(self.start, (self.open, self.daily, self.bytes), strict=True)]
        used = usage.open, usage.daily, usage.bytes
        self.usage = usage
        self.limits = limits
        self.answered = now
        self.start = Limits(*(limit - of if limit else NO_LIMIT for limit, of in zip(limits, used, strict=True)))
        self.low = Limits(*(start - start // SHARE for start in self.start))
        self.open, self.daily, self.bytes = (start - of for start, of in zip(self.start, let_in, strict=True))
