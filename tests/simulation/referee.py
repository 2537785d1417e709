"""The invariants. The referee checks every change of the store, and every task that clients see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from taskd.model.states import MOVES, TERMINAL, State
from taskd.model.tasks import Task
from taskd.ports.attempts import Finished, Outcome
from tests.simulation.broker_link import FOREIGN_TEXT

CONFIRMED_EXIST = "every confirmed task is in the store"
CREATED_ONCE = "a task is created once"
LEGAL_MOVES = "every change of state is allowed"
ONE_END = "an ended task does not change, except by a retry"
VERSIONS = "every change raises the version by one"
BOUNDED_ATTEMPTS = "attempts are counted correctly and never exceed their maximum"
VERSIONS_OF_ENDS = "an end raises the version by two from queued, by one from running"
DISPATCHES = "the dispatch number rises by one with every assignment, and only then"
FENCED = "the outcome of a fenced attempt is refused"
BEGIN_HELD = "a worker begins only what it holds"
BEGIN_ONCE = "nothing begins twice under one assignment"
SERVING_GETS = "only a worker that is serving gets tasks"
HELD = "a task is held from its assignment until its worker has settled it or is dead"
SLOTS = "a worker runs no more tasks than it has slots"
LOSSES = "losses grow with each loss and are 0 after an attempt that ended by itself"
RETURNS = "every give-back of a stopping worker is counted"
INTERRUPTED = "an interrupted attempt does not count"
TRUE_VIEWS = "a client sees only states that a task had"
OWN_TASKS = "a client sees only tasks of its user"
ONE_INSTALLATION = "one installation never hears another"
WATCH_ORDER = "a watch sends the versions of a task in rising order"
WATCH_COMPLETE = "a watch sends every change while nothing fails"
WATCH_STATE = "a client gets events exactly while it watches"
WAIT_ENDED = "a completed wait shows only ended tasks"
ONE_REPLY = "every request gets one reply"
EVERY_END = "every task ends"
NOTHING_HELD = "in the end nothing is held"
NO_IDLE_SLOT = "no slot idles while a task may run there"
LOST_HINTS = "an assigned task begins soon, whatever becomes of hints"
CANCEL_STOPS = "what is cancelled stops soon, and does not begin later, whatever becomes of hints"
FREE_BEGINS = "a worker with free slots begins what it has, and does not give it back"
WATCHDOG_KEEPS = "what a watchdog gives back has not begun, and does not begin there"
EXPLAINED = "explain gives the reason that the model has"
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
    old_held: int
    held: int
    had_begun: bool = True
    """False if the watchdog of a worker that has died knows that it had not begun there."""

    @property
    def candidate(self) -> bool:
        """Whether its loss counts: it may have begun. A begin of a task with losses or with one attempt is stored."""
        return self.had_begun and (
            self.old_state == "running"
            or (self.old_state == "queued" and not self.old_losses and self.max_attempts != 1)
        )

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
    held: bool
    losses: int
    changed: float
    """The time of its last change."""
    told: float
    """The time of the last change that gets an event: one of its version."""
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
        self.assigned_at: dict[tuple[int, int], float] = {}
        """Task and dispatch, and when it was assigned."""
        self.last_assigned = now()
        self._begun: set[tuple[int, int]] = set()
        self._not_to_begin: set[tuple[int, int]] = set()
        """What watchdogs have given back: tasks and dispatches."""
        """Task and dispatch of everything that has begun."""
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
            if how == "give_back":
                self._given_back(c)

    def _given_back(self, c: Change) -> None:
        """A watchdog has given this back."""
        key = c.task_id, c.old_dispatch
        self._not_to_begin.add(key)
        if key in self._begun:
            self.fail(WATCHDOG_KEEPS, f"it has begun: {c}")

    def _created(self, c: Change, state: State) -> None:
        if c.text in self.texts:
            self.fail(CREATED_ONCE, f"{c.text!r} is task {self.texts[c.text]} and task {c.task_id}")
        queued = state is State.QUEUED
        if state not in (State.WAITING, State.QUEUED) or c.version != 1:
            self.fail(LEGAL_MOVES, f"a new task is {c}")
        if c.dispatch != queued or c.attempt != queued:
            self.fail(DISPATCHES, f"a new task is {c}")
        if bool(c.held) != queued or (c.worker is not None) != queued:
            self.fail(HELD, f"a new task is {c}, held: {c.held}")
        self.texts[c.text] = c.task_id
        now = self._now()
        self.tasks[c.task_id] = Known(
            c.task_id, c.text, state, c.attempt, c.dispatch, 1, c.worker, queued, 0, now, now, {1: {state}}
        )
        if queued:
            self.assigned_at[c.task_id, c.dispatch] = self.last_assigned = self._now()
        self.open += 1

    def _moved(self, how: str, c: Change, old: State, new: State) -> None:
        known, what = self.tasks[c.task_id], f"{how}: {c}"
        if old is new and c.version == c.old_version:
            self._dropped(how, c, known)
            return
        if old in TERMINAL and how != "retry":
            self.fail(ONE_END, what)
        if new not in MOVES[old]:
            self.fail(LEGAL_MOVES, what)
        if c.version != c.old_version + (2 if how == "finish" and old is State.QUEUED else 1):
            self.fail(VERSIONS_OF_ENDS if how == "finish" else VERSIONS, what)
        spent = c.attempt - c.old_attempt
        allowed = {
            "assign": (1,),
            "release": (-1,),
            "give_back": (-1,),
            "worker_gone": (-1,),
            "retry": (-c.old_attempt,),
            "take_back": (-1, 0),
        }.get(how, (0,))
        if spent not in allowed or not 0 <= c.attempt <= c.max_attempts:
            self.fail(BOUNDED_ATTEMPTS, what)
        if how in ("finish", "take_back") and c.losses != (0 if how == "finish" else c.old_losses + c.candidate):
            self.fail(LOSSES, f"{what}, losses from {c.old_losses} to {c.losses}")
        gives_back = how in ("release", "worker_gone", "give_back")
        if c.returns - c.old_returns not in ((0, 1) if gives_back else (0, -c.old_returns)):
            self.fail(RETURNS, f"{what}, returns from {c.old_returns} to {c.returns}")
        if gives_back and (new is not State.WAITING or spent != -1):
            self.fail(INTERRUPTED, what)
        if c.dispatch - c.old_dispatch != (new is State.QUEUED):
            self.fail(DISPATCHES, what)
        # an owner's cancel or retry leaves the place taken until the worker has dropped the task
        kept = how in ("cancel", "retry") and c.old_held
        if bool(c.held) != (new in (State.QUEUED, State.RUNNING) or bool(kept)) or (new is State.QUEUED and c.old_held):
            self.fail(HELD, f"{what}, held from {c.old_held} to {c.held}")
        known.state, known.attempt, known.dispatch, known.worker = new, c.attempt, c.dispatch, c.worker
        known.version, known.held, known.losses, known.changed = c.version, bool(c.held), c.losses, self._now()
        known.told = known.changed
        if new is State.QUEUED:
            self.assigned_at[c.task_id, c.dispatch] = self.last_assigned = self._now()
        known.history.setdefault(c.version, set()).add(new)
        if c.version == c.old_version + 2:
            # the begin in between was never stored
            known.history.setdefault(c.version - 1, set()).add(State.RUNNING)
        self.open += (new not in TERMINAL) - (old not in TERMINAL)

    def _dropped(self, how: str, c: Change, known: Known) -> None:
        """A worker, or its death, ends that an ended or retried task is held."""
        drops = how in ("release", "take_back", "worker_gone", "give_back")
        if not drops or not c.old_held or c.held or _STATES[c.state] in (State.QUEUED, State.RUNNING):
            self.fail(HELD, f"{how}: {c}, held from {c.old_held} to {c.held}")
        known.held, known.worker, known.changed = False, c.worker, self._now()

    def undo(self, changes: Sequence[Change]) -> None:
        """Take back changes that a database crash has undone. No user had a confirmation of them."""
        for c in reversed(changes):
            assert c.old_state is not None
            self._note("world", "undoes", f"task {c.task_id}: {c.old_state} -> {c.state}")
            known = self.tasks[c.task_id]
            known.state, known.version, known.changed = _STATES[c.old_state], c.old_version, self._now()
            known.told = known.changed
            known.attempt, known.dispatch, known.worker = c.old_attempt, c.old_dispatch, c.old_worker
            known.held = bool(c.old_held)

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
            ran = state in (State.QUEUED, State.RUNNING)
            if not (ran or (repeated and any(o.state is state for o in mine))) or not mine:
                self.fail(FENCED, f"task {task_id} was {before[task_id]}, {worker} finished {list(outcomes)}")

    def current(self, task_ids: Iterable[int]) -> dict[int, tuple[Any, ...]]:
        """The current state, dispatch, attempt and worker of these tasks."""
        known = (self.tasks[task_id] for task_id in task_ids)
        return {k.task_id: (k.state, k.dispatch, k.attempt, k.worker) for k in known}

    # -- workers

    def began(self, worker: str, task: Task, slots: int) -> None:
        """A handler has begun."""
        self._note(worker, "begins", f"task {task.id} attempt {task.attempt} dispatch {task.dispatch}")
        attempt, known = (task.id, task.dispatch, task.attempt), self.tasks[task.id]
        if attempt[:2] in self._begun:
            self.fail(BEGIN_ONCE, f"task {task.id} dispatch {task.dispatch} by {worker}")
        if attempt[:2] in self._not_to_begin:
            self.fail(WATCHDOG_KEEPS, f"task {task.id} dispatch {task.dispatch} begins on {worker}")
        self._begun.add(attempt[:2])
        mine = known.held and known.worker is not None and known.worker.startswith(f"{worker}.")
        if not mine or known.dispatch != task.dispatch:
            holder = f"dispatch {known.dispatch} by {known.worker}" if known.held else f"nobody, {known.state.value}"
            self.fail(BEGIN_HELD, f"{worker} begins task {task.id} dispatch {task.dispatch}, held: {holder}")
        running = self.running.setdefault(worker, set())
        running.add(attempt)
        if len(running) > slots:
            self.fail(SLOTS, f"{worker} has {slots} slots and runs {len(running)} tasks")

    def has_begun(self, task_id: int, dispatch: int) -> bool:
        """Whether this assignment has begun."""
        return (task_id, dispatch) in self._begun

    def ended(self, worker: str, task: Task) -> None:
        """A handler has ended, or was stopped."""
        self.running[worker].discard((task.id, task.dispatch, task.attempt))

    def drained(self, worker: str, undisturbed: bool) -> None:
        """A worker has drained. ``undisturbed`` says that the store answered all its calls in time."""
        left = [k.task_id for k in self.tasks.values() if k.worker == worker and k.held]
        if left and undisturbed:
            self.fail(INTERRUPTED, f"{worker} has drained and still holds tasks {left}")

    # -- clients

    def was_confirmed(self, task_id: int, text: str) -> None:
        """A client has got the confirmation of this task."""
        self.confirmed[task_id] = text
        known = self.tasks.get(task_id)
        if known is None or known.text != text:
            self.fail(CONFIRMED_EXIST, f"task {task_id}, {text!r}, is {known and known.text!r} in the store")

    def saw(self, user: str, view: Mapping[str, Any]) -> None:
        """A client has got this view of a task."""
        if view["task"] == FOREIGN_TEXT:
            self.fail(ONE_INSTALLATION, f"{user} sees {view}")
        known = self.tasks.get(view["id"])
        if not view["task"].startswith(f"{user} ") or known is None or known.text != view["task"]:
            self.fail(OWN_TASKS, f"{user} sees {view}")
            return
        was = known.history.get(view["version"], ())
        shown = {"scheduled": "waiting", "retrying": "waiting"}.get(view["state"], view["state"])
        if _STATES[shown] not in was:
            self.fail(TRUE_VIEWS, f"task {known.task_id} version {view['version']} was {was}, {user} saw {shown}")
