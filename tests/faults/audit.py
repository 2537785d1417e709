"""The audit of a scenario: database triggers record every change of state, and this module checks the records."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from taskd.model.states import MOVES, TERMINAL, State
from tests.faults.load import Load
from tests.faults.worker import Run

# A write that does not change the version is no change of state and gets no record: a worker drops a cancelled task. Of
# a worker, only what is not a plain beat gets a record. Each text is a transaction of its own, which locks one table:
# with two, it could meet a daemon's transaction that locks them in the other order.
TRIGGERS = (
    """
CREATE TABLE task_changes (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, task_id bigint NOT NULL, old text, new text NOT NULL,
    attempt integer NOT NULL, worker text, at double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp()),
    dispatch integer NOT NULL, holder text, spent boolean NOT NULL DEFAULT false, lost boolean NOT NULL DEFAULT false,
    losses integer NOT NULL DEFAULT 0, max_attempts integer NOT NULL DEFAULT 0,
    xact text NOT NULL DEFAULT txid_current()
);
CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO task_changes (task_id, new, attempt, worker, dispatch)
        VALUES (NEW.id, NEW.state, NEW.attempt, NEW.worker, NEW.dispatch);
    ELSIF OLD.state <> NEW.state OR OLD.version <> NEW.version THEN
        INSERT INTO task_changes (
            task_id, old, new, attempt, worker, dispatch, holder, spent, lost, losses, max_attempts)
        VALUES (NEW.id, OLD.state, NEW.state, NEW.attempt, NEW.worker, OLD.dispatch,
            CASE WHEN OLD.state IN ('queued', 'running') THEN OLD.worker END,
            NEW.attempt = OLD.attempt, NEW.losses > OLD.losses, OLD.losses, OLD.max_attempts);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER task_changed AFTER INSERT OR UPDATE OF state, version ON tasks
    FOR EACH ROW EXECUTE FUNCTION note_change();
""",
    """
CREATE TABLE worker_audit (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, state text NOT NULL, stalled text,
    culprit_task bigint, culprit_dispatch integer, reason text,
    at double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp())
);
CREATE FUNCTION worker_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO worker_audit (name, state, stalled, culprit_task, culprit_dispatch, reason) VALUES (NEW.name, NEW.state,
        NEW.stalled, (NEW.culprit->>'task_id')::bigint, (NEW.culprit->>'dispatch')::integer, NEW.culprit->>'reason');
    RETURN NULL;
END $$;
CREATE TRIGGER worker_added AFTER INSERT ON workers FOR EACH ROW EXECUTE FUNCTION worker_audit();
CREATE TRIGGER worker_changed AFTER UPDATE ON workers FOR EACH ROW
    WHEN (OLD.state <> NEW.state OR OLD.stalled IS DISTINCT FROM NEW.stalled
        OR OLD.culprit::text IS DISTINCT FROM NEW.culprit::text)
    EXECUTE FUNCTION worker_audit();
""",
)

CHANGES = """
SELECT task_id, old, new, attempt, worker, at, dispatch, holder, spent, lost, losses, max_attempts, xact
FROM task_changes ORDER BY n
"""
WORKERS = "SELECT name, state, stalled, culprit_task, culprit_dispatch, reason, at FROM worker_audit ORDER BY n"
TASKS = """
SELECT t.id, u.username, t.key, t.state, t.attempt, t.error, t.finished_at IS NOT NULL
FROM tasks t JOIN users u ON u.id = t.user_id
"""

SENT = 1.0
"""Seconds within which PostgreSQL executes what a process had sent before it died."""

HELD = {"queued", "running"}
"""The states in which a worker holds a task."""

_FIRST = {State.WAITING, State.QUEUED}


def pid_of(worker: str | None) -> int | None:
    """The process id in a worker's name."""
    return int(worker.split(":")[1]) if worker else None


class Change(NamedTuple):
    """A change of state that the trigger recorded. ``at`` is in seconds since 1970.

    ``dispatch`` is that before the change. ``holder`` is the worker that held the task until then, if it was queued or
    running. ``spent``: the number of the attempt stays. ``lost``: the attempt was lost with its worker; before that the
    task had ``losses``. ``xact`` names the transaction.
    """

    task_id: int
    old: str | None
    new: str
    attempt: int
    worker: str | None
    at: float
    dispatch: int = 1
    holder: str | None = None
    spent: bool = False
    lost: bool = False
    losses: int = 0
    max_attempts: int = 0
    xact: str = ""

    @property
    def pid(self) -> int | None:
        """The process id in the worker's name."""
        return pid_of(self.worker)


class WorkerChange(NamedTuple):
    """A worker was registered, or its state, what blocks it, or its culprit has changed."""

    name: str
    state: str
    stalled: str | None
    culprit_task: int | None
    culprit_dispatch: int | None
    reason: str | None
    at: float


class Row(NamedTuple):
    """A task at the end of the scenario."""

    id: int
    user: str
    key: str
    state: str
    attempt: int
    error: str | None
    finished: bool


class Killed(NamedTuple):
    """A worker that was killed or stopped: its process id and the time."""

    pid: int
    at: float


class Unfit(NamedTuple):
    """From ``since`` to ``until`` this worker's tasks may be taken from it: it is dead, frozen, or stops."""

    pid: int
    since: float
    until: float = float("inf")


class Records(NamedTuple):
    """What the triggers have recorded, and the tasks at the end."""

    changes: Sequence[Change]
    workers: Sequence[WorkerChange]
    rows: Sequence[Row]


def read(query: Any) -> Records:
    """All changes in order, and all tasks. ``query`` returns the rows of a statement."""
    return Records(
        [Change(*row) for row in query(CHANGES)],
        [WorkerChange(*row) for row in query(WORKERS)],
        [Row(*row) for row in query(TASKS)],
    )


def figures(load: Load, records: Records, runs: Sequence[Run], unfit: Sequence[Unfit] = ()) -> dict[str, int]:
    """The figures that every scenario prints."""
    changes, workers, rows = records
    by_id = {row.id: row for row in rows}
    confirmed = {(c.user, c.key, c.task_id) for c in load.confirmations}
    lost = {c for c in confirmed if c[2] not in by_id or not by_id[c[2]].finished}
    false = {c for c in confirmed if c[2] not in by_id or (by_id[c[2]].user, by_id[c[2]].key) != c[:2]}
    begun = Counter(run.task_id for run in runs)
    attempts = Counter((run.task_id, run.dispatch, run.attempt) for run in runs)
    ends = Counter(change.task_id for change in changes if change.new in TERMINAL)
    spent = [change for change in changes if change.lost and change.spent]
    return {
        "attempted": load.attempted,
        "confirmed": load.confirmed,
        "resent": load.resent,
        "lost": len(lost),
        "run_twice": sum(n > 1 for n in begun.values()),
        "finished_twice": sum(n > 1 for n in ends.values()),
        "false_confirmations": len(false),
        "phantoms": len(rows) - load.attempted,
        "illegal_moves": sum(not _is_legal(change) for change in changes),
        "attempts_doubled": sum(n > 1 for n in attempts.values()),
        "never_run": sum(row.state == "completed" and row.id not in begun for row in rows),
        "failed": sum(row.state == "failed" for row in rows),
        "taken": len(taken(changes, runs, unfit)),
        "at_once": len(at_once(runs, unfit)),
        "losses": sum(change.lost for change in changes),
        "spent": len(spent),
        "unexplained": len(unexplained(changes, workers)),
    }


MUST_BE_ZERO = (
    "lost",
    "finished_twice",
    "false_confirmations",
    "phantoms",
    "illegal_moves",
    "attempts_doubled",
    "never_run",
    "failed",
    "taken",
    "at_once",
    "unexplained",
)
"""Figures that must be 0 unless the scenario expects another value."""


def _is_legal(change: Change) -> bool:
    new = State(change.new)
    return new in _FIRST if change.old is None else new in MOVES[State(change.old)]


_LEFT_TO_THE_WORKER = {State.COMPLETED, State.CANCELLED}


def taken(changes: Iterable[Change], runs: Iterable[Run], unfit: Iterable[Unfit]) -> list[Change]:
    """Changes that took a task from a worker that was alive and ran its handler."""
    ran = {(run.task_id, run.dispatch, run.worker): run for run in runs}
    excused: defaultdict[int, list[Unfit]] = defaultdict(list)
    for each in unfit:
        excused[each.pid].append(each)
    found = []
    for change in changes:
        pid = pid_of(change.holder)
        if pid is None or change.new in _LEFT_TO_THE_WORKER:
            continue
        if change.new in HELD and change.worker == change.holder:
            # its worker has it still: it was marked as running
            continue
        run = ran.get((change.task_id, change.dispatch, pid))
        if run is None or (run.until is not None and run.until <= change.at):
            # the worker has never begun it, or an attempt has ended by itself
            continue
        if not any(each.since <= change.at <= each.until for each in excused[pid]):
            found.append(change)
    return found


def at_once(runs: Iterable[Run], unfit: Iterable[Unfit]) -> list[tuple[Run, Run]]:
    """Pairs of runs of one task at the same time. A run ends here when its worker becomes unfit."""
    spans: defaultdict[int, list[tuple[float, float, Run]]] = defaultdict(list)
    periods = list(unfit)
    for run in runs:
        ends = [each.since for each in periods if each.pid == run.worker and run.at <= each.until]
        until = min([float("inf") if run.until is None else run.until, *ends])
        if until > run.at:
            spans[run.task_id].append((run.at, until, run))
    found = []
    for of_task in spans.values():
        _, latest, last = min(of_task)
        for since, until, run in sorted(of_task)[1:]:
            if since < latest:
                found.append((last, run))
            if until > latest:
                latest, last = until, run
    return found


def unexplained(changes: Iterable[Change], workers: Iterable[WorkerChange]) -> list[Change]:
    """Lost attempts that were spent although their task was neither the culprit, nor the only suspect there, nor lost
    for the fourth time, nor had only one attempt."""
    culprits = {(w.name, w.culprit_task, w.culprit_dispatch) for w in workers if w.culprit_task is not None}
    with_culprit = {name for name, _, _ in culprits}
    losses = [change for change in changes if change.lost]
    suspects = Counter((change.xact, change.holder) for change in losses if change.losses)
    found = []
    for change in losses:
        if not change.spent or change.losses >= 3 or change.max_attempts == 1:
            continue
        if change.holder in with_culprit:
            explained = (change.holder, change.task_id, change.dispatch) in culprits
        else:
            explained = bool(change.losses) and suspects[change.xact, change.holder] == 1
        if not explained:
            found.append(change)
    return found


def begun_again(runs: Sequence[Run], killed: Sequence[Killed]) -> list[float]:
    """Seconds from the death of a worker until the handler of each task that it was running began again, in ascending
    order; infinite for one that never did."""
    found = []
    for pid, at in killed:
        for run in runs:
            if run.worker == pid and run.at <= at and (run.until is None or run.until > at):
                later = (other.at - at for other in runs if other.task_id == run.task_id and other.at > at)
                found.append(min(later, default=float("inf")))
    return sorted(found)


def run_again(changes: Iterable[Change], killed: Sequence[Killed]) -> list[float]:
    """Seconds from the death of a worker until each of its tasks was assigned again, in ascending order.

    A server may assign tasks to a worker that is dead already: these count too. PostgreSQL may execute the last
    statements of the worker after its death: a task that it finished need not run again. A task that was never assigned
    again counts as infinite.
    """
    by_task = [list(group) for _, group in groupby(sorted(changes, key=lambda c: c.task_id), lambda c: c.task_id)]
    found = []
    for pid, at in killed:
        for history in by_task:
            had = [n for n, c in enumerate(history) if c.new in HELD and c.pid == pid and c.at <= at + SENT]
            after = history[had[-1] + 1 :] if had else []
            if had and not (after and (after[0].at <= at or after[0].new in TERMINAL)):
                found.append(next((c.at - at for c in after if c.new == "queued"), float("inf")))
    return sorted(found)
