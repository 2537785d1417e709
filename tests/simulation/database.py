"""The database that all processes share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from taskd.model.tasks import NewTask, Route, Task
from taskd.store.sqlite.database import InlineRunner
from taskd.store.sqlite.rows import FOREVER
from taskd.store.sqlite.store import SqliteStore
from tests.simulation.referee import Change

if TYPE_CHECKING:
    from tests.simulation.store import StoreLink
    from tests.simulation.world import World

_AUDIT = f"""
CREATE TEMP TABLE audit (task_id, task, old_state, state, old_attempt, attempt, max_attempts, old_version, version,
    old_dispatch, dispatch, worker, old_worker, old_lease_until, old_started_at, old_dispatched_at);
CREATE TEMP TABLE removed (id, task_ids);
CREATE TEMP TRIGGER new_task AFTER INSERT ON main.tasks BEGIN
    INSERT INTO audit VALUES (NEW.id, NEW.task, NULL, NEW.state, 0, NEW.attempt, NEW.max_attempts, 0, NEW.version,
        0, NEW.dispatch, NEW.worker, NULL, NULL, NULL, NULL);
END;
CREATE TEMP TRIGGER changed_task AFTER UPDATE ON main.tasks
WHEN OLD.state <> NEW.state OR OLD.version <> NEW.version OR OLD.attempt <> NEW.attempt
    OR OLD.dispatch <> NEW.dispatch OR OLD.worker IS NOT NEW.worker OR OLD.finished_at IS NOT NEW.finished_at
    OR OLD.result IS NOT NEW.result OR OLD.error IS NOT NEW.error
BEGIN
    INSERT INTO audit VALUES (NEW.id, NEW.task, OLD.state, NEW.state, OLD.attempt, NEW.attempt, NEW.max_attempts,
        OLD.version, NEW.version, OLD.dispatch, NEW.dispatch, NEW.worker, OLD.worker, OLD.lease_until,
        OLD.started_at, OLD.dispatched_at);
END;
CREATE TEMP TRIGGER deleted_row AFTER DELETE ON main.outbox WHEN coalesce(OLD.published_at, 0) <> {FOREVER} BEGIN
    INSERT INTO removed VALUES (OLD.id, OLD.task_ids);
END;
CREATE TEMP TRIGGER published_row AFTER UPDATE ON main.outbox WHEN NEW.published_at = {FOREVER} BEGIN
    INSERT INTO removed VALUES (NEW.id, NEW.task_ids);
END;
"""

_UNDO = """
UPDATE tasks SET state = ?, attempt = ?, version = ?, dispatch = ?, worker = ?, lease_until = ?, started_at = ?,
    dispatched_at = ? WHERE id = ?
"""

_ASYNC_COMMITS = frozenset({"claim", "dispatch"})
"""Calls whose commit does not wait for the disk. A crash may undo those since the last commit that did."""

_IN_OUTBOX = f"""
SELECT EXISTS (SELECT 1 FROM outbox, json_each(task_ids) WHERE value = ? AND coalesce(published_at, 0) <> {FOREVER})
"""


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
        self._runner = _Runner()
        self._clock = world.clock
        self._changes = 0
        self._unflushed: list[tuple[list[Change], str]] = []
        """The commits that a crash may undo: their changes, and the batch of a dispatch."""
        self.on_unflushed: Callable[[], object] = lambda: None
        """Called after a commit that a crash may undo."""
        self.store = SqliteStore(self._runner, world.clock)
        self.up = True
        self.links: list[StoreLink] = []
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
        if again and name in ("create_tasks", "dispatch"):
            # like the PostgreSQL store, keep the row after it is published: a late copy of the call may still arrive
            self.query("UPDATE outbox SET published_at = created_at WHERE id = ? AND published_at IS NULL", args[0])
            self._runner.connection.commit()
        self._audit(who, name, args)
        if name == "claim":
            self._referee.claimed(args[0], args[2], result)
        return result

    def rehearse(self, batch: str, rows: Sequence[NewTask], settled: Sequence[str]) -> Sequence[Task]:
        """What creating these tasks would return now. Changes nothing."""
        connection = self._runner.connection
        try:
            now = round(self._clock.seconds() * 1_000_000)
            create_tasks: Any = SqliteStore.create_tasks
            tasks: Sequence[Task] = create_tasks.__wrapped__(self.store, connection.cursor(), now, batch, rows, settled)
            return tasks
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
        changes = [Change(*row) for row in self.query("SELECT * FROM audit ORDER BY rowid")]
        removed = self.query("SELECT * FROM removed ORDER BY rowid")
        connection.execute("DELETE FROM audit")
        connection.execute("DELETE FROM removed")
        connection.commit()
        self._changes = connection.total_changes
        if how not in _ASYNC_COMMITS:
            self._unflushed.clear()
        elif changes:
            self._unflushed.append((changes, args[0] if how == "dispatch" else ""))
            self.on_unflushed()
        self._referee.changed(who, how, changes)
        for batch, task_ids in removed:
            self._referee.row_deleted(batch, json.loads(task_ids), self._in_outbox)

    def _in_outbox(self, task_id: int) -> bool:
        return bool(self.query(_IN_OUTBOX, task_id)[0][0])

    # -- faults, and questions of the world

    def stop(self, lost: float = 0.0) -> None:
        """Stop the database. A crash undoes this share of the commits that were not on the disk."""
        self.up = False
        self._notify_links()
        connection = self._runner.connection
        for _ in range(round(lost * len(self._unflushed))):
            changes, batch = self._unflushed.pop()
            for c in reversed(changes):
                old = (c.old_state, c.old_attempt, c.old_version, c.old_dispatch)
                old_times = (c.old_lease_until, c.old_started_at, c.old_dispatched_at)
                connection.execute(_UNDO, (*old, c.old_worker, *old_times, c.task_id))
            connection.execute("DELETE FROM outbox WHERE id = ?", (batch,))
            connection.execute("DELETE FROM audit")
            connection.execute("DELETE FROM removed")
            self._referee.undo(changes)
        connection.commit()
        self._unflushed.clear()
        self._changes = connection.total_changes

    def start(self) -> None:
        """Start the database again."""
        self.up = True
        self._notify_links()

    def unpublished_rows(self) -> int:
        """The number of outbox rows that are not marked as published."""
        return int(self.query(f"SELECT count(*) FROM outbox WHERE coalesce(published_at, 0) <> {FOREVER}")[0][0])

    def queued(self) -> Mapping[Route, int]:
        """The number of queued tasks by route."""
        counts: Mapping[Route, int] = at_once(self.store.count_queued())
        return counts

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
