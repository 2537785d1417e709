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
from taskd.scheduling.known_usage import KnownUsage
from taskd.usage_log import UsageLog

T = TypeVar("T")

FRESH = 10.0
"""Seconds after which the store is asked again about a user who creates tasks."""

RECENT = 1.0
"""Seconds for which a refusal holds, and the least between two questions about a user who is let in."""

PAUSE = 0.1
"""Seconds between two looks whether it is time to ask."""

MOST_USERS = 10_000
"""Users that are known at a time."""

MOST_READ = 200
"""Users in one statement."""

MOST_COUNTED = 200_000
"""Open tasks that one statement counts, as far as is known before."""

COUNTED = 100_001
"""Open tasks that are counted of a user without a limit, for whoever wants to see how many there are."""


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
        self._known: dict[int, KnownUsage] = {}
        self._reads: Batcher[KnownUsage, Usage | None] = Batcher(
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

    def _ask_again(self, known: KnownUsage) -> None:
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

    def _refusal(self, known: KnownUsage, opened: int, created: int, size: int) -> QuotaExceeded:
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

    def _frees_in(self, known: KnownUsage) -> float:
        """Seconds until the oldest hour leaves."""
        assert known.usage is not None
        # what has just been created is not in the store yet: it leaves with the present hour
        found = known.usage.frees_in if known.usage.frees_in is not None else 86_400.0
        return float(max(1, math.ceil(found - (self._clock.seconds() - known.answered))))

    def _add(self, user_id: int) -> KnownUsage:
        now = self._clock.seconds()
        self._known.pop(user_id, None)
        self._forget(now)
        if len(self._known) >= MOST_USERS:
            del self._known[next(iter(self._known))]
        known = self._known[user_id] = KnownUsage(user_id, now)
        return known

    def _forget(self, now: float) -> None:
        while self._known:
            oldest = next(iter(self._known.values()))
            if not oldest.is_outdated(now):
                return
            del self._known[oldest.user_id]

    # -- the store

    def _ask(self, known: KnownUsage) -> None:
        known.reading = True
        # those who have not been asked about for longest come first
        if self._known.get(known.user_id) is known:
            self._known[known.user_id] = self._known.pop(known.user_id)
        self._submit(known)

    def _submit(self, known: KnownUsage) -> None:
        self._reads.submit(known).addCallbacks(
            self._answered, self._not_answered, callbackArgs=(known,), errbackArgs=(known,)
        )

    def _weigh(self, known: KnownUsage) -> int:
        """How many open tasks the store is expected to count, at least one part of MOST_READ."""
        if known.alone:
            return MOST_COUNTED
        counted = self._default.open if known.usage is None else known.usage.open
        return min(max(counted, MOST_COUNTED // MOST_READ), MOST_COUNTED)

    def _answer(self, known: KnownUsage) -> Deferred[None]:
        """Fires with the next answer about this user. Fails with what the question failed with."""
        done: Deferred[None] = Deferred()
        known.waiting.append(done)
        if not known.reading:
            self._ask(known)
        return done

    async def _read(self, asked: list[KnownUsage]) -> Sequence[Usage | None]:
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

    def _answered(self, usage: Usage | None, known: KnownUsage) -> None:
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

    def _not_answered(self, failure: Failure, known: KnownUsage) -> None:
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
