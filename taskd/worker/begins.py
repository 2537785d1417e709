"""From an assigned task that was found to the call of its handler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.batching import Batcher
from taskd.events.publisher import Publisher
from taskd.model.errors import Unavailable
from taskd.ports.attempts import Assigned, Begun, Started
from taskd.ports.store import IStore
from taskd.ports.workers import KindInfo
from taskd.worker.board import IBoard
from taskd.worker.gate import Gate
from taskd.worker.held import HeldState, HeldTask, HeldTasks
from taskd.worker.identity import Identity
from taskd.worker.marks import note_started
from taskd.worker.outcomes import Outcomes
from taskd.worker.periodic import Periodic
from taskd.worker.returns import Returns
from taskd.worker.slots import SlotPool
from taskd.worker.suspects import MAX_WAIT, Suspects, is_suspect

GIVE_BACK_AFTER = 1.0
"""Seconds that a task may wait here for a slot; then other workers get it."""

SCAN = 0.25
"""Seconds between two looks for such tasks."""

AGAIN_AFTER = 1.0
"""Seconds until a begin is stored again if the store was away, or has not confirmed it."""


class Begins:
    """``slots`` says for each isolation how many tasks run at a time, ``kinds`` which isolation each kind has.

    ``on_room`` is called when more tasks of an isolation could begin than are here, ``on_missing`` when the store says
    that a task is not held here.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        publisher: Publisher,
        held: HeldTasks,
        outcomes: Outcomes,
        returns: Returns,
        identity: Identity,
        board: IBoard,
        gate: Gate,
        kinds: Mapping[str, KindInfo],
        slots: Mapping[str, int],
        on_room: Callable[[], None],
        on_missing: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._store = store
        self._publisher = publisher
        self._held = held
        self._outcomes = outcomes
        self._returns = returns
        self._identity = identity
        self._board = board
        self._gate = gate
        self._kinds = kinds
        self._on_missing = on_missing
        self._suspects = Suspects(clock, self._begin, self.fill)
        self._pools = {
            isolation: SlotPool(clock, count, self._start, self._may_begin, self._suspects.start_waiting, on_room)
            for isolation, count in slots.items()
        }
        self._begins: Batcher[HeldTask, Started | None] = Batcher(clock, self._store_begins)
        self._scan = Periodic(clock, SCAN, self._give_back_old)

    @property
    def has_room(self) -> bool:
        """Whether more tasks could begin than are here."""
        return any(pool.has_room for pool in self._pools.values())

    def start(self) -> None:
        """Begin to give back what waits too long."""
        self._scan.start()

    def stop(self) -> None:
        """Nothing waits any more."""
        self._scan.stop()

    def accept(self, found: Iterable[Assigned]) -> int:
        """Hold these tasks, and begin them when it is their turn; while the worker drains, give them back at once.
        Returns how many are new."""
        now = self._clock.seconds()
        held, draining, new = self._held, self._held.draining, 0
        pools = set()
        for task, user, weight in found:
            kind = self._kinds.get(task.kind)
            if kind is None:
                # no server assigns it to this worker: the next comparisons give it back
                self._log.error(
                    "task {id} was assigned to a worker without its kind {kind}", id=task.id, kind=task.kind
                )
                continue
            if task.id in held.tasks or held.is_settled(task.id, task.dispatch):
                continue
            pool = self._pools[kind.isolation]
            one = held.tasks[task.id] = HeldTask(task, user, pool, kind.isolation, now, weight)
            new += 1
            if draining:
                self._returns.give_back(one)
            else:
                pool.add(one)
                pools.add(pool)
        for pool in pools:
            pool.fill()
        self._outcomes.flush()
        return new

    def fill(self) -> None:
        """Begin what waits, as far as it may and slots are free."""
        for pool in self._pools.values():
            pool.fill()

    def give_back_unbegun(self) -> None:
        """Give back all that waits."""
        for held in tuple(self._held.tasks.values()):
            if held.state is HeldState.WAITING:
                self._returns.give_back(held)

    def _may_begin(self) -> bool:
        return self._identity.is_alive

    async def _give_back_old(self) -> None:
        self._gate.check()
        # while the store is away, nobody else could have it
        if not self._identity.is_alive:
            return
        latest = self._clock.seconds() - GIVE_BACK_AFTER
        for pool in self._pools.values():
            for held in pool.waiting_since(latest):
                self._returns.give_back(held)
        for held in tuple(self._suspects.waiting):
            if held.state is HeldState.WAITING and held.since <= latest - MAX_WAIT:
                self._returns.give_back(held)

    # -- a task has a slot

    def _start(self, held: HeldTask) -> None:
        if not held.task.losses or self._suspects.admit(held):
            self._begin(held)
        else:
            held.pool.release(held)
            self._suspects.wait(held)

    def _begin(self, held: HeldTask) -> None:
        """It has a slot, and a place if it is a suspect.

        When its worker dies, a task with losses or with a single attempt must not count as begun if it has only waited,
        and must count if it has begun: the store knows of its begin before its handler runs. The others may be called
        at once.
        """
        task = held.task
        if is_suspect(held):
            held.on_free = self._suspects.ended
        # in this order: see taskd.watchdog.board
        held.begun = self._board.begins(task.id, task.dispatch)
        if self._gate.is_raised:
            self._free(held)
            # gives it back, with all others that wait
            self._gate.check()
            return
        if task.losses or task.max_attempts == 1:
            held.state = HeldState.BEGINNING
            self._submit(held)
        else:
            self._outcomes.run(held)

    def _submit(self, held: HeldTask) -> None:
        self._begins.submit(held).addCallbacks(self._begun, self._not_begun, callbackArgs=(held,), errbackArgs=(held,))

    async def _store_begins(self, batch: list[HeldTask]) -> Sequence[Started | None]:
        ours = [held for held in batch if held.state is HeldState.BEGINNING]
        if not ours:
            return [None] * len(batch)
        begun = [Begun(held.task.id, held.task.dispatch) for held in ours]
        found = await self._store.begin(self._identity.name, begun, True)
        changed = []
        for held in ours:
            started = found.get(held.task.id)
            if held.state is HeldState.BEGINNING and started is not None and held.task.version < started.version:
                note_started(held, started)
                changed.append(held.task)
        self._publisher.publish(changed)
        if not self._identity.is_alive:
            raise Unavailable("the store has answered too late to begin anything")
        return [found.get(held.task.id) if held.state is HeldState.BEGINNING else None for held in batch]

    def _begun(self, started: Started | None, held: HeldTask) -> None:
        if held.state is not HeldState.BEGINNING:
            self._give_up(held)
        elif started is not None:
            self._outcomes.run(held)
        else:
            # it was cancelled or taken back: a comparison tells
            self._on_missing()
            self._clock.callLater(AGAIN_AFTER, self._begin_again, held)

    def _not_begun(self, failure: Failure, held: HeldTask) -> None:
        if not failure.check(Unavailable):
            self._log.failure("the begin of a task could not be stored", failure)
        self._clock.callLater(AGAIN_AFTER, self._begin_again, held)

    def _begin_again(self, held: HeldTask) -> None:
        if held.state is HeldState.BEGINNING:
            self._submit(held)
        else:
            self._give_up(held)

    def _give_up(self, held: HeldTask) -> None:
        """It does not begin after all."""
        self._free(held)
        self._returns.send(held)
        held.pool.fill()

    def _free(self, held: HeldTask) -> None:
        self._held.erase_begun(held)
        held.pool.release(held)
        if held.on_free is not None:
            held.on_free(held)
