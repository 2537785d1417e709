"""The invariants. The referee checks every change of the store, and every task that clients see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from taskd.model.states import MOVES, TERMINAL, State
from taskd.model.tasks import Task
from taskd.ports.attempts import Claim, Finished, Outcome
from taskd.ports.broker import Delivery

CONFIRMED_EXIST = "every confirmed task is in the store"
CREATED_ONCE = "a task is created once"
LEGAL_MOVES = "every change of state is allowed"
ONE_END = "an ended task does not change, except by a retry"
VERSIONS = "every change raises the version by one"
BOUNDED_ATTEMPTS = "attempts are counted correctly and never exceed their maximum"
DISPATCHES = "the dispatch number rises by one with every dispatch, and only then"
FENCED = "the outcome of a fenced attempt is refused"
CLAIMS_MATCH = "a message claims only its own dispatch"
ATTEMPT_ONCE = "an attempt begins once"
SLOTS = "a worker runs no more tasks than it has slots"
TAKEN_OVER = "nobody claims a task that another worker holds"
LOSSES = "losses grow with each loss and are 0 after an attempt that ended by itself"
RETURNS = "every give-back of a stopping worker is counted"
INTERRUPTED = "an interrupted attempt does not count"
OUTBOX_KEPT = "an outbox row stays until its messages are confirmed"
ACK_AFTER_OUTCOME = "a message is acked after its outcome is stored"
TRUE_VIEWS = "a client sees only states that a task had"
OWN_TASKS = "a client sees only tasks of its user"
WATCH_ORDER = "a watch sends the versions of a task in rising order"
WATCH_COMPLETE = "a watch sends every change while nothing fails"
WATCH_STATE = "a client gets events exactly while it watches"
WAIT_ENDED = "a completed wait shows only ended tasks"
ONE_REPLY = "every request gets one reply"
EVERY_END = "every task ends"
OUTBOX_EMPTIES = "the outbox becomes empty"
WINDOWS_CORRECT = "the windows count the queued tasks correctly"
MESSAGES_ACKED = "every message is acked"
NOTHING_KEPT = "a server keeps nothing of closed connections"
DRAIN_ENDS = "a draining process ends"
NO_ERROR = "no unexpected error"

_STATES = {state.value: state for state in State}


class Violation(Exception):
    """An invariant was violated."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


class Change(NamedTuple):
    """A row of the audit table: a task before and after a change. ``old_state`` is None for a new task."""

    task_id: int
    text: str
    old_state: str | None
    state: str
    old_attempt: int
    attempt: int
    max_attempts: int
    old_version: int
    version: int
    old_dispatch: int
    dispatch: int
    old_worker: str | None
    worker: str | None
    old_losses: int
    losses: int
    old_returns: int
    returns: int
    old_started_at: int | None
    old_dispatched_at: int | None
    old_max_attempts: int
    old_error: str | None
    old_progress: float | None
    old_note: str | None
    begun: int

    def __str__(self) -> str:
        before, after = (self.old_state, self.old_attempt, self.old_dispatch), (self.state, self.attempt, self.dispatch)
        who = f"{self.old_worker} -> {self.worker}"
        return f"task {self.task_id} from {before} to {after} of {self.max_attempts} attempts by {who}"


@dataclass
class Known:
    """A task as it is in the store now, with its history."""

    task_id: int
    text: str
    state: State
    attempt: int
    dispatch: int
    version: int
    worker: str | None
    changed: float
    """The time of its last change of state."""
    history: dict[int, set[State]]
    """The states that it had at each version: several if a database crash undid a change that clients had already seen,
    as the version number is then used again."""


class Referee:
    """Checks the invariants. ``report`` is called with each violation, and the world stops at the first."""

    def __init__(
        self, report: Callable[[Violation], None], note: Callable[..., None], now: Callable[[], float]
    ) -> None:
        self._report = report
        self._now = now
        self._note = note
        self.tasks: dict[int, Known] = {}
        self.texts: dict[str, int] = {}
        self.open = 0
        """The number of tasks that have not ended."""
        self.confirmed: dict[int, str] = {}
        self.delivered: set[tuple[int, int]] = set()
        """Task and dispatch of messages that the broker has confirmed to a publisher."""
        self._claimed_attempts: Counter[tuple[int, int, int]] = Counter()
        """Task, dispatch and attempt of claims whose handlers have not begun. If a database crash undoes a claim, there
        will be another with the same numbers."""
        self.claimed_at: dict[tuple[int, int, int], float] = {}
        """Task, dispatch and attempt, and when it was first claimed."""
        self._undone_dispatches: set[tuple[int, int]] = set()
        """Task and dispatch: two messages have these numbers, for the next dispatch has them again."""
        self._retries: set[tuple[int, int, int, str]] = set()
        """Task, dispatch, attempt and worker of failed attempts that a further attempt follows."""
        self.running: dict[str, set[tuple[int, int, int]]] = {}
        """By process: task, dispatch and attempt of the handlers that run."""

    def fail(self, invariant: str, detail: str) -> None:
        """Report a violation of an invariant."""
        self._report(Violation(invariant, detail))

    # -- the store

    def changed(self, who: str, how: str, changes: Iterable[Change]) -> None:
        """A call of the store has committed these changes."""
        for c in changes:
            state = _STATES[c.state]
            self._note(who, how, f"task {c.task_id}: {c.old_state} -> {c.state}, attempt {c.attempt} of {c.worker}")
            if c.old_state is None:
                self._created(c, state)
            else:
                self._moved(how, c, _STATES[c.old_state], state)

    def _created(self, c: Change, state: State) -> None:
        if c.text in self.texts:
            self.fail(CREATED_ONCE, f"{c.text!r} is task {self.texts[c.text]} and task {c.task_id}")
        if state not in (State.WAITING, State.QUEUED) or c.attempt or c.version != 1:
            self.fail(LEGAL_MOVES, f"a new task is {c}")
        if c.dispatch != (state is State.QUEUED):
            self.fail(DISPATCHES, f"a new task is {c}")
        self.texts[c.text] = c.task_id
        self.tasks[c.task_id] = Known(c.task_id, c.text, state, 0, c.dispatch, 1, None, self._now(), {1: {state}})
        self.open += 1

    def _moved(self, how: str, c: Change, old: State, new: State) -> None:
        known, what = self.tasks[c.task_id], f"{how}: {c}"
        if old in TERMINAL and how != "retry":
            self.fail(ONE_END, what)
        if how == "claim" and old is not State.QUEUED:
            self.fail(TAKEN_OVER, what)
        if new not in MOVES[old]:
            self.fail(LEGAL_MOVES, what)
        if c.version != c.old_version + 1:
            self.fail(VERSIONS, what)
        spent = c.attempt - c.old_attempt
        allowed = {"claim": (1,), "release": (-1,), "retry": (-c.old_attempt,), "take_back": (-1, 0)}.get(how, (0,))
        if spent not in allowed or not 0 <= c.attempt <= c.max_attempts:
            self.fail(BOUNDED_ATTEMPTS, what)
        if how in ("finish", "take_back") and c.losses != (0 if how == "finish" else c.old_losses + c.begun):
            self.fail(LOSSES, f"{what}, losses from {c.old_losses} to {c.losses}")
        if c.returns - c.old_returns not in ((0, 1) if how == "release" else (0, -c.old_returns)):
            self.fail(RETURNS, f"{what}, returns from {c.old_returns} to {c.returns}")
        if how == "release" and (new is not State.WAITING or spent != -1):
            self.fail(INTERRUPTED, what)
        if c.dispatch - c.old_dispatch != (new is State.QUEUED):
            self.fail(DISPATCHES, what)
        known.state, known.attempt, known.dispatch, known.worker = new, c.attempt, c.dispatch, c.worker
        known.version, known.changed = c.version, self._now()
        if how == "claim":
            self._claimed_attempts[c.task_id, c.dispatch, c.attempt] += 1
            self.claimed_at.setdefault((c.task_id, c.dispatch, c.attempt), self._now())
        known.history.setdefault(c.version, set()).add(new)
        self.open += (new not in TERMINAL) - (old not in TERMINAL)

    def undo(self, changes: Sequence[Change]) -> None:
        """Take back changes that a database crash has undone. No user had a confirmation of them."""
        for c in reversed(changes):
            assert c.old_state is not None
            if c.dispatch != c.old_dispatch:
                self._undone_dispatches.add((c.task_id, c.dispatch))
            self._note("world", "undoes", f"task {c.task_id}: {c.old_state} -> {c.state}")
            known = self.tasks[c.task_id]
            known.state, known.attempt, known.dispatch = _STATES[c.old_state], c.old_attempt, c.old_dispatch
            known.version, known.worker, known.changed = c.old_version, c.old_worker, self._now()

    def claimed(self, worker: str, claims: Sequence[Claim], tasks: Sequence[Task]) -> None:
        """A claim has committed and returns these tasks."""
        asked = {(claim.task_id, claim.dispatch) for claim in claims}
        for task in tasks:
            if (task.id, task.dispatch) not in asked:
                self.fail(CLAIMS_MATCH, f"task {task.id} dispatch {task.dispatch} by {worker} with {sorted(claims)}")

    def finished(
        self,
        worker: str,
        outcomes: Sequence[Outcome],
        repeated: bool,
        before: Mapping[int, tuple[Any, ...]],
        found: Mapping[int, Finished],
    ) -> None:
        """A finish has committed. ``before`` is the result of :meth:`current` just before it."""
        for task_id in found:
            state, *key = before[task_id]
            of_task = [o for o in outcomes if o.task_id == task_id]
            if repeated and any((o.task_id, o.dispatch, o.attempt, worker) in self._retries for o in of_task):
                continue  # the first try was accepted, and the task may have moved on since
            mine = [o for o in of_task if [o.dispatch, o.attempt, worker] == key]
            self._retries |= {(o.task_id, o.dispatch, o.attempt, worker) for o in mine if o.state is State.WAITING}
            if (state is not State.RUNNING and not (repeated and any(o.state is state for o in mine))) or not mine:
                self.fail(FENCED, f"task {task_id} was {before[task_id]}, {worker} finished {list(outcomes)}")

    def current(self, task_ids: Iterable[int]) -> dict[int, tuple[Any, ...]]:
        """The current state, dispatch, attempt and worker of these tasks."""
        known = (self.tasks[task_id] for task_id in task_ids)
        return {k.task_id: (k.state, k.dispatch, k.attempt, k.worker) for k in known}

    def row_deleted(self, batch: str, task_ids: Iterable[int], in_other_row: Callable[[int], bool]) -> None:
        """An outbox row was deleted or marked as published. ``in_other_row`` says whether another row has a task."""
        for task_id in task_ids:
            known = self.tasks[task_id]
            if (
                known.state is State.QUEUED
                and (task_id, known.dispatch) not in self.delivered
                and not in_other_row(task_id)
            ):
                self.fail(OUTBOX_KEPT, f"task {task_id} dispatch {known.dispatch} was never confirmed")

    def acked(self, worker: str, delivery: Delivery, others: bool) -> None:
        """A delivery of an open channel was acked. ``others``: the worker holds another delivery of this message. Its
        name in the store begins with that of its process."""
        known = self.tasks.get(delivery.task_id)
        if known is None or others or (delivery.task_id, delivery.dispatch) in self._undone_dispatches:
            return
        mine = known.worker is not None and known.worker.startswith(f"{worker}.")
        if mine and (known.state, known.dispatch) == (State.RUNNING, delivery.dispatch):
            self.fail(ACK_AFTER_OUTCOME, f"{worker} has acked task {known.task_id}, which it runs")

    # -- workers

    def began(self, worker: str, task: Task, slots: int) -> None:
        """A handler has begun."""
        self._note(worker, "begins", f"task {task.id} attempt {task.attempt} dispatch {task.dispatch}")
        attempt = task.id, task.dispatch, task.attempt
        self._claimed_attempts[attempt] -= 1
        if self._claimed_attempts[attempt] < 0:
            self.fail(ATTEMPT_ONCE, f"task {task.id} dispatch {task.dispatch} attempt {task.attempt} by {worker}")
        running = self.running.setdefault(worker, set())
        running.add(attempt)
        if len(running) > slots:
            self.fail(SLOTS, f"{worker} has {slots} slots and runs {len(running)} tasks")

    def ended(self, worker: str, task: Task) -> None:
        """A handler has ended, or was stopped."""
        self.running[worker].discard((task.id, task.dispatch, task.attempt))

    def drained(self, worker: str, undisturbed: bool) -> None:
        """A worker has drained. ``undisturbed`` says that the store answered all its calls in time."""
        left = [k.task_id for k in self.tasks.values() if k.worker == worker and k.state is State.RUNNING]
        if left and undisturbed:
            self.fail(INTERRUPTED, f"{worker} has drained and left tasks {left} running")

    # -- clients

    def was_confirmed(self, task_id: int, text: str) -> None:
        """A client has got the confirmation of this task."""
        self.confirmed[task_id] = text
        known = self.tasks.get(task_id)
        if known is None or known.text != text:
            self.fail(CONFIRMED_EXIST, f"task {task_id}, {text!r}, is {known and known.text!r} in the store")

    def saw(self, user: str, view: Mapping[str, Any]) -> None:
        """A client has got this view of a task."""
        known = self.tasks.get(view["id"])
        if not view["task"].startswith(f"{user} ") or known is None or known.text != view["task"]:
            self.fail(OWN_TASKS, f"{user} sees {view}")
            return
        was = known.history.get(view["version"], ())
        shown = {"scheduled": "waiting", "retrying": "waiting"}.get(view["state"], view["state"])
        if _STATES[shown] not in was:
            self.fail(TRUE_VIEWS, f"task {known.task_id} version {view['version']} was {was}, {user} saw {shown}")
