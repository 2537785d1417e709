"""The watchdog's connection to PostgreSQL: it beats for its worker, gives back what a blocked worker has not begun, and
tells that the worker is gone.

It blocks, because the watchdog has no reactor, but never for long: not even if the server is stopped while the kernel
still acknowledges what is sent to it. Only psycopg2 is imported, so that the process stays small.
"""

from __future__ import annotations

import json
import select
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg2
from psycopg2 import extensions

from taskd.store.postgres.giving_back import given_back

CONNECT_SECONDS = 3.0
STATEMENT_SECONDS = 3.0
GRACE_SECONDS = 0.5
"""How long after the server's own timeout a statement is given up. A stopped server does not enforce its timeout."""

# A lost beat costs nothing, so it does not wait for the disk.
VOUCH = """
UPDATE workers SET beat = beat + 1, pid = pg_backend_pid(), seen_at = now(), stalled = nullif(%s, '')
WHERE name = %s AND state IN ('serving', 'draining')
    AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
RETURNING beat
"""
# No beat: servers must notice that a stopped worker is silent. They assign nothing to a worker with this text.
STOPPED = """
UPDATE workers SET stalled = %s
WHERE name = %s AND state IN ('serving', 'draining')
    AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
RETURNING beat
"""
# The worker may run again when this is executed, and that may be late. Then its reactor beats first, and begins nothing
# of what is given back here before that beat is accepted: so this has an effect only while the beat that the watchdog
# has made or seen is the last one, and the row of the worker is locked until what is given back is committed. The tasks
# are locked first, so a lock on them delays no beat. Whatever somebody else has locked is left to the next call: no
# deadlock.
GIVE_BACK = f"""
WITH begun AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)s::bigint[], %(dispatches)s::int[]) AS b (id, dispatch)
), given AS MATERIALIZED (
    SELECT t.id FROM tasks t
    WHERE t.held AND t.worker = %(name)s AND t.state <> 'running'
        AND (t.id, t.dispatch) NOT IN (SELECT id, dispatch FROM begun)
    ORDER BY t.id FOR UPDATE OF t SKIP LOCKED
), blocked AS MATERIALIZED (
    SELECT name FROM workers
    WHERE name = %(name)s AND beat = %(beat)s AND state IN ('serving', 'draining') AND (SELECT count(*) FROM given) > 0
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE tasks t SET {given_back("false")} FROM given, blocked WHERE t.id = given.id
"""
GONE = """
UPDATE workers SET state = 'gone', culprit = %s::json WHERE name = %s AND state IN ('serving', 'draining')
"""


class BeatConnection:
    """One connection, opened when it is needed. ``dsn`` has the keywords of psycopg2.

    Every method may raise psycopg2.Error, after which the next call connects again. ``patience`` is how long, in
    seconds, an answer may take beyond the server's own timeout."""

    def __init__(
        self,
        dsn: Mapping[str, str | int],
        *,
        statement_timeout: float = STATEMENT_SECONDS,
        patience: float = GRACE_SECONDS,
    ) -> None:
        self._dsn: Any = dsn
        self._timeout = statement_timeout
        self._patience = patience
        self._connection: extensions.connection | None = None

    def connect(self) -> extensions.connection:
        """The connection, opened if it is not open, so that a later call is quick."""
        if self._connection is None:
            options = (
                f"-c statement_timeout={int(self._timeout * 1000)} -c synchronous_commit=on -c tcp_user_timeout=8000"
            )
            connection = psycopg2.connect(
                **self._dsn,
                # psycopg2 offers no other way to bound the wait for an answer. Such a connection commits by itself.
                async_=True,
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
                tcp_user_timeout=8000,
                application_name="taskd watchdog",
                options=options,
            )
            try:
                _wait(connection, CONNECT_SECONDS)
            except psycopg2.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def vouch(self, name: str, stalled: str | None) -> int:
        """Beat for the worker. ``stalled`` says what blocks its reactor. Returns the number of this beat; 0 if the
        store counts the worker as dead."""
        return self._execute(VOUCH, (stalled or "", name))

    def stopped(self, name: str, stalled: str) -> int:
        """The worker is stopped, and its watchdog does not beat for it. Returns the number of its last beat; 0 if the
        store counts it as dead."""
        return self._execute(STOPPED, (stalled, name))

    def give_back(self, name: str, beat: int, begun: Sequence[tuple[int, int]]) -> int:
        """Give back, unspent, what this worker holds and has not begun. ``begun`` has the task and the dispatch of what
        it has. No effect unless ``beat`` is the number of the worker's last beat, and came over this connection: a
        crash of the database may undo a beat. Returns how many tasks were given back."""
        if self._connection is None:
            return 0
        ids, dispatches = [task_id for task_id, _ in begun], [dispatch for _, dispatch in begun]
        return self._execute(GIVE_BACK, {"name": name, "beat": beat, "ids": ids, "dispatches": dispatches})

    def gone(
        self, name: str, culprit: tuple[int, int, str] | None, among: Sequence[tuple[int, int]] | None = None
    ) -> bool:
        """The worker is dead. ``culprit`` is the task, its dispatch and the reason, if one is known. ``among`` has the
        tasks, with their dispatches, that may have had to do with it: only these have a loss. None if nobody knows.
        False if the store knew already that it is dead."""
        found: dict[str, object] = {}
        if culprit is not None:
            found |= zip(("task_id", "dispatch", "reason"), culprit, strict=True)
        if among is not None:
            found["among"] = dict(among)
        return bool(self._execute(GONE, (json.dumps(found) if found else None, name)))

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _execute(self, statement: str, args: Any) -> int:
        """The number in the first row that the statement returns, 0 if there is none; without RETURNING, the number of
        rows that it has changed."""
        try:
            connection = self.connect()
            with connection.cursor() as cursor:
                cursor.execute(statement, args)
                _wait(connection, self._timeout + self._patience)
                if cursor.description is None:
                    return int(cursor.rowcount)
                row = cursor.fetchone()
                return int(row[0]) if row else 0
        except psycopg2.Error:
            self.close()
            raise


def _wait(connection: extensions.connection, seconds: float) -> None:
    """Wait until the connection is open or its statement is done."""
    deadline = time.monotonic() + seconds
    while (state := connection.poll()) != extensions.POLL_OK:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000) and time.monotonic() >= deadline:
            raise psycopg2.OperationalError(f"no answer within {seconds:g} s")
