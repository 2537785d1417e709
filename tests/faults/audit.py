"""The audit of a scenario: a database trigger records every change of state, and this module checks the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from taskd.model.states import MOVES, TERMINAL, State
from tests.faults.load import Load
from tests.faults.worker import Run

# A repeated claim writes the same row again, which is no change and gets no record. But every write to a finished task
# gets one, even if it changes nothing.
TRIGGER = """
CREATE TABLE audit (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, task_id bigint NOT NULL, old text, new text NOT NULL,
    attempt integer NOT NULL, worker text, at double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp())
);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO audit (task_id, new, attempt, worker) VALUES (NEW.id, NEW.state, NEW.attempt, NEW.worker);
    ELSIF OLD.finished_at IS NOT NULL OR OLD.state <> NEW.state OR OLD.version <> NEW.version THEN
        INSERT INTO audit (task_id, old, new, attempt, worker)
        VALUES (NEW.id, OLD.state, NEW.state, NEW.attempt, NEW.worker);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE OF state ON tasks FOR EACH ROW EXECUTE FUNCTION audit();
"""

CHANGES = "SELECT task_id, old, new, attempt, worker, at FROM audit ORDER BY n"
TASKS = """
SELECT t.id, u.username, t.key, t.state, t.attempt, t.error, t.finished_at IS NOT NULL
FROM tasks t JOIN users u ON u.id = t.user_id
"""

SENT = 1.0
"""Seconds within which PostgreSQL executes what a process had sent before it died."""

_FIRST = {State.WAITING, State.QUEUED}


class Change(NamedTuple):
    """A change of state that the trigger recorded. ``at`` is in seconds since 1970."""

    task_id: int
    old: str | None
    new: str
    attempt: int
    worker: str | None
    at: float

    @property
    def pid(self) -> int | None:
        """The process id in the worker's name."""
        return int(self.worker.split(":")[1]) if self.worker else None


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


def read(query: Any) -> tuple[list[Change], list[Row]]:
    """All changes in order, and all tasks. ``query`` returns the rows of a statement."""
    return [Change(*row) for row in query(CHANGES)], [Row(*row) for row in query(TASKS)]


def figures(load: Load, changes: Sequence[Change], rows: Sequence[Row], runs: Sequence[Run]) -> dict[str, int]:
    """The figures that every scenario prints."""
    by_id = {row.id: row for row in rows}
    confirmed = {(c.user, c.key, c.task_id) for c in load.confirmations}
    lost = {c for c in confirmed if c[2] not in by_id or not by_id[c[2]].finished}
    false = {c for c in confirmed if c[2] not in by_id or (by_id[c[2]].user, by_id[c[2]].key) != c[:2]}
    begun = Counter(run.task_id for run in runs)
    attempts = Counter((run.task_id, run.dispatch, run.attempt) for run in runs)
    ends = Counter(change.task_id for change in changes if change.new in TERMINAL)
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
)
"""Figures that must be 0 unless the scenario expects another value."""


def _is_legal(change: Change) -> bool:
    new = State(change.new)
    return new in _FIRST if change.old is None else new in MOVES[State(change.old)]


def run_again(changes: Iterable[Change], killed: Sequence[Killed]) -> list[float]:
    """Seconds from the death of a worker until each of its tasks was running again, in ascending order.

    PostgreSQL may execute the last statements of the worker after its death: a claimed task counts as its task, and a
    task that it finished need not run again. A task that never ran again counts as infinite.
    """
    by_task = [list(group) for _, group in groupby(sorted(changes, key=lambda c: c.task_id), lambda c: c.task_id)]
    found = []
    for pid, at in killed:
        for history in by_task:
            had = [n for n, c in enumerate(history) if c.new == "running" and c.pid == pid and c.at <= at + SENT]
            after = history[had[-1] + 1 :] if had else []
            if had and not (after and (after[0].at <= at or after[0].new in TERMINAL)):
                found.append(next((c.at - at for c in after if c.new == "running"), float("inf")))
    return sorted(found)
