"""Finds in the store what was assigned to this worker, and what of it is to be stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.model.errors import Unavailable
from taskd.model.tasks import Task
from taskd.ports.attempts import Assigned, Claim, Held, Standing
from taskd.ports.store import IStore
from taskd.worker.begins import Begins
from taskd.worker.gate import Gate
from taskd.worker.held import HeldState, HeldTask, HeldTasks
from taskd.worker.identity import Identity
from taskd.worker.periodic import Periodic
from taskd.worker.registration import Registration
from taskd.worker.returns import Returns
from taskd.worker.runner import Runner

IDLE = 2.0
"""Seconds between two looks, if nothing calls for one earlier."""

BUSY = 0.1
"""Seconds from a look that has brought something to the next one, and between looks while hints cannot arrive."""

QUIET = 0.5
"""Seconds between looks while hints cannot arrive, and nothing has come for QUIET_AFTER or no slot is free. With
RabbitMQ down, servers assign within a second; so a task begins well within 2.5 seconds of its creation if a slot is
free."""

QUIET_AFTER = 10.0

LOOKED_TASKS = 500
LOOKED_BYTES = 1024 * 1024
"""A look brings so much at most: one that brings less has brought all. See IAttemptStore.look."""

STILL_HERE = (HeldState.WAITING, HeldState.BEGINNING, HeldState.RUNNING)


class Looks:
    """Looks for what is new, and compares what the worker holds with what stands in the store under its name.

    It looks when a hint comes; soon after a look that has brought something; and every 2 seconds, unless the last beat
    has shown that nothing new can be there. It compares when something is to be stopped, and when a beat shows a
    difference: what is cancelled is given back, what was taken back is dropped, what is not known here on two
    comparisons with a look between them, which did not bring it, goes back unspent.

    ``hints_ready`` tells whether hints can arrive.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        held: HeldTasks,
        begins: Begins,
        returns: Returns,
        runner: Runner,
        identity: Identity,
        gate: Gate,
        registration: Registration,
        hints_ready: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._store = store
        self._held = held
        self._begins = begins
        self._returns = returns
        self._runner = runner
        self._identity = identity
        self._gate = gate
        self._registration = registration
        self._hints_ready = hints_ready
        self._look_wanted = True
        self._compare_wanted = True
        self._cut_off = False
        """The last look has left something behind."""
        self._hides = False
        """It has brought nothing new, and as much as a look brings."""
        self._brought = False
        self._failing = False
        self._last_found = self._last_look = self._last_in_step = float("-inf")
        self._unknown: frozenset[Held] = frozenset()
        self._rounds = Periodic(clock, self._interval, self._round)

    def start(self) -> None:
        """Begin to look."""
        self._rounds.start()

    def stop(self) -> None:
        """Look no more."""
        self._rounds.stop()

    def hinted(self, orders: bool) -> None:
        """A server says that something was assigned, or is to be stopped."""
        self._look_wanted = True
        self._compare_wanted = self._compare_wanted or orders
        self._rounds.at_once()

    def lost(self) -> None:
        """Hints may have been lost, or the store was away: look and compare at once."""
        self.hinted(True)

    def beaten(self, in_step: bool, sent: float) -> None:
        """A beat that was sent at this time says whether the store has the same as this worker."""
        if in_step:
            self._last_in_step = sent
        else:
            self.hinted(True)

    def has_room(self) -> None:
        """Slots are free, and nothing waits for them."""
        if self._cut_off:
            self._rounds.soon()

    def report_fenced(self, task: Task) -> None:
        """The store has refused a report of this attempt."""
        held = self._held.tasks.get(task.id)
        if held is not None and held.task is task:
            self.hinted(True)

    async def assert_held(self) -> None:
        """Say all that the worker holds, and drop what the store does not grant: see
        :meth:`IAttemptStore.assert_held`. Raises Unavailable."""
        name = self._identity.name
        claimed = {held.task.id: held for held in self._held.tasks.values() if not held.sent}
        granted = set(await self._store.assert_held(name, [_claim(held.task) for held in claimed.values()]))
        lost = [held for task_id, held in claimed.items() if task_id not in granted]
        text = "the database has gone on from an older state: of {count} tasks that are held here, it has lost {lost}"
        self._log.warn(text, count=len(claimed), lost=len(lost))
        for held in lost:
            if self._held.tasks.get(held.task.id) is held:
                self._returns.drop(held)

    async def give_back_rest(self) -> None:
        """Nothing runs here any more: give back, unspent, all that still stands under this worker's name. Raises
        Unavailable."""
        if self._registration.registered:
            standing = await self._store.standing(self._identity.name)
            if standing:
                await self._returns.release([Held(each.task_id, each.dispatch) for each in standing])

    def _interval(self) -> float:
        if self._cut_off and self._begins.has_room:
            return 0.0
        if self._brought:
            return BUSY
        if self._hints_ready() or not self._registration.registered:
            return IDLE
        is_quiet = self._clock.seconds() - self._last_found >= QUIET_AFTER
        return BUSY if self._begins.has_room and not is_quiet else QUIET

    async def _round(self) -> None:
        self._gate.check()
        if not (self._registration.registered and self._gate.is_open):
            return
        name = self._identity.name
        try:
            if self._is_look_due():
                await self._look(name)
            if self._compare_wanted:
                await self._compare(name)
            self._failing = False
        except Unavailable as e:
            # the first beat that is accepted again calls for both
            if not self._failing:
                self._log.warn("the worker cannot see what the store has for it: {why}", why=str(e))
            self._failing = True

    # -- what is new

    def _is_look_due(self) -> bool:
        """Whether something may be there: not if a beat since the last look was in step, and no hint has come."""
        idle = not (self._look_wanted or self._cut_off or self._brought)
        return not idle or not self._hints_ready() or self._last_in_step <= self._last_look

    async def _look(self, name: str) -> None:
        self._look_wanted = self._brought = self._cut_off = False
        self._last_look = self._clock.seconds()
        # An id of which an attempt still runs is left in the store, even if it is the attempt of an earlier assignment.
        known = self._held.tasks.keys() | self._runner.running_ids
        gate = self._gate.number
        try:
            found = await self._store.look(name, list(known))
        except Unavailable:
            self._look_wanted = True
            raise
        if self._was_raised_since(gate):
            # the watchdog may have given back what was found
            self._look_wanted = True
        # else it belongs to a name that was fenced while the answer was under way
        elif name == self._identity.name:
            self._brought = bool(found) and self._begins.accept(found) > 0
            is_full = _is_cut_off(found)
            # what is settled here hides the rest until the comparison has given it back
            self._cut_off, self._hides = is_full and self._brought, is_full and not self._brought
            if self._brought:
                self._last_found = self._clock.seconds()

    def _was_raised_since(self, gate: int) -> bool:
        """Whether the gate was raised since it had this number."""
        self._gate.check()
        return gate != self._gate.number

    # -- what is to be stopped, and what nobody knows

    async def _compare(self, name: str) -> None:
        self._compare_wanted = False
        here = [held for held in self._held.tasks.values() if held.state in STILL_HERE]
        try:
            standing = await self._store.standing(name)
            if name == self._identity.name:
                self._drop_missing(here, standing)
                await self._return(standing)
        except Unavailable:
            self._compare_wanted = True
            raise

    def _drop_missing(self, here: Sequence[HeldTask], standing: Sequence[Standing]) -> None:
        """Drop what stood here before the answer, still does, and is not in the answer: it was taken back."""
        stands = {(each.task_id, each.dispatch) for each in standing}
        missing = [held for held in here if held.in_store not in stands and held.state in STILL_HERE]
        if missing:
            text = "{count} tasks are not this worker's any more, and are dropped; the first one is {id}"
            self._log.info(text, count=len(missing), id=missing[0].task.id)
        for held in missing:
            self._returns.drop(held)

    async def _return(self, standing: Sequence[Standing]) -> None:
        release: list[Held] = []
        unknown: set[Held] = set()
        for each in standing:
            one = Held(each.task_id, each.dispatch)
            held = self._held.tasks.get(each.task_id)
            if held is not None and held.task.dispatch == each.dispatch:
                if not each.wanted:
                    held.unwanted = True
                    self._returns.give_back(held)
            elif not each.wanted:
                release.append(one)
            elif not self._hides or self._held.is_settled(*one):
                unknown.add(one)
        # What a look has left behind may be unknown. What it had to bring is not, unless it is not to begin here.
        before, self._unknown = self._unknown, frozenset() if self._cut_off else frozenset(unknown)
        release += sorted(self._unknown & before)
        if release:
            await self._returns.release(release)


def _claim(task: Task) -> Claim:
    return Claim(task.id, task.dispatch, task.attempt, task.max_attempts, task.version, task.created_at)


def _is_cut_off(found: Sequence[Assigned]) -> bool:
    if len(found) >= LOOKED_TASKS:
        return True
    # where exactly it was cut depends on the next task: a look that was not needed costs little
    return sum(len(each.task.payload) for each in found) >= LOOKED_BYTES // 4
