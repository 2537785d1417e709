"""Whether a user may create more: the quotas, as far as this server knows how much of them is used.

Nothing is read from the store on the path of each task. The server keeps what the store said about a user, and adds
what it has let in since then. It asks again in the background: after FRESH seconds, or after RECENT seconds if it has
let in more than its SHARE of what was left, so that servers that know nothing of each other do not exceed a quota
together. It refuses nobody by an answer that is older than RECENT. So a quota may be exceeded by what servers let in
within about a second.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.batching import Batcher
from taskd.model.errors import QuotaExceeded, Unavailable
from taskd.model.quotas import MIB, Limits, Quota, text_bytes
from taskd.model.tasks import NewTask
from taskd.ports.quotas import HOURS, Usage
from taskd.ports.store import IStore
from taskd.usage_log import UsageLog

T = TypeVar("T")

FRESH = 10.0
"""Seconds after which the store is asked again about a user who creates tasks."""

RECENT = 1.0
"""Seconds for which a refusal holds, and the least between two questions about a user who is let in."""

SHARE = 16
"""A server lets in one part in so many of what was left before it asks again: as many servers may do so at once."""

FORGOTTEN = 60.0
"""Seconds without a question after which a user is forgotten."""

MOST_USERS = 10_000
"""Users that are known at a time."""

MOST_READ = 200
"""Users in one statement."""

COUNTED = 100_001
"""Open tasks that are counted of a user without a limit, for whoever wants to see how many there are."""


class _Known:
    """A user: what the store has said (``usage``, None until its first answer), and what was let in that this answer
    does not have: ``opened`` and ``created`` tasks, ``size`` bytes. ``stored`` is how much of these three is in the
    store by now. ``doubtful``: some of it was stored while the question was under way, so the answer may have it.
    ``asked`` and ``answered`` are by the clock."""

    __slots__ = (
        "answered",
        "asked",
        "created",
        "doubtful",
        "limits",
        "opened",
        "reading",
        "size",
        "stored",
        "usage",
        "user_id",
        "waiting",
    )

    def __init__(self, user_id: int, now: float) -> None:
        self.user_id = user_id
        self.usage: Usage | None = None
        self.limits = Limits()
        self.asked = self.answered = now
        self.opened = self.created = self.size = 0
        self.stored = (0, 0, 0)
        self.doubtful = False
        self.reading = False
        self.waiting: list[Deferred[None]] = []

    def let_in(self, opened: int, created: int, size: int) -> None:
        """So much is let in."""
        self.opened += opened
        self.created += created
        self.size += size

    def remove(self, opened: int, created: int, size: int) -> None:
        """So much of it was not stored, or is in the answer."""
        self.opened = max(0, self.opened - opened)
        self.created = max(0, self.created - created)
        self.size = max(0, self.size - size)

    def left(self) -> Limits:
        """What was left when the store was asked. Only meaningful where there is a limit."""
        assert self.usage is not None
        return Limits(
            self.limits.open - self.usage.open,
            self.limits.daily - self.usage.daily,
            self.limits.bytes - self.usage.bytes,
        )

    def fits(self, opened: int, created: int, size: int) -> bool:
        """Whether so much more is within all limits."""
        limits, left = self.limits, self.left()
        return (
            (not limits.open or not opened or self.opened + opened <= left.open)
            and (not limits.daily or not created or self.created + created <= left.daily)
            and (not limits.bytes or not size or self.size + size <= left.bytes)
        )

    def has_taken_its_share(self) -> bool:
        """Whether more was let in than one answer is good for."""
        limits, left = self.limits, self.left()
        return bool(
            (limits.open and self.opened * SHARE > left.open)
            or (limits.daily and self.created * SHARE > left.daily)
            or (limits.bytes and self.size * SHARE > left.bytes)
        )


class Quotas:
    """``default`` are the limits of users who have none of their own. ``log`` knows what this server has not stored
    yet."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, store: IStore, log: UsageLog, default: Limits) -> None:
        self._clock = clock
        self._store = store
        self._usage_log = log
        self._default = default
        # those that were asked about last are at the end
        self._known: dict[int, _Known] = {}
        self._reads: Batcher[_Known, Usage | None] = Batcher(clock, self._read, max_weight=MOST_READ)

    # -- requests

    def admits(self, tasks: Sequence[NewTask]) -> bool:
        """Whether these tasks of one request may be stored now, as far as is known; then they count from now on, until
        :meth:`settled`. If not, :meth:`check` decides."""
        return self._admits(tasks[0].user_id, len(tasks), len(tasks), _size(tasks))

    async def check(self, tasks: Sequence[NewTask]) -> None:
        """Ask the store if need be. Raises QuotaExceeded, Unavailable; else the tasks count from now on, until
        :meth:`settled`."""
        await self._check(tasks[0].user_id, len(tasks), len(tasks), _size(tasks))

    def settled(self, tasks: Sequence[NewTask], stored: bool) -> None:
        """Tasks that were admitted are stored, or could not be."""
        self._settled(tasks[0].user_id, (len(tasks), len(tasks), _size(tasks)), stored)

    async def reopen(self, user_id: int, work: Callable[[], Awaitable[T]]) -> T:
        """Do ``work``, which makes an ended task of the user an open one. Raises QuotaExceeded, Unavailable, and what
        ``work`` raises."""
        if not self._admits(user_id, 1, 0, 0):
            await self._check(user_id, 1, 0, 0)
        stored = False
        try:
            result = await work()
            stored = True
        finally:
            self._settled(user_id, (1, 0, 0), stored)
        return result

    async def usage(self, user_id: int) -> tuple[Usage, Limits]:
        """What a user has, as the store knows it now, and the limits in force. Raises Unavailable."""
        found = await self._store.read_usage([user_id], self._default.open, COUNTED)
        usage = found.get(user_id) or Usage(Quota())
        return usage, usage.quota.limits(self._default)

    def changed(self, user_id: int) -> None:
        """The limits of this user have changed."""
        known = self._known.get(user_id)
        if known is not None:
            # the next request waits for the answer
            known.usage = None

    # -- what is known

    def _admits(self, user_id: int, opened: int, created: int, size: int) -> bool:
        known = self._known.get(user_id)
        if known is None:
            # The first task need not wait. More than one does: else a user could exceed a quota by a whole request each
            # time that it is forgotten.
            known = self._add(user_id)
            self._ask(known)
            if opened > 1:
                return False
            known.let_in(opened, created, size)
            return True
        if known.usage is None or not known.fits(opened, created, size):
            return False
        known.let_in(opened, created, size)
        age = self._clock.seconds() - known.asked
        if age >= RECENT and not known.reading and (age >= FRESH or known.has_taken_its_share()):
            self._ask(known)
        return True

    async def _check(self, user_id: int, opened: int, created: int, size: int) -> None:
        known = self._known.get(user_id) or self._add(user_id)
        questions = 0
        while True:
            if known.usage is not None:
                if known.fits(opened, created, size):
                    known.let_in(opened, created, size)
                    return
                is_recent = self._clock.seconds() - known.answered < RECENT
                if is_recent and (questions > 1 or not known.doubtful):
                    raise self._refusal(known, opened, created, size)
            questions += 1
            await self._answer(known)

    def _settled(self, user_id: int, amount: tuple[int, int, int], stored: bool) -> None:
        known = self._known.get(user_id)
        if known is None:
            return
        if not stored:
            known.remove(*amount)
            return
        opened, created, size = known.stored
        known.stored = opened + amount[0], created + amount[1], size + amount[2]

    def _refusal(self, known: _Known, opened: int, created: int, size: int) -> QuotaExceeded:
        limits, left = known.limits, known.left()
        retry_after = None
        if limits.open and opened and known.opened + opened > left.open:
            room = left.open - known.opened
            # they are counted up to one more than the limit
            used = f"{limits.open - room:,} of" if room >= 0 else "more than"
            what = f"{used} {limits.open:,} open tasks"
            advice = "wait until some have ended, or cancel some"
        elif limits.daily and created and known.created + created > left.daily:
            room = left.daily - known.created
            retry_after = self._frees_in(known)
            what = f"{limits.daily - room:,} of {limits.daily:,} tasks created within {HOURS} hours"
            advice = f"wait {_words(retry_after)} until the first of them stop counting"
        else:
            room = 0
            used_mib = (limits.bytes - left.bytes + known.size) / MIB
            what = f"{used_mib:,.1f} of {limits.bytes / MIB:,.1f} MiB of payloads, results and logs"
            advice = "wait until old tasks are deleted, or ask an admin for more"
        field = None
        if opened > 1:
            what += f", and {opened:,} tasks more in this request"
            if room > 0:
                field = "tasks"
                advice += ", or send fewer tasks"
        return QuotaExceeded(f"{what}: {advice}", field=field, retry_after=retry_after)

    def _frees_in(self, known: _Known) -> float:
        """Seconds until the oldest hour leaves."""
        assert known.usage is not None
        # what has just been created is not in the store yet: it leaves with the present hour
        found = known.usage.frees_in if known.usage.frees_in is not None else 86_400.0
        return float(max(1, math.ceil(found - (self._clock.seconds() - known.answered))))

    def _add(self, user_id: int) -> _Known:
        now = self._clock.seconds()
        self._forget(now)
        if len(self._known) >= MOST_USERS:
            del self._known[next(iter(self._known))]
        known = self._known[user_id] = _Known(user_id, now)
        return known

    def _forget(self, now: float) -> None:
        while self._known:
            oldest = next(iter(self._known.values()))
            if oldest.reading or now - oldest.asked < FORGOTTEN:
                return
            del self._known[oldest.user_id]

    # -- the store

    def _ask(self, known: _Known) -> None:
        known.reading = True
        # those who have not been asked about for longest come first
        if self._known.get(known.user_id) is known:
            self._known[known.user_id] = self._known.pop(known.user_id)
        self._reads.submit(known).addCallbacks(
            self._answered, self._not_answered, callbackArgs=(known,), errbackArgs=(known,)
        )

    def _answer(self, known: _Known) -> Deferred[None]:
        """Fires with the next answer about this user. Fails with what the question failed with."""
        done: Deferred[None] = Deferred()
        known.waiting.append(done)
        if not known.reading:
            self._ask(known)
        return done

    async def _read(self, asked: list[_Known]) -> Sequence[Usage | None]:
        now = self._clock.seconds()
        before = []
        for known in asked:
            known.asked = now
            # the store has the open tasks already, and the other counts when the log has added them
            tasks, size = self._usage_log.gathered(known.user_id)
            before.append((known.stored, tasks, size))
        found = await self._store.read_usage([known.user_id for known in asked], self._default.open)
        for known, (stored, tasks, size) in zip(asked, before, strict=True):
            known.doubtful = known.stored != stored
            known.remove(stored[0], stored[1] - tasks, stored[2] - size)
            known.stored = (
                known.stored[0] - stored[0],
                known.stored[1] - stored[1] + tasks,
                known.stored[2] - stored[2] + size,
            )
        return [found.get(known.user_id) for known in asked]

    def _answered(self, usage: Usage | None, known: _Known) -> None:
        # a user who was deleted meanwhile has nothing, and no session
        known.usage = usage = usage or Usage(Quota())
        known.limits = usage.quota.limits(self._default)
        known.answered = self._clock.seconds()
        known.reading = False
        waiting, known.waiting = known.waiting, []
        for done in waiting:
            done.callback(None)

    def _not_answered(self, failure: Failure, known: _Known) -> None:
        known.reading = False
        if known.usage is None and self._known.get(known.user_id) is known:
            del self._known[known.user_id]
        waiting, known.waiting = known.waiting, []
        if not waiting and not failure.check(Unavailable):
            self._log.failure("the use of user {id} could not be read", failure, id=known.user_id)
        for done in waiting:
            done.errback(failure)


def _size(tasks: Sequence[NewTask]) -> int:
    """What new tasks take up, in bytes."""
    return sum([text_bytes(task.payload) for task in tasks])


def _words(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    if minutes >= 120:
        return f"{math.ceil(minutes / 60)} hours"
    return f"{minutes} minute{'s' if minutes > 1 else ''}"
