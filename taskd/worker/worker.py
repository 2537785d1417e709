"""The worker: deliveries in, claims and outcomes out, in batches.

A delivery is in one of three places: in the backlog until a slot is free, with the store while it is claimed, or
held by a running attempt. It is acked once the outcome is committed, so that a worker that dies leaves everything it
had to be delivered again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from itertools import chain

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.batching import Batcher
from taskd.errors import TaskdError, Unavailable
from taskd.model import State, Task
from taskd.ports import Claim, Delivery, Finished, IBroker, IConsumer, ITaskStore, Outcome
from taskd.wire.changes import changes_of, encode_news
from taskd.worker.runner import Attempt, Runner, Stopped

RENEWALS = 3
"""Renewals in the time of one lease, so that two may be lost."""

ACK_AFTER = 600.0
"""Seconds after which a running task is acked early: RabbitMQ closes a channel whose delivery stays unacked for its
consumer_timeout, 30 minutes by default. From then on the lease alone protects the task."""

AHEAD_FROM = 50
"""Slots from which on as many more deliveries are taken ahead, MAX_AHEAD at most. While some of a worker's tasks are
being claimed and others stored, the next are here already: batches get twice as large. A worker of few slots has long
tasks, and gains nothing by this."""

MAX_AHEAD = 100

GIVE_BACK_AFTER = 1.0
"""Seconds that a delivery may wait here for a slot before other workers get it offered."""

AGAIN_AFTER = 1.0
"""Seconds between attempts to reach a store that is away."""

CLOSE_SECONDS = 5.0
"""What an orderly end may take beyond the grace that tasks get."""


_Turn = tuple[int, int, datetime]
_NEVER: _Turn = (0, 0, datetime.min.replace(tzinfo=timezone.utc))


def _turn(task: Task) -> _Turn:
    """Grows with every claim of a task. The time tells a claim from an earlier one of the same dispatch and attempt,
    which a crash of the database has undone."""
    return task.dispatch, task.attempt, task.started_at or _NEVER[2]


class _Held:
    """A delivery, and what has become of it here.

    ``delivery`` is None once it is settled or void. ``passed`` is the attempt that ended here while this one was being
    claimed: an answer that tells of it comes too late.
    """

    __slots__ = ("attempt", "claim", "consumer", "delivery", "finishing", "passed", "since", "suspect")

    def __init__(self, delivery: Delivery, consumer: IConsumer, since: float) -> None:
        self.claim = Claim(delivery.task_id, delivery.dispatch, delivery.redelivered)
        self.delivery: Delivery | None = delivery
        self.consumer = consumer
        self.since = since
        self.attempt: Attempt | None = None
        self.finishing = False
        self.passed = _NEVER
        self.suspect = False


class _Ended:
    """An outcome on its way to the store; ``again`` when an earlier try may have been committed."""

    __slots__ = ("again", "held", "outcome")

    def __init__(self, held: _Held, outcome: Outcome) -> None:
        self.held = held
        self.outcome = outcome
        self.again = False


class Worker:
    """Runs up to ``slots`` tasks of ``queues`` at a time; those whose outcome is being stored do not count.

    ``name`` is unique to this life of the process: it fences. ``lease`` is in seconds.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: ITaskStore,
        broker: IBroker,
        runner: Runner,
        queues: Sequence[str],
        slots: int,
        lease: float,
        name: str,
    ) -> None:
        self._clock = clock
        self._store = store
        self._broker = broker
        self._runner = runner
        self._queues = queues
        self._slots = slots
        self._lease = lease
        self._name = name
        self._consumers: list[IConsumer] = []
        self._backlog: deque[_Held] = deque()
        self._suspects: deque[_Held] = deque()
        self._claiming = 0
        self._asked: dict[int, list[_Held]] = {}
        self._running: dict[int, _Held] = {}
        self._finishing = 0
        self._draining = False
        self._over = False
        self._idle: Deferred[None] | None = None
        self._claims: Batcher[_Held, Task | None] = Batcher(clock, self._claim)
        self._ends: Batcher[_Ended, Finished | None] = Batcher(clock, self._finish)
        self._renewal = LoopingCall(lambda: Deferred.fromCoroutine(self._renew()))
        self._tidying = LoopingCall(self._give_back_old)
        self._renewal.clock = self._tidying.clock = clock

    @property
    def consuming(self) -> bool:
        """Whether every queue can deliver now."""
        return bool(self._consumers) and all(consumer.ready for consumer in self._consumers)

    @property
    def busy(self) -> int:
        """How many tasks it has, the ones that are being claimed included."""
        return self._claiming + len(self._running)

    # -- start and end -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to take tasks."""
        self._consumers = [self._consume(queue) for queue in self._queues]
        self._renewal.start(self._lease / RENEWALS, now=False)
        self._tidying.start(GIVE_BACK_AFTER, now=False)

    async def drain(self, grace: float) -> None:
        """Take nothing more, give running tasks ``grace`` seconds, and give the rest back unspent. Never fails."""
        self._draining = True
        for consumer in self._consumers:
            await consumer.stop()
        for waiting in (self._backlog, self._suspects):
            self._give_back(waiting)
            waiting.clear()
        if self.busy:
            self._log.info("{count} tasks get {grace:g} seconds to end", count=self.busy, grace=grace)
            await self._until_idle(grace)
        self._over = True
        await self._release([(h, h.attempt.task) for h in self._running.values() if h.attempt and not h.finishing])
        await self._until_idle(CLOSE_SECONDS)
        if self.busy:
            self._log.warn("{count} tasks could not be settled: their leases will expire", count=self.busy)
        for loop in (self._renewal, self._tidying):
            if loop.running:
                loop.stop()

    def hurry(self) -> None:
        """Wait no longer for what :meth:`drain` is waiting for."""
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.callback(None)

    async def _until_idle(self, seconds: float) -> None:
        if not self.busy:
            return
        idle = self._idle = Deferred()
        timer = self._clock.callLater(seconds, self.hurry)
        await idle
        if timer.active():
            timer.cancel()

    async def _release(self, left: Sequence[tuple[_Held, Task]]) -> None:
        if not left:
            return
        for held, _ in left:
            if held.attempt is not None:
                held.attempt.stop()
        try:
            released = await self._store.release(self._name, [Claim(t.id, t.dispatch, False) for _, t in left])
        except TaskdError as e:
            text = "{count} tasks could not be given back, their leases will expire: {why}"
            self._log.warn(text, count=len(left), why=e.message)
            return
        self._log.info("{count} tasks given back", count=len(released))
        self._announce(released)
        self._ack(held for held, _ in left)

    # -- from delivery to claim ----------------------------------------------------------------------

    def _consume(self, queue: str) -> IConsumer:
        def taken(deliveries: Sequence[Delivery]) -> None:
            self._taken(consumer, deliveries)

        def lost() -> None:
            self._lost(consumer)

        ahead = min(self._slots, MAX_AHEAD) if self._slots >= AHEAD_FROM else 0
        consumer: IConsumer = self._broker.consume(queue, self._slots + ahead, taken, lost)
        return consumer

    def _taken(self, consumer: IConsumer, deliveries: Sequence[Delivery]) -> None:
        if self._draining:
            consumer.requeue(deliveries)
            return
        now = self._clock.seconds()
        self._backlog.extend([_Held(delivery, consumer, now) for delivery in deliveries])
        self._fill()

    def _lost(self, consumer: IConsumer) -> None:
        """The channel is gone: its deliveries will come again, here or elsewhere."""
        self._backlog = deque(held for held in self._backlog if held.consumer is not consumer)
        self._suspects = deque(held for held in self._suspects if held.consumer is not consumer)
        for held in chain(self._running.values(), *self._asked.values()):
            if held.consumer is consumer:
                held.delivery = None

    def _fill(self) -> None:
        backlog = self._backlog
        while backlog and self.busy - self._finishing < self._slots and not self._draining:
            held = backlog.popleft()
            self._claiming += 1
            self._asked.setdefault(held.claim.task_id, []).append(held)
            self._claims.submit(held).addCallbacks(
                self._claimed, self._not_claimed, callbackArgs=(held,), errbackArgs=(held,)
            )

    async def _claim(self, batch: list[_Held]) -> Sequence[Task | None]:
        claimed = await self._store.claim(self._name, self._lease, [held.claim for held in batch])
        found = {(task.id, task.dispatch): task for task in claimed}
        self._announce(claimed)
        # None for what is late, cancelled meanwhile, or run elsewhere
        tasks = [found.get((held.claim.task_id, held.claim.dispatch)) for held in batch]
        if nothing := [held for held, task in zip(batch, tasks, strict=True) if task is None]:
            await self._look_at(nothing)
        return tasks

    async def _look_at(self, nothing: Sequence[_Held]) -> None:
        """What came of messages that claimed nothing."""
        found = {task.id: task for task in await self._store.find_tasks([held.claim.task_id for held in nothing])}
        # whoever had it may have died between the commit of its outcome and the news of it
        again = [held.claim.task_id for held in nothing if held.claim.redelivered]
        self._announce([found[n] for n in dict.fromkeys(again) if n in found])
        for held in nothing:
            held.suspect = _is_suspect(found.get(held.claim.task_id), held.claim)
        self._ack(held for held in nothing if not held.suspect)

    def _next_suspect(self) -> None:
        """Claim the next last attempt, if none runs here. Should it kill this worker, it kills no other one with it."""
        held_here = chain(self._running.values(), self._backlog, *self._asked.values())
        if self._draining or any(held.claim.alone for held in held_here):
            return
        held = self._suspects.popleft()
        held.claim = held.claim._replace(alone=True)
        self._backlog.appendleft(held)
        self._fill()

    def _claimed(self, task: Task | None, held: _Held) -> None:
        if task is not None and self._over:
            released = Deferred.fromCoroutine(self._release([(held, task)]))
            released.addBoth(lambda _: self._claim_ended(held))
            return
        if task is not None and not self._had_before(task, held):
            self._run(held, task)
        elif task is None and held.suspect and held.delivery is not None:
            self._suspects.append(held)
        self._claim_ended(held)

    def _had_before(self, task: Task, held: _Held) -> bool:
        """Whether the attempt is not a new one: the message came twice, or the answer comes after a later one's."""
        claimed = _turn(task)
        before = self._running.get(task.id)
        if before is not None and before.attempt is not None:
            # of the same numbers: what runs here stands for both
            if _turn(before.attempt.task)[:2] < claimed[:2]:
                self._keep_one(held, before)
                before.attempt.stop()
                return False
            self._keep_one(before, held)
            return True
        if held.passed < claimed:
            return False
        self._ack([held])
        return True

    def _keep_one(self, stays: _Held, goes: _Held) -> None:
        """Of two deliveries of a task one is acked now. The attempt that stays acks the other in the end, be it that
        its own is void and this one is the redelivery."""
        if stays.delivery is None and stays.claim.dispatch == goes.claim.dispatch:
            stays.delivery, stays.consumer, goes.delivery = goes.delivery, goes.consumer, None
        self._ack([goes])

    def _claim_ended(self, held: _Held) -> None:
        self._not_asked(held)
        self._claiming -= 1
        self._slot_free()

    def _not_claimed(self, failure: Failure, held: _Held) -> None:
        if not failure.check(Unavailable):
            self._log.failure("a claim failed", failure)
        if self._draining:
            self._give_back([held])
            self._not_asked(held)
        else:
            # Not given back: every other worker has the same store. If the claim was committed unseen, the next
            # one finds the task in our hands.
            self._clock.callLater(AGAIN_AFTER, self._again, held)
        self._claiming -= 1
        self._slot_free()

    def _again(self, held: _Held) -> None:
        self._not_asked(held)
        if held.delivery is None:
            return
        if self._draining:
            self._give_back([held])
            return
        self._backlog.append(held)
        self._fill()

    def _not_asked(self, held: _Held) -> None:
        asked = self._asked[held.claim.task_id]
        asked.remove(held)
        if not asked:
            del self._asked[held.claim.task_id]

    # -- from claim to outcome -----------------------------------------------------------------------

    def _run(self, held: _Held, task: Task) -> None:
        held.since = self._clock.seconds()
        if (before := self._running.get(task.id)) is not None:
            self._finishing -= before.finishing
        self._running[task.id] = held
        held.attempt = self._runner.run(task)
        held.attempt.done.addCallbacks(self._ended, self._not_ended, callbackArgs=(held,), errbackArgs=(held,))

    def _ended(self, outcome: Outcome, held: _Held) -> None:
        held.finishing = True
        self._finishing += self._running.get(outcome.task_id) is held
        self._submit(_Ended(held, outcome))
        if self._backlog:
            self._fill()

    def _not_ended(self, failure: Failure, held: _Held) -> None:
        if not failure.check(Stopped):
            self._log.failure("an attempt ended without an outcome", failure)
        self._forget(held)

    def _submit(self, ended: _Ended) -> None:
        self._ends.submit(ended).addCallbacks(
            self._finished, self._not_finished, callbackArgs=(ended,), errbackArgs=(ended,)
        )

    async def _finish(self, batch: list[_Ended]) -> Sequence[Finished | None]:
        again = any(ended.again for ended in batch)
        found = dict(await self._store.finish(self._name, [ended.outcome for ended in batch], again))
        fenced = [ended for ended in batch if ended.outcome.task_id not in found]
        if fenced and (back := await self._claim_again([ended.held for ended in fenced])):
            outcomes = [ended.outcome for ended in fenced if ended.held in back]
            found |= await self._store.finish(self._name, outcomes, again)
            if any(held.claim.task_id not in found for held in back):
                raise Unavailable("the database has crashed once more: what it has forgotten is stored again")
        # of two attempts of a task the earlier one is fenced by the later one: the answer is not its
        last: dict[int, tuple[int, int]] = {}
        for ended in batch:
            o = ended.outcome
            last[o.task_id] = max(last.get(o.task_id, (0, 0)), (o.dispatch, o.attempt))
        changed, answers = [], []
        for ended in batch:
            outcome = ended.outcome
            counts = last[outcome.task_id] == (outcome.dispatch, outcome.attempt)
            finished = found.get(outcome.task_id) if counts else None
            answers.append(finished)
            if finished is not None and ended.held.attempt is not None:
                task = ended.held.attempt.task
                task.state, task.result, task.error = outcome.state, outcome.result, outcome.error
                task.version, task.finished_at = finished
                changed.append(task)
        self._announce(changed)
        self._ack([ended.held for ended in batch])
        return answers

    def _finished(self, finished: Finished | None, ended: _Ended) -> None:
        if finished is None:
            text = "task {id} attempt {attempt} was fenced: its outcome does not count"
            self._log.info(text, id=ended.outcome.task_id, attempt=ended.outcome.attempt)
        self._forget(ended.held)

    def _not_finished(self, failure: Failure, ended: _Ended) -> None:
        error = failure.value
        if isinstance(error, Unavailable):
            ended.again = True
            self._clock.callLater(AGAIN_AFTER, self._submit, ended)
            return
        task_id, attempt, dispatch = ended.outcome.task_id, ended.outcome.attempt, ended.outcome.dispatch
        if isinstance(error, TaskdError) and ended.outcome.state is State.COMPLETED:
            why = f"the result cannot be stored: {error.message}"
            ended.outcome = Outcome(task_id, dispatch, attempt, State.FAILED, error=why)
            self._submit(ended)
            return
        self._log.failure("the outcome of task {id} cannot be stored, its lease will expire", failure, id=task_id)
        self._forget(ended.held)

    def _forget(self, held: _Held) -> None:
        assert held.attempt is not None
        task = held.attempt.task
        if self._running.get(task.id) is held:
            del self._running[task.id]
            self._finishing -= held.finishing
        for other in self._asked.get(task.id, ()):
            other.passed = max(other.passed, _turn(task))
        self._slot_free()

    def _slot_free(self) -> None:
        if self._draining:
            if not self.busy:
                self.hurry()
            return
        if self._suspects:
            self._next_suspect()
        if self._backlog:
            self._fill()

    def _give_back_old(self) -> None:
        latest = self._clock.seconds() - GIVE_BACK_AFTER
        for waiting in (self._backlog, self._suspects):
            old = [held for held in waiting if held.since <= latest]
            for held in old:
                waiting.remove(held)
            self._give_back(old)

    # -- leases ------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        now = self._clock.seconds()
        running = dict(self._running)
        self._ack([held for held in running.values() if now - held.since >= ACK_AFTER])
        if not running:
            return
        try:
            mine = await self._store.renew(self._name, self._lease, list(running))
        except Unavailable as e:
            self._log.warn("leases were not renewed: {why}", why=e.message)
            return
        except Exception:
            self._log.failure("leases were not renewed")
            return
        try:
            back = await self._claim_again([held for task_id, held in running.items() if task_id not in mine])
        except Unavailable:
            return
        for task_id, held in running.items():
            if task_id in mine or held in back or held.finishing or self._running.get(task_id) is not held:
                continue
            if held.attempt is not None:
                self._log.info("task {id} is not ours any more: stopped", id=task_id)
                held.attempt.stop()
                self._ack([held])

    # -- what they share ---------------------------------------------------------------------------

    async def _claim_again(self, fenced: Sequence[_Held]) -> set[_Held]:
        """Those that are ours after all: a database that crashed may have forgotten a claim, which does not wait for
        the disk, and then has the task queued as it was before. Raises Unavailable."""
        if not fenced:
            return set()
        claims = [held.claim._replace(redelivered=False, alone=True) for held in fenced]
        claimed = await self._store.claim(self._name, self._lease, claims)
        ours = {(task.id, task.dispatch, task.attempt) for task in claimed}
        here = [held.attempt.task for held in self._running.values() if held.attempt is not None]
        known = {(task.id, task.dispatch, task.attempt) for task in here}
        # forgotten together with an attempt before it, so that it got another number: begun anew, by whomever
        anew = [t for t in claimed if (t.id, t.dispatch, t.attempt) not in known and t.id not in self._asked]
        if anew:
            self._announce(await self._store.release(self._name, [Claim(t.id, t.dispatch, False) for t in anew]))
        tasks = ((held, held.attempt.task) for held in fenced if held.attempt is not None)
        return {held for held, task in tasks if (task.id, task.dispatch, task.attempt) in ours}

    def _ack(self, helds: Iterable[_Held]) -> None:
        for consumer, deliveries in _by_consumer(helds):
            consumer.ack(deliveries)

    def _give_back(self, helds: Iterable[_Held]) -> None:
        for consumer, deliveries in _by_consumer(helds):
            consumer.requeue(deliveries)

    def _announce(self, tasks: Iterable[Task]) -> None:
        now = datetime.fromtimestamp(self._clock.seconds(), timezone.utc)
        if changes := changes_of(tasks, now):
            self._broker.announce(encode_news(self._name, changes))


def _is_suspect(task: Task | None, claim: Claim) -> bool:
    """Whether this would be the last attempt of a task whose others ended with their workers."""
    if task is None or claim.alone or task.dispatch != claim.dispatch:
        return False
    there = task.state is State.QUEUED or (task.state is State.RUNNING and claim.redelivered)
    return there and 0 < task.attempt == task.max_attempts - 1


def _by_consumer(helds: Iterable[_Held]) -> list[tuple[IConsumer, list[Delivery]]]:
    """Their deliveries, which are from now on no longer theirs."""
    found: dict[IConsumer, list[Delivery]] = {}
    for held in helds:
        if held.delivery is not None:
            found.setdefault(held.consumer, []).append(held.delivery)
            held.delivery = None
    return list(found.items())
