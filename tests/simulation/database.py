"""The database that all processes share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from taskd.model.tasks import NewTask, Route, Task
from taskd.store.sqlite.store import InlineRunner, SqliteStore
from tests.simulation.referee import Change

if TYPE_CHECKING:
    from tests.simulation.store import StoreLink
    from tests.simulation.world import World

_FOREVER = 2**62
"""When a settled row that is kept for a while was published."""

_AUDIT = f"""
CREATE TEMP TABLE audit (task_id, task, old_state, state, old_attempt, attempt, max_attempts, old_version, version,
    old_dispatch, dispatch, worker, old_worker, old_lease_until, old_started_at, old_dispatched_at);
CREATE TEMP TABLE settled (id, task_ids);
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
CREATE TEMP TRIGGER deleted_row AFTER DELETE ON main.outbox WHEN coalesce(OLD.published_at, 0) <> {_FOREVER} BEGIN
    INSERT INTO settled VALUES (OLD.id, OLD.task_ids);
END;
CREATE TEMP TRIGGER settled_row AFTER UPDATE ON main.outbox WHEN NEW.published_at = {_FOREVER} BEGIN
    INSERT INTO settled VALUES (NEW.id, NEW.task_ids);
END;
"""

_UNDO = """
UPDATE tasks SET state = ?, attempt = ?, version = ?, dispatch = ?, worker = ?, lease_until = ?, started_at = ?,
    dispatched_at = ? WHERE id = ?
"""

_RELAXED = frozenset({"claim", "dispatch"})
"""Calls whose commit does not wait for the disk. Those since the last commit that did may be undone by a crash."""

_ELSEWHERE = f"""
SELECT EXISTS (SELECT 1 FROM outbox, json_each(task_ids) WHERE value = ? AND coalesce(published_at, 0) <> {_FOREVER})
"""


class _Runner(InlineRunner):
    """Hands out its connection, for the referee."""

    @property
    def connection(self) -> Any:
        """The connection, outside of any transaction."""
        return self._connection


class Database:
    """The truth. Every call is one transaction, done at once; the referee hears of what it changed."""

    def __init__(self, world: World) -> None:
        self._referee = world.referee
        self._runner = _Runner()
        self._clock = world.clock
        self._changes = 0
        self._unflushed: list[tuple[list[Change], str]] = []
        """What a crash may undo: changes and, of a dispatch, its batch."""
        self.on_unflushed: Callable[[], object] = lambda: None
        """Called when there is something that a crash would undo."""
        self.store = SqliteStore(self._runner, world.clock)
        self.up = True
        self.links: list[StoreLink] = []
        at_once(self.store.start())
        self._runner.connection.executescript(_AUDIT)

    def perform(self, who: str, name: str, *args: Any, again: bool = False) -> Any:
        """Do a call, for a process; ``again`` when it may have been done before. Raises what the store raises."""
        if name == "finish":
            worker, outcomes, repeated = args
            before = self._referee.present(outcome.task_id for outcome in outcomes)
            found = at_once(self.store.finish(worker, outcomes, repeated or again))
            self._referee.finished(worker, outcomes, repeated or again, before, found)
            self._audit(who, name, args)
            return found
        result = at_once(getattr(self.store, name)(*args))
        if again and name in ("create_tasks", "dispatch"):
            # as the store of many servers does: the row will outlive its settling, lest a straggler come after it
            self.query("UPDATE outbox SET published_at = created_at WHERE id = ? AND published_at IS NULL", args[0])
            self._runner.connection.commit()
        self._audit(who, name, args)
        if name == "claim":
            self._referee.claimed(args[0], args[2], result)
        return result

    def rehearse(self, batch: str, rows: Sequence[NewTask], settled: Sequence[str]) -> Sequence[Task]:
        """What creating tasks would return now. Nothing is done."""
        connection = self._runner.connection
        try:
            return self.store._create_tasks(connection.cursor(), batch, rows, settled)
        finally:
            connection.rollback()

    def query(self, text: str, *args: Any) -> list[Any]:
        """Rows of a statement of the referee's."""
        rows: list[Any] = self._runner.connection.execute(text, args).fetchall()
        return rows

    def _audit(self, who: str, how: str, args: Sequence[Any]) -> None:
        connection = self._runner.connection
        if connection.total_changes == self._changes:
            return
        changes = [Change(*row) for row in self.query("SELECT * FROM audit ORDER BY rowid")]
        settled = self.query("SELECT * FROM settled ORDER BY rowid")
        connection.execute("DELETE FROM audit")
        connection.execute("DELETE FROM settled")
        connection.commit()
        self._changes = connection.total_changes
        if how not in _RELAXED:
            self._unflushed.clear()
        elif changes:
            self._unflushed.append((changes, args[0] if how == "dispatch" else ""))
            self.on_unflushed()
        self._referee.changed(who, how, changes)
        for batch, task_ids in settled:
            self._referee.settled(batch, json.loads(task_ids), self._in_outbox)

    def _in_outbox(self, task_id: int) -> bool:
        return bool(self.query(_ELSEWHERE, task_id)[0][0])

    # -- what the world does to it and asks of it

    def stop(self, lost: float = 0.0) -> None:
        """Nobody reaches it. It may have crashed, and lose this share of what was not on the disk yet."""
        self.up = False
        self._tell()
        connection = self._runner.connection
        for _ in range(round(lost * len(self._unflushed))):
            changes, batch = self._unflushed.pop()
            for c in reversed(changes):
                old = (c.old_state, c.old_attempt, c.old_version, c.old_dispatch)
                old_times = (c.old_lease_until, c.old_started_at, c.old_dispatched_at)
                connection.execute(_UNDO, (*old, c.old_worker, *old_times, c.task_id))
            connection.execute("DELETE FROM outbox WHERE id = ?", (batch,))
            connection.execute("DELETE FROM audit")
            connection.execute("DELETE FROM settled")
            self._referee.undone(changes)
        connection.commit()
        self._unflushed.clear()
        self._changes = connection.total_changes

    def start(self) -> None:
        """Everybody does."""
        self.up = True
        self._tell()

    def unsettled(self) -> int:
        """Rows of the outbox that wait for a confirm."""
        return int(self.query(f"SELECT count(*) FROM outbox WHERE coalesce(published_at, 0) <> {_FOREVER}")[0][0])

    def queued(self) -> Mapping[Route, int]:
        """Queued tasks by route."""
        counts: Mapping[Route, int] = at_once(self.store.count_queued())
        return counts

    def close(self) -> None:
        """The game is over."""
        self._runner.close()

    def _tell(self) -> None:
        for link in self.links:
            link.changed()


def at_once(work: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    results: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(results.append)
    [result] = results
    if isinstance(result, Failure):
        result.raiseException()
    return result
