"""The database that all processes share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from taskd.model.tasks import NewTask
from taskd.ports.tasks import Created
from taskd.store.sqlite import attempts
from taskd.store.sqlite.database import InlineRunner
from taskd.store.sqlite.store import SqliteStore
from tests.simulation.holders import WorkerChange
from tests.simulation.referee import Change

if TYPE_CHECKING:
    from tests.simulation.store import StoreLink
    from tests.simulation.world import World

_AUDIT = """
CREATE TEMP TABLE audit_tasks (task_id, task, old_state, state, old_attempt, attempt, max_attempts, old_version,
    version, old_dispatch, dispatch, old_worker, worker, old_losses, losses, old_returns, returns, old_started_at,
    old_held, held);
CREATE TEMP TABLE audit_workers (name, old_beat, beat, old_state, state, culprit);
CREATE TEMP TABLE audit_lost (task_id, dispatch, attempt);
CREATE TEMP TRIGGER new_task AFTER INSERT ON main.tasks BEGIN
    INSERT INTO audit_tasks VALUES (NEW.id, NEW.task, NULL, NEW.state, 0, NEW.attempt, NEW.max_attempts, 0, NEW.version,
        0, NEW.dispatch, NULL, NEW.worker, 0, NEW.losses, 0, NEW.returns, NULL, 0, NEW.held);
END;
CREATE TEMP TRIGGER changed_task AFTER UPDATE ON main.tasks
WHEN OLD.state <> NEW.state OR OLD.version <> NEW.version OR OLD.attempt <> NEW.attempt
    OR OLD.dispatch <> NEW.dispatch OR OLD.worker IS NOT NEW.worker OR OLD.finished_at IS NOT NEW.finished_at
    OR OLD.result IS NOT NEW.result OR OLD.error IS NOT NEW.error OR OLD.losses <> NEW.losses
    OR OLD.returns <> NEW.returns OR OLD.held <> NEW.held
BEGIN
    INSERT INTO audit_tasks VALUES (NEW.id, NEW.task, OLD.state, NEW.state, OLD.attempt, NEW.attempt, NEW.max_attempts,
        OLD.version, NEW.version, OLD.dispatch, NEW.dispatch, OLD.worker, NEW.worker, OLD.losses, NEW.losses,
        OLD.returns, NEW.returns, OLD.started_at, OLD.held, NEW.held);
END;
CREATE TEMP TRIGGER changed_worker AFTER UPDATE ON main.workers
WHEN OLD.beat <> NEW.beat OR OLD.state <> NEW.state BEGIN
    INSERT INTO audit_workers VALUES (NEW.name, OLD.beat, NEW.beat, OLD.state, NEW.state, NEW.culprit);
END;
CREATE TEMP TRIGGER deleted_worker AFTER DELETE ON main.workers BEGIN
    INSERT INTO audit_workers VALUES (OLD.name, OLD.beat, OLD.beat, OLD.state, 'deleted', OLD.culprit);
END;
CREATE TEMP TRIGGER recorded_attempt AFTER INSERT ON main.task_attempts BEGIN
    INSERT INTO audit_lost VALUES (NEW.task_id, NEW.dispatch, NEW.attempt);
END;
"""

_UNDO = """
UPDATE tasks SET state = ?, version = ?, started_at = ?, attempt = ?, dispatch = ?, worker = ?, held = ? WHERE id = ?
"""

ASYNC_COMMITS = frozenset({"add_usage", "begin", "beat", "vouch"})
"""Calls whose commit does not wait for the disk. A crash may undo those since the last commit that did."""

# The watchdog has its own connection, not a store. These are the statements of taskd/store/postgres/beats.py.
_VOUCH = """
UPDATE workers SET beat = beat + 1, seen_at = ?, stalled = ? WHERE name = ? AND state IN ('serving', 'draining')
RETURNING beat
"""
_STOPPED = "UPDATE workers SET stalled = ? WHERE name = ? AND state IN ('serving', 'draining') RETURNING beat"
BLOCKED = "SELECT 1 FROM workers WHERE name = ? AND beat = ? AND state IN ('serving', 'draining')"
_UNBEGUN = "SELECT id, dispatch FROM tasks WHERE held AND worker = ? AND state <> 'running' ORDER BY id"
_GONE = "UPDATE workers SET state = 'gone', culprit = ? WHERE name = ? AND state IN ('serving', 'draining')"

_WAITING = "SELECT id, run_at FROM tasks WHERE state = 'waiting' AND NOT held"


class Connection:
    """A connection to the database, as the database sees it. ``epoch`` is the database's when it was opened."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.closed = False


class _Unflushed(NamedTuple):
    """A commit that a crash may undo: its changes of tasks and beats."""

    changes: list[Change]
    beats: list[tuple[str, int]]


class _Runner(InlineRunner):
    """A runner with a public connection, for the audit."""

    @property
    def connection(self) -> Any:
        """The connection, outside of any transaction."""
        return self._connection


class Database:
    """The shared store. Every call is one transaction, executed at once, and the referee checks its changes."""

    def __init__(self, world: World) -> None:
        self._referee = world.referee
        self._holders = world.holders
        self._runner = _Runner()
        self._clock = world.clock
        self._changes = 0
        self._unflushed: list[_Unflushed] = []
        self.on_unflushed: Callable[[], object] = lambda: None
        """Called after a commit that a crash may undo."""
        self.store = SqliteStore(self._runner, world.clock, installation="simulation")
        self.up = True
        self.epoch = 1
        """Grows with each restart."""
        self.started = 0.0
        """The time of the last restart."""
        self.locked_until = 0.0
        """Until then somebody locks the table of the tasks."""
        self.read_only_until = 0.0
        """Until then nothing can be written."""
        self._read_only_since = 0.0
        self.links: list[StoreLink] = []
        self._beat_by: dict[str, Connection] = {}
        at_once(self.store.start())
        self._runner.connection.executescript(_AUDIT)

    def perform(self, who: str, name: str, *args: Any, again: bool = False) -> Any:
        """Execute a call of a process. ``again``: it may have been executed before. Raises what the store raises."""
        if name == "finish":
            worker, outcomes, repeated = args
            before = self._referee.current(outcome.task_id for outcome in outcomes)
            found = at_once(self.store.finish(worker, outcomes, repeated or again))
            self._referee.finished(worker, outcomes, repeated or again, before, found)
            self._audit(who, name, args)
            return found
        result = at_once(getattr(self.store, name)(*args))
        self._audit(who, name, args)
        return result

    def rehearse(self, rows: Sequence[NewTask], spare: int) -> Created:
        """What creating these tasks would return now. Changes nothing."""
        connection = self._runner.connection
        try:
            now = round(self._clock.seconds() * 1_000_000)
            create_tasks: Any = SqliteStore.create_tasks
            created: Created = create_tasks.__wrapped__(self.store, connection.cursor(), now, rows, spare)
            return created
        finally:
            connection.rollback()

    def query(self, text: str, *args: Any) -> list[Any]:
        """The rows of a statement."""
        rows: list[Any] = self._runner.connection.execute(text, args).fetchall()
        return rows

    def _audit(self, who: str, how: str, args: Sequence[Any]) -> None:
        connection = self._runner.connection
        if connection.total_changes == self._changes:
            return
        changes = [Change(*row) for row in self.query("SELECT * FROM audit_tasks ORDER BY rowid")]
        workers = [WorkerChange(*row) for row in self.query("SELECT * FROM audit_workers ORDER BY rowid")]
        recorded = {tuple(row) for row in self.query("SELECT * FROM audit_lost")}
        if how == "take_back":
            changes = self._judge(changes)
        self._forget_audit()
        if how not in ASYNC_COMMITS or (how == "begin" and args[2]):
            self._unflushed.clear()
        elif changes or workers:
            self._unflushed.append(_Unflushed(changes, [(w.name, w.old_beat) for w in workers]))
            if changes:
                self.on_unflushed()
        self._holders.workers_changed(who, how, workers)
        self._referee.changed(who, how, changes)
        if how in ("assign", "create_tasks"):
            self._holders.assigned(changes)
        elif how == "take_back":
            self._holders.taken_back(changes, recorded)
        elif how == "release":
            self._holders.released(who, changes)
        elif how == "give_back":
            self._holders.given_back(changes)

    def _judge(self, changes: Sequence[Change]) -> list[Change]:
        """The same, with what the watchdogs know of what had begun."""
        rows = self.query("SELECT name, culprit FROM workers WHERE culprit IS NOT NULL")
        begun = {name: json.loads(culprit).get("among") for name, culprit in rows}
        judged = []
        for c in changes:
            known = begun.get(c.old_worker)
            judged.append(c._replace(had_begun=known is None or known.get(str(c.task_id)) == c.old_dispatch))
        return judged

    def _forget_audit(self) -> None:
        connection = self._runner.connection
        for table in ("audit_tasks", "audit_workers", "audit_lost"):
            connection.execute(f"DELETE FROM {table}")
        connection.commit()
        self._changes = connection.total_changes

    # -- connections, and the watchdogs

    def is_open(self, connection: Connection) -> bool:
        """Whether the database still has this connection."""
        return self.up and not connection.closed and connection.epoch == self.epoch

    def beaten(self, name: str, connection: Connection) -> None:
        """This connection has sent the last beat of a worker."""
        self._beat_by[name] = connection

    def connected(self, name: str) -> bool:
        """Whether the connection that sent the worker's last beat is open."""
        connection = self._beat_by.get(name)
        return connection is not None and self.is_open(connection)

    def vouch(self, name: str, stalled: str | None, connection: Connection) -> int:
        """A watchdog beats for its worker."""
        now = round(self._clock.seconds() * 1_000_000)
        row = self._execute("vouch", name, lambda c: c.execute(_VOUCH, (now, stalled, name)).fetchone())
        if row is None:
            return 0
        self.beaten(name, connection)
        return int(row[0])

    def stopped(self, name: str, stalled: str) -> int:
        """A watchdog says that its worker is stopped."""
        row = self._execute("stopped", name, lambda c: c.execute(_STOPPED, (stalled, name)).fetchone())
        return 0 if row is None else int(row[0])

    def give_back(self, name: str, beat: int, begun: Sequence[tuple[int, int]]) -> int:
        """A watchdog gives back what its worker has not begun."""

        def give_back(connection: Any) -> int:
            if connection.execute(BLOCKED, (name, beat)).fetchone() is None:
                return 0
            rows = connection.execute(_UNBEGUN, (name,)).fetchall()
            unbegun = [key for key in rows if key not in begun]
            for key in unbegun:
                if not connection.execute(attempts.RELEASE, (False, *key, name)).fetchall():
                    connection.execute(attempts.DROP, (*key, name)).fetchall()
            return len(unbegun)

        return int(self._execute("give_back", name, give_back))

    def gone(self, name: str, culprit: tuple[int, int, str] | None, among: Sequence[tuple[int, int]] | None) -> bool:
        """A watchdog tells that its worker is dead."""
        found: dict[str, Any] = dict(zip(("task_id", "dispatch", "reason"), culprit, strict=True)) if culprit else {}
        if among is not None:
            found["among"] = dict(among)
        text = json.dumps(found) if found else None
        return bool(self._execute("gone", name, lambda c: c.execute(_GONE, (text, name)).rowcount))

    def _execute(self, how: str, name: str, work: Callable[[Any], Any]) -> Any:
        connection = self._runner.connection
        found = work(connection)
        connection.commit()
        self._audit(f"watchdog of {name}", how, (name,))
        return found

    # -- faults, and questions of the world

    def stop(self, lost: float = 0.0) -> None:
        """Stop the database. A crash undoes this share of the commits that were not on the disk."""
        self.up = False
        self._notify_links()
        connection = self._runner.connection
        for _ in range(round(lost * len(self._unflushed))):
            undone = self._unflushed.pop()
            for c in reversed(undone.changes):
                before = c.old_state, c.old_version, c.old_started_at, c.old_attempt, c.old_dispatch, c.old_worker
                connection.execute(_UNDO, (*before, c.old_held, c.task_id))
            for name, beat in reversed(undone.beats):
                connection.execute("UPDATE workers SET beat = ? WHERE name = ?", (beat, name))
            self._referee.undo(undone.changes)
        self._forget_audit()
        self._unflushed.clear()

    def start(self) -> None:
        """Start the database again."""
        if not self.up:
            self.up = True
            self.epoch += 1
            self.started = self._clock.seconds()
            self._holders.database_started()
        self._notify_links()

    def refuse_changes(self, seconds: float) -> None:
        """Take no changes for some seconds."""
        now = self._clock.seconds()
        if self.read_only_until <= now:
            self._read_only_since = now
        self.read_only_until = max(self.read_only_until, now + seconds)

    def take_changes(self, at_once: bool) -> None:
        """Take changes again, if that is due."""
        now = self._clock.seconds()
        if not self.read_only_until or (self.read_only_until > now and not at_once):
            return
        self._holders.database_writable(self._read_only_since)
        self.read_only_until, self._read_only_since = 0.0, now

    def waiting(self) -> list[tuple[int, float]]:
        """The tasks that wait for a worker, and from when on they may run."""
        return [(task_id, run_at / 1e6) for task_id, run_at in self.query(_WAITING)]

    def run_at(self, task_id: int) -> float:
        """From when on a task may run."""
        [(run_at,)] = self.query(f"SELECT run_at FROM tasks WHERE id = {task_id:d}")
        return float(run_at) / 1e6

    def close(self) -> None:
        """Close the database."""
        self._runner.close()

    def _notify_links(self) -> None:
        for link in self.links:
            link.changed()


def at_once(work: Any) -> Any:
    """The result of a coroutine that does not wait. Raises what it failed with."""
    results: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(results.append)
    [result] = results
    if isinstance(result, Failure):
        result.raiseException()
    return result
