"""What a worker holds: each task from the moment it is found until the store has answered its end or its return."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from taskd.model.tasks import Task
from taskd.ports.attempts import Held, Outcome
from taskd.ports.workers import Digest
from taskd.worker.attempt import Attempt
from taskd.worker.board import IBoard
from taskd.worker.reports import ReportBuffer
from taskd.worker.slots import SlotPool

REMEMBERED_SECONDS = 30.0
"""How long the worker remembers at least what it does not hold any more."""

REMEMBERED_TASKS = 50_000
"""Or at least so many of the latest ones, if there are more in that time."""


class HeldState(enum.Enum):
    """Where a held task is on its way."""

    WAITING = "waits for a slot, or for a place among the suspects"
    BEGINNING = "has a slot, and its begin is being stored"
    RUNNING = "its handler runs"
    FINISHING = "its outcome is on the way to the store"
    RETURNING = "it goes back to the store unspent, as soon as nothing of it runs"
    DROPPED = "it is not this worker's any more: nothing that comes of it counts"


@dataclass(eq=False, slots=True)
class HeldTask:
    """An assigned task, and what has become of it in this worker.

    ``user`` is its owner's name, ``weight`` its owner's weight. ``since`` is when it began to wait, ``began`` when its
    handler was called, in seconds of the clock. ``unwanted``: it was cancelled, and perhaps retried since. ``on_free``,
    if any, is called when its slot is free. ``sent``: its return is on the way to the store. ``stored_before``: an
    earlier try to store the outcome may have been committed. ``plain``: the outcome says only that the real one cannot
    be stored. ``begun`` is its place on the board among what has begun, None if it has none.
    """

    task: Task
    user: str
    pool: SlotPool
    isolation: str
    since: float
    weight: float = 1.0
    state: HeldState = HeldState.WAITING
    began: float = 0.0
    attempt: Attempt | None = None
    buffer: ReportBuffer | None = None
    outcome: Outcome | None = None
    unwanted: bool = False
    on_free: Callable[[HeldTask], None] | None = None
    sent: bool = False
    stored_before: bool = False
    plain: bool = False
    begun: int | None = None

    @property
    def in_store(self) -> Held:
        """As it stands in the store."""
        return Held(self.task.id, self.task.dispatch)


class HeldTasks:
    """The tasks that the worker holds under its present name, by their ids. ``leaving`` are those that it holds no
    longer although their handlers still run.

    ``draining`` is True from the beginning of the stop on.
    """

    def __init__(self, clock: IReactorTime, board: IBoard) -> None:
        self._clock = clock
        self._board = board
        self.tasks: dict[int, HeldTask] = {}
        self.leaving: set[HeldTask] = set()
        self.draining = False
        self._settled: dict[int, int] = {}
        self._settled_before: dict[int, int] = {}
        """The dispatches of tasks that never begin here again, by task id, in two generations."""
        self._generation = clock.seconds()
        self._idle: Deferred[None] | None = None
        self._hurried = False

    @property
    def busy(self) -> int:
        """How many tasks it holds or still runs."""
        return len(self.tasks) + len(self.leaving)

    @property
    def digest(self) -> Digest:
        """What a beat says of it: see :func:`taskd.ports.workers.digest`. What is unwanted is neither queued nor
        running in the store."""
        total = 0
        for held in self.tasks.values():
            if not held.unwanted:
                total += 31 * held.task.id + held.task.dispatch
        return Digest(len(self.tasks), total)

    def running(self) -> list[HeldTask]:
        """Those whose handlers run."""
        return [held for held in self.tasks.values() if held.state is HeldState.RUNNING]

    def settle(self, task_id: int, dispatch: int) -> None:
        """This assignment never begins here from now on, whatever an answer of the store that was late says."""
        if len(self._settled) >= REMEMBERED_TASKS or self._clock.seconds() - self._generation >= REMEMBERED_SECONDS:
            self._settled_before, self._settled = self._settled, {}
            self._generation = self._clock.seconds()
        self._settled[task_id] = max(dispatch, self._settled.get(task_id, 0))

    def is_settled(self, task_id: int, dispatch: int) -> bool:
        """Whether it has ended here, or is given back, or was dropped."""
        settled = self._settled.get(task_id) or self._settled_before.get(task_id, 0)
        return settled >= dispatch

    def forget(self, held: HeldTask) -> None:
        """The worker holds it no longer."""
        task = held.task
        if self.tasks.get(task.id) is held:
            del self.tasks[task.id]
            self.settle(task.id, task.dispatch)
        self.erase_begun(held)
        self.check_idle()

    def erase_begun(self, held: HeldTask) -> None:
        """Tell the watchdog that it is not held any more, or does not begin after all."""
        if held.begun is not None:
            self._board.forget(held.begun)
            held.begun = None

    def check_idle(self) -> None:
        """A task is done: let :meth:`until_idle` go on if it was the last one."""
        if self._idle is not None and not self.busy:
            self.hurry()

    async def until_idle(self, seconds: float) -> None:
        """Wait until there is nothing left, but no longer than so many seconds."""
        hurried, self._hurried = self._hurried, False
        if hurried or not self.busy:
            return
        idle = self._idle = Deferred()
        timer = self._clock.callLater(seconds, self.hurry)
        await idle
        if timer.active():
            timer.cancel()

    def hurry(self) -> None:
        """End the present wait, or the next one if there is none now."""
        idle, self._idle = self._idle, None
        if idle is None:
            self._hurried = True
        else:
            idle.callback(None)
