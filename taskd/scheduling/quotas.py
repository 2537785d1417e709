"""Whether a user may create more: the quotas, as far as this server knows how much of them is used.

Nothing is read from the store on the path of each task. The server keeps what the store said about a user, and adds
what it has let in since then. It asks again in the background: after FRESH seconds, or after RECENT seconds if it has
let in more than its SHARE of what was left, so that servers that know nothing of each other do not exceed a quota
together. It refuses nobody by an answer that is older than RECENT, nor because of open tasks that were stored since
the answer: they may have ended by now, so it asks again. So a quota may be exceeded by what servers let in
within about a second.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.batching import Batcher
from taskd.model.errors import QuotaExceeded, Unavailable
from taskd.model.quotas import MIB, Limits, Quota
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

PAUSE = 0.1
"""Seconds between two looks whether it is time to ask."""

FORGOTTEN = 60.0
"""Seconds without a question after which a user is forgotten."""

MOST_USERS = 10_000
"""Users that are known at a time."""

MOST_READ = 200
"""Users in one statement."""

MOST_COUNTED = 200_000
"""Open tasks that one statement counts, as far as is known before."""

COUNTED = 100_001
"""Open tasks that are counted of a user without a limit, for whoever wants to see how many there are."""


NO_LIMIT = 1 << 62
"""The room where there is no limit."""


class _Known:
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
        self._reads: Batcher[_Known, Usage | None] = Batcher(
            clock, self._read, max_weight=MOST_COUNTED, weigh=self._weigh
        )

    # -- requests

    def admits(self, tasks: Sequence[NewTask]) -> bool:
        """Whether these tasks of one request may be stored now, as far as is known; then they count from now on, until
        they are :meth:`stored` or :meth:`not_stored`. If not, :meth:`check` decides."""
        first = tasks[0]
        count, size = len(tasks), first.size if len(tasks) == 1 else _size(tasks)
        known = self._known.get(first.user_id)
        if (
            known is None
            or self._clock.seconds() >= known.ask_again
            or count > known.open
            or count > known.daily
            or size > known.bytes
        ):
            return self._admits(first.user_id, count, count, size)
        # the same as let_in: each request comes here
        known.open -= count
        known.daily -= count
        known.bytes -= size
        return True

    async def check(self, tasks: Sequence[NewTask]) -> None:
        """Ask the store if need be. Raises QuotaExceeded, Unavailable; else the tasks count from now on as above."""
        await self._check(tasks[0].user_id, len(tasks), len(tasks), _size(tasks))

    def stored(self, requests: Iterable[Sequence[NewTask]]) -> None:
        """The tasks of these requests are in the store. Its counters get them within a second."""
        sums: dict[int, list[int]] = {}
        for tasks in requests:
            first = tasks[0]
            count, size = len(tasks), first.size if len(tasks) == 1 else _size(tasks)
            of_user = sums.get(first.user_id)
            if of_user is None:
                sums[first.user_id] = [count, size]
            else:
                of_user[0] += count
                of_user[1] += size
        for user_id, (count, size) in sums.items():
            self._usage_log.add(user_id, count, size)
            known = self._known.get(user_id)
            if known is not None:
                known.stored_open += count
                known.stored_daily += count
                known.stored_bytes += size

    def not_stored(self, tasks: Sequence[NewTask]) -> None:
        """Tasks that were admitted could not be stored, or nobody knows."""
        known = self._known.get(tasks[0].user_id)
        if known is not None:
            known.let_in(-len(tasks), -len(tasks), -_size(tasks))

    async def reopen(self, user_id: int, work: Callable[[], Awaitable[T]]) -> T:
        """Do ``work``, which makes an ended task of the user an open one. Raises QuotaExceeded, Unavailable, and what
        ``work`` raises."""
        if not self._admits(user_id, 1, 0, 0):
            await self._check(user_id, 1, 0, 0)
        known = self._known.get(user_id)
        try:
            result = await work()
        except BaseException:
            if known is not None:
                known.let_in(-1, 0, 0)
            raise
        if known is not None:
            known.stored_open += 1
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
            known.forget()

    # -- what is known

    def _admits(self, user_id: int, opened: int, created: int, size: int) -> bool:
        now = self._clock.seconds()
        known = self._known.get(user_id)
        if known is None or known.is_outdated(now):
            # the request waits for the answer: a user could exceed a quota each time that it is forgotten
            self._ask(self._add(user_id))
            return False
        if known.usage is None or not known.has_room(opened, created, size):
            return False
        known.let_in(opened, created, size)
        if now >= known.ask_again:
            self._ask_again(known)
        return True

    def _ask_again(self, known: _Known) -> None:
        """Ask in the background, if it is time."""
        now = self._clock.seconds()
        if not known.reading and (now - known.asked >= FRESH or known.has_taken_its_share()):
            self._ask(known)
        else:
            known.ask_again = now + PAUSE

    async def _check(self, user_id: int, opened: int, created: int, size: int) -> None:
        known = self._known.get(user_id) or self._add(user_id)
        questions = 0
        while True:
            if known.usage is not None:
                if known.has_room(opened, created, size):
                    known.let_in(opened, created, size)
                    return
                is_recent = self._clock.seconds() - known.answered < RECENT
                is_settled = not known.doubtful and not known.may_have_ended(opened)
                if is_recent and (questions > 1 or is_settled):
                    raise self._refusal(known, opened, created, size)
            questions += 1
            await self._answer(known)

    def _refusal(self, known: _Known, opened: int, created: int, size: int) -> QuotaExceeded:
        limits = known.limits
        retry_after = None
        if opened > known.open:
            room = known.open
            # they are counted up to one more than the limit
            used = f"{limits.open - room:,} of" if room >= 0 else "more than"
            what = f"{used} {limits.open:,} open tasks"
            advice = "wait until some have ended, or cancel some"
        elif created and created > known.daily:
            room = known.daily
            retry_after = self._frees_in(known)
            what = f"{limits.daily - room:,} of {limits.daily:,} tasks created within {HOURS} hours"
            advice = f"wait {_words(retry_after)} until the first of them stop counting"
        else:
            room = 0
            used_mib = (limits.bytes - known.bytes) / MIB
            what = f"{used_mib:,.1f} of {limits.bytes / MIB:,.1f} MiB of texts, payloads, results and logs"
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
        self._known.pop(user_id, None)
        self._forget(now)
        if len(self._known) >= MOST_USERS:
            del self._known[next(iter(self._known))]
        known = self._known[user_id] = _Known(user_id, now)
        return known

    def _forget(self, now: float) -> None:
        while self._known:
            oldest = next(iter(self._known.values()))
            if not oldest.is_outdated(now):
                return
            del self._known[oldest.user_id]

    # -- the store

    def _ask(self, known: _Known) -> None:
        known.reading = True
        # those who have not been asked about for longest come first
        if self._known.get(known.user_id) is known:
            self._known[known.user_id] = self._known.pop(known.user_id)
        self._submit(known)

    def _submit(self, known: _Known) -> None:
        self._reads.submit(known).addCallbacks(
            self._answered, self._not_answered, callbackArgs=(known,), errbackArgs=(known,)
        )

    def _weigh(self, known: _Known) -> int:
        """How many open tasks the store is expected to count, at least one part of MOST_READ."""
        if known.alone:
            return MOST_COUNTED
        counted = self._default.open if known.usage is None else known.usage.open
        return min(max(counted, MOST_COUNTED // MOST_READ), MOST_COUNTED)

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
            known.asked, known.ask_again = now, now + RECENT
            known.among_others = len(asked) > 1
            # the store has the open tasks already, and the other counts when the log has added them
            before.append((known.stored(), self._usage_log.gathered(known.user_id)))
        found = await self._store.read_usage([known.user_id for known in asked], self._default.open)
        for known, (stored, (tasks, size)) in zip(asked, before, strict=True):
            known.doubtful = known.stored() != stored
            known.let_in(-stored.open, tasks - stored.daily, size - stored.bytes)
            known.stored_open -= stored.open
            known.stored_daily -= stored.daily - tasks
            known.stored_bytes -= stored.bytes - size
        return [found.get(known.user_id) for known in asked]

    def _answered(self, usage: Usage | None, known: _Known) -> None:
        known.alone = False
        if known.stale:
            known.stale = False
            self._submit(known)
            return
        # a user who was deleted meanwhile has nothing, and no session
        usage = usage or Usage(Quota())
        known.answer(usage, usage.quota.limits(self._default), self._clock.seconds())
        known.reading = False
        waiting, known.waiting = known.waiting, []
        for done in waiting:
            done.callback(None)

    def _not_answered(self, failure: Failure, known: _Known) -> None:
        if known.among_others and self._store.ready and failure.check(Unavailable):
            # perhaps the tasks of one user took too long to count: the others need not fail with it
            known.among_others, known.alone = False, True
            self._submit(known)
            return
        known.reading = known.stale = False
        if known.usage is None and self._known.get(known.user_id) is known:
            del self._known[known.user_id]
        waiting, known.waiting = known.waiting, []
        if not waiting and not failure.check(Unavailable):
            self._log.failure("the use of user {id} could not be read", failure, id=known.user_id)
        for done in waiting:
            done.errback(failure)


def _size(tasks: Sequence[NewTask]) -> int:
    """What new tasks take up, in bytes."""
    return sum([task.size for task in tasks])


def _words(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    if minutes >= 120:
        return f"{math.ceil(minutes / 60)} hours"
    return f"{minutes} minute{'s' if minutes > 1 else ''}"
