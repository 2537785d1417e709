"""The worker: deliveries in, claims and outcomes out, in batches.

A delivery is in one of three places: in the backlog until a slot is free, with the store while it is claimed, or
held by a running attempt. It is acked once the outcome is committed, so that a worker that dies leaves everything it
had to be delivered again.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.batching import Batcher
from taskd.events.publisher import Publisher
from taskd.events.records import decode_cancel_order
from taskd.model.errors import TaskdError, Unavailable
from taskd.model.states import State
from taskd.model.tasks import Route, Task
from taskd.ports.attempts import Claim, Finished, Outcome
from taskd.ports.broker import ORDERS, Delivery, IBroker, IConsumer
from taskd.ports.store import IStore
from taskd.ports.workers import KindInfo, WorkerInfo
from taskd.worker.attempt import AttemptStopped
from taskd.worker.reports import Reports
from taskd.worker.runner import Runner
from taskd.worker.slots import Ended, Held, SlotPool, by_consumer, is_suspect, turn

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

STOP_SECONDS = 7.0
"""What attempts that are stopped may take to end: child processes are asked first, then killed."""

LOG_BYTES = 1024 * 1024

MAX_USERNAMES = 10_000

CLOSE_SECONDS = 5.0
"""What an orderly end may take beyond the grace that tasks get."""


class Worker:
    """Runs tasks of all kinds that ``runner`` can run, from all ``queues``; those whose outcome is being stored take no
    slot.

    ``slots`` says for each of :data:`taskd.ports.handler.ISOLATIONS` how many tasks run at a time. ``lease`` is in
    seconds. ``name`` is unique to this life of the process: it fences. ``log_bytes`` is what of a task's log is kept.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        broker: IBroker,
        runner: Runner,
        queues: Sequence[str],
        slots: Mapping[str, int],
        lease: float,
        name: str,
        log_bytes: int = LOG_BYTES,
    ) -> None:
        self._clock = clock
        self._store = store
        self._broker = broker
        self._publisher = Publisher(clock, broker, name)
        self._runner = runner
        self._queues = queues
        self._pools = {isolation: SlotPool(count) for isolation, count in slots.items()}
        self._lease = lease
        self._name = name
        self._consumers: list[IConsumer] = []
        self._suspects: deque[Held] = deque()
        self._claiming = 0
        self._asked: dict[int, list[Held]] = {}
        self._running: dict[int, Held] = {}
        self._usernames: dict[int, str] = {}
        self._draining = False
        self._over = False
        self._idle: Deferred[None] | None = None
        self._seen = False
        self._claims: Batcher[Held, Task | None] = Batcher(clock, self._claim)
        self._ends: Batcher[Ended, Finished | None] = Batcher(clock, self._finish)
        self._returns: Batcher[Held, None] = Batcher(clock, self._return)
        self._reports = Reports(clock, store, name, log_bytes, self._publisher.publish_outputs, self._not_ours)
        self._renewal = LoopingCall(lambda: Deferred.fromCoroutine(self._renew()))
        self._tidying = LoopingCall(self._give_back_old)
        self._renewal.clock = self._tidying.clock = clock

    @property
    def serves(self) -> str:
        """Which kinds, and how many at a time, in words for the log."""
        by_way: dict[str, list[str]] = {}
        for info in self._runner.kinds.values():
            by_way.setdefault(info.isolation, []).append(info.kind)
        parts = [f"{self._pools[way].slots} at a time of {', '.join(kinds)}" for way, kinds in by_way.items()]
        return "; ".join(parts)

    @property
    def consuming(self) -> bool:
        """Whether every queue can deliver now."""
        return bool(self._consumers) and all(consumer.ready for consumer in self._consumers)

    @property
    def busy(self) -> int:
        """How many tasks it has, the ones that are being claimed included."""
        return self._claiming + len(self._running)

    # -- start and end -----------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to take tasks. Raises SettingsError when a handler cannot be loaded where it is to run."""
        await self._runner.start()
        if self._draining:
            return
        self._broker.subscribe(self._ordered, lambda: None, ORDERS)
        kinds = self._runner.kinds.values()
        self._consumers = [self._consume(queue, kind) for queue in self._queues for kind in kinds]
        await self._say_hello()
        self._renewal.start(self._lease / RENEWALS, now=False)
        self._tidying.start(GIVE_BACK_AFTER, now=False)

    async def drain(self, grace: float) -> None:
        """Take nothing more, give running tasks ``grace`` seconds, and give the rest back unspent. Never fails."""
        self._draining = True
        for consumer in self._consumers:
            await consumer.stop()
        for waiting in (*(pool.backlog for pool in self._pools.values()), self._suspects):
            self._give_back(waiting)
            waiting.clear()
        if self._seen:
            await self._say_goodbye()
        if self.busy:
            self._log.info("{count} tasks get {grace:g} seconds to end", count=self.busy, grace=grace)
            await self._until_idle(grace)
        self._over = True
        for held in tuple(self._running.values()):
            if held.attempt is not None and not held.finishing:
                held.returning = True
                held.attempt.stop()
        # each is given back when nothing of it runs any more, lest it run twice: a child process takes its time
        await self._until_idle(STOP_SECONDS)
        await self._return([held for held in self._running.values() if held.returning])
        await self._until_idle(CLOSE_SECONDS)
        if self.busy:
            self._log.warn("{count} tasks could not be settled: their leases will expire", count=self.busy)
        for loop in (self._renewal, self._tidying):
            if loop.running:
                loop.stop()
        await self._runner.stop()

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

    async def _return(self, batch: Sequence[Held]) -> Sequence[None]:
        await self._release([(held, held.attempt.task) for held in batch if held.attempt is not None])
        return [None] * len(batch)

    async def _release(self, left: Sequence[tuple[Held, Task]]) -> None:
        if not left:
            return
        try:
            released = await self._store.release(self._name, [Claim(t.id, t.dispatch, False) for _, t in left])
        except TaskdError as e:
            text = "{count} tasks could not be given back, their leases will expire: {why}"
            self._log.warn(text, count=len(left), why=e.message)
            return
        self._log.info("{count} tasks given back", count=len(released))
        self._announce(released)
        self._ack(held for held, _ in left)

    async def _say_hello(self) -> None:
        """Tell the servers what is served here; they hand out nothing that nobody serves."""
        kinds = list(self._runner.kinds.values())
        slots = sum(pool.slots for pool in self._pools.values())
        try:
            await self._store.worker_seen(WorkerInfo(self._name, self._queues, kinds, slots))
        except Unavailable as e:
            self._log.warn("the servers do not know of this worker yet: {why}", why=e.message)
            return
        except Exception:
            self._log.failure("the servers do not know of this worker yet")
            return
        if not self._seen:
            self._seen = True
            self._publisher.publish_worker_change()

    async def _say_goodbye(self) -> None:
        try:
            await self._store.worker_gone(self._name)
        except Unavailable as e:
            self._log.info("the servers will miss this worker after a while: {why}", why=e.message)
            return
        self._publisher.publish_worker_change()

    # -- from delivery to claim ----------------------------------------------------------------------

    def _consume(self, queue: str, kind: KindInfo) -> IConsumer:
        pool = self._pools[kind.isolation]

        def taken(deliveries: Sequence[Delivery]) -> None:
            if self._draining:
                consumer.requeue(deliveries)
                return
            now = self._clock.seconds()
            pool.backlog.extend([Held(delivery, consumer, pool, now, kind.max_attempts) for delivery in deliveries])
            self._fill(pool)

        def lost() -> None:
            self._lost(consumer)

        ahead = min(pool.slots, MAX_AHEAD) if pool.slots >= AHEAD_FROM else 0
        consumer: IConsumer = self._broker.consume(Route(queue, kind.kind).name, pool.slots + ahead, taken, lost)
        return consumer

    def _lost(self, consumer: IConsumer) -> None:
        """The channel is gone: its deliveries will come again, here or elsewhere."""
        for pool in self._pools.values():
            pool.backlog = deque(held for held in pool.backlog if held.consumer is not consumer)
        self._suspects = deque(held for held in self._suspects if held.consumer is not consumer)
        for held in chain(self._running.values(), *self._asked.values()):
            if held.consumer is consumer:
                held.delivery = None

    def _fill(self, pool: SlotPool) -> None:
        while pool.backlog and pool.free and not self._draining:
            held = pool.backlog.popleft()
            self._claiming += 1
            pool.taken += 1
            self._asked.setdefault(held.claim.task_id, []).append(held)
            self._claims.submit(held).addCallbacks(
                self._claimed, self._not_claimed, callbackArgs=(held,), errbackArgs=(held,)
            )

    async def _claim(self, batch: list[Held]) -> Sequence[Task | None]:
        claimed = await self._store.claim(self._name, self._lease, [held.claim for held in batch])
        found = {(task.id, task.dispatch): task for task in claimed}
        self._announce(claimed)
        if unknown := {task.user_id for task in claimed} - self._usernames.keys():
            if len(self._usernames) > MAX_USERNAMES:
                self._usernames.clear()
                unknown = {task.user_id for task in claimed}
            self._usernames |= await self._store.usernames(list(unknown))
        # None for what is late, cancelled meanwhile, or run elsewhere
        tasks = [found.get((held.claim.task_id, held.claim.dispatch)) for held in batch]
        if nothing := [held for held, task in zip(batch, tasks, strict=True) if task is None]:
            await self._look_at(nothing)
        return tasks

    async def _look_at(self, nothing: Sequence[Held]) -> None:
        """What came of messages that claimed nothing."""
        found = {task.id: task for task in await self._store.find_tasks([held.claim.task_id for held in nothing])}
        # whoever had it may have died between the commit of its outcome and the news of it
        again = [held.claim.task_id for held in nothing if held.claim.redelivered]
        self._announce([found[n] for n in dict.fromkeys(again) if n in found])
        for held in nothing:
            held.suspect = is_suspect(found.get(held.claim.task_id), held.claim)
        self._ack(held for held in nothing if not held.suspect)

    def _next_suspect(self) -> None:
        """Claim the next last attempt, if none runs here. Should it kill this worker, it kills no other one with it."""
        backlogs = (pool.backlog for pool in self._pools.values())
        held_here = chain(self._running.values(), *backlogs, *self._asked.values())
        if self._draining or any(held.claim.alone for held in held_here):
            return
        held = self._suspects.popleft()
        held.claim = held.claim._replace(alone=True)
        held.pool.backlog.appendleft(held)
        self._fill(held.pool)

    def _claimed(self, task: Task | None, held: Held) -> None:
        if task is not None and self._over:
            released = Deferred.fromCoroutine(self._release([(held, task)]))
            released.addBoth(lambda _: self._claim_ended(held))
            return
        if task is not None and not self._is_duplicate_claim(task, held):
            self._run(held, task)
        else:
            held.pool.taken -= 1
            if task is None and held.suspect and held.delivery is not None:
                self._suspects.append(held)
        self._claim_ended(held)

    def _is_duplicate_claim(self, task: Task, held: Held) -> bool:
        """Whether the attempt is not a new one: the message came twice, or the answer comes after a later one's."""
        claimed = turn(task)
        before = self._running.get(task.id)
        if before is not None and before.attempt is not None:
            # of the same numbers: what runs here stands for both
            if turn(before.attempt.task)[:2] < claimed[:2]:
                self._keep_one(held, before)
                before.attempt.stop()
                return False
            self._keep_one(before, held)
            return True
        if held.passed < claimed:
            return False
        self._ack([held])
        return True

    def _keep_one(self, stays: Held, goes: Held) -> None:
        """Of two deliveries of a task one is acked now. The attempt that stays acks the other in the end, be it that
        its own is void and this one is the redelivery."""
        if stays.delivery is None and stays.claim.dispatch == goes.claim.dispatch:
            stays.delivery, stays.consumer, goes.delivery = goes.delivery, goes.consumer, None
        self._ack([goes])

    def _claim_ended(self, held: Held) -> None:
        self._not_asked(held)
        self._claiming -= 1
        self._slot_free(held.pool)

    def _not_claimed(self, failure: Failure, held: Held) -> None:
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
        held.pool.taken -= 1
        self._slot_free(held.pool)

    def _again(self, held: Held) -> None:
        self._not_asked(held)
        if held.delivery is None:
            return
        if self._draining:
            self._give_back([held])
            return
        held.pool.backlog.append(held)
        self._fill(held.pool)

    def _not_asked(self, held: Held) -> None:
        asked = self._asked[held.claim.task_id]
        asked.remove(held)
        if not asked:
            del self._asked[held.claim.task_id]

    # -- from claim to outcome -----------------------------------------------------------------------

    def _run(self, held: Held, task: Task) -> None:
        held.since = self._clock.seconds()
        self._running[task.id] = held
        held.buffer = self._reports.buffer(task)
        held.attempt = self._runner.run(task, self._usernames.get(task.user_id, ""), held.buffer)
        held.attempt.done.addCallbacks(self._ended, self._not_ended, callbackArgs=(held,), errbackArgs=(held,))
        if held.attempt.free:
            # most often, when it has nothing to wait for: what is claimed next waits for the end of this batch
            held.pool.taken -= 1
        else:
            held.attempt.freed.addBoth(self._freed, held.pool)

    def _freed(self, _: object, pool: SlotPool) -> None:
        pool.taken -= 1
        if pool.backlog:
            self._fill(pool)

    def _ended(self, outcome: Outcome, held: Held) -> None:
        held.finishing = True
        assert held.buffer is not None
        # what it has said is stored before its outcome, behind which nothing counts
        if (heard := self._reports.close(held.buffer)) is None:
            self._submit(Ended(held, outcome))
        else:
            heard.addCallback(lambda _: self._submit(Ended(held, outcome)))

    def _not_ended(self, failure: Failure, held: Held) -> None:
        if not failure.check(AttemptStopped):
            self._log.failure("an attempt ended without an outcome", failure)
        if held.returning:
            self._returns.submit(held).addBoth(lambda _: self._forget(held))
        else:
            self._forget(held)

    def _submit(self, ended: Ended) -> None:
        self._ends.submit(ended).addCallbacks(
            self._finished, self._not_finished, callbackArgs=(ended,), errbackArgs=(ended,)
        )

    async def _finish(self, batch: list[Ended]) -> Sequence[Finished | None]:
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
            if finished is not None and finished.version and ended.held.attempt is not None:
                changed.append(_after(ended.held.attempt.task, outcome, finished))
        self._announce(changed)
        self._ack([ended.held for ended in batch])
        return answers

    def _finished(self, finished: Finished | None, ended: Ended) -> None:
        if finished is None:
            text = "task {id} attempt {attempt} was fenced: its outcome does not count"
            self._log.info(text, id=ended.outcome.task_id, attempt=ended.outcome.attempt)
        self._forget(ended.held)

    def _not_finished(self, failure: Failure, ended: Ended) -> None:
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

    def _forget(self, held: Held) -> None:
        assert held.attempt is not None
        task = held.attempt.task
        if self._running.get(task.id) is held:
            del self._running[task.id]
        if held.buffer is not None and not held.buffer.closed:
            self._reports.close(held.buffer)
        for other in self._asked.get(task.id, ()):
            other.passed = max(other.passed, turn(task))
        self._slot_free(held.pool)

    def _slot_free(self, pool: SlotPool) -> None:
        if self._draining:
            if not self.busy:
                self.hurry()
            return
        if self._suspects:
            self._next_suspect()
        if pool.backlog:
            self._fill(pool)

    def _give_back_old(self) -> None:
        latest = self._clock.seconds() - GIVE_BACK_AFTER
        for waiting in (*(pool.backlog for pool in self._pools.values()), self._suspects):
            old = [held for held in waiting if held.since <= latest]
            for held in old:
                waiting.remove(held)
            self._give_back(old)

    # -- leases ------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        now = self._clock.seconds()
        running = dict(self._running)
        self._ack([held for held in running.values() if now - held.since >= ACK_AFTER])
        if not self._draining:
            await self._say_hello()
        await self._look_after(running)

    async def _look_after(self, running: Mapping[int, Held]) -> None:
        """Renew the leases of these; what is not ours any more is stopped."""
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
            if held.attempt is not None and not held.attempt.stopped:
                self._log.info("task {id} is not ours any more: stopped", id=task_id)
                held.attempt.stop()
                self._ack([held])

    def _ordered(self, body: bytes) -> None:
        """Somebody has cancelled tasks, perhaps of ours. The order may be old: the store says whether it stands."""
        try:
            cancelled = decode_cancel_order(body).task_ids
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            self._log.warn("an order cannot be read, cancelling takes until a lease is renewed: {why}", why=str(e))
            return
        ours = {task_id: self._running[task_id] for task_id in cancelled if task_id in self._running}
        if ours:
            Deferred.fromCoroutine(self._look_after(ours)).addErrback(self._failed, "looking after cancelled tasks")

    def _not_ours(self, task: Task) -> None:
        """A report has been refused."""
        held = self._running.get(task.id)
        if held is not None and held.attempt is not None and held.attempt.task is task:
            looked = Deferred.fromCoroutine(self._look_after({task.id: held}))
            looked.addErrback(self._failed, "looking after a task")

    def _failed(self, failure: Failure, what: str) -> None:
        self._log.failure("{what} failed", failure, what=what)

    # -- what they share ---------------------------------------------------------------------------

    async def _claim_again(self, fenced: Sequence[Held]) -> set[Held]:
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

    def _ack(self, helds: Iterable[Held]) -> None:
        for consumer, deliveries in by_consumer(helds):
            consumer.ack(deliveries)

    def _give_back(self, helds: Iterable[Held]) -> None:
        for consumer, deliveries in by_consumer(helds):
            consumer.requeue(deliveries)

    def _announce(self, tasks: Iterable[Task]) -> None:
        self._publisher.publish(list(tasks))


def _after(task: Task, outcome: Outcome, finished: Finished) -> Task:
    """The task with what the store made of an outcome."""
    if outcome.state is State.WAITING:
        # the attempt keeps its own, by which it can be told from others
        task = copy.copy(task)
        task.started_at = task.progress = task.note = None
        task.run_at = finished.run_at or task.run_at
    task.state, task.result, task.error = outcome.state, outcome.result, outcome.error
    task.version, task.finished_at = finished.version, finished.finished_at
    return task
