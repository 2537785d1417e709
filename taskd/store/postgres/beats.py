"""The watchdog's connection to PostgreSQL: it beats for its worker, and tells that the worker is gone.

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

CONNECT_SECONDS = 3.0
STATEMENT_SECONDS = 3.0
GRACE_SECONDS = 0.5
"""How long after the server's own timeout a statement is given up. A stopped server does not enforce its timeout."""

# A lost beat costs nothing, so it does not wait for the disk.
VOUCH = """
UPDATE workers SET beat = beat + 1, pid = pg_backend_pid(), seen_at = now(), stalled = nullif(%s, '')
WHERE name = %s AND state IN ('serving', 'draining')
    AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
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

    def vouch(self, name: str, stalled: str | None) -> bool:
        """Beat for the worker. ``stalled`` says what blocks its reactor. False if the store counts it as dead."""
        return self._execute(VOUCH, stalled or "", name)

    def gone(self, name: str, culprit: tuple[int, int, str] | None, among: Sequence[tuple[int, int]] = ()) -> bool:
        """The worker is dead. ``culprit`` is the task, its dispatch and the reason, if one is known. If not, ``among``
        has the tasks, with their dispatches, whose handlers were entered at the death: only these are suspects. False
        if the store knew already that it is dead."""
        found: dict[str, object] | None = None
        if culprit is not None:
            found = dict(zip(("task_id", "dispatch", "reason"), culprit, strict=True))
        elif among:
            found = {"among": [{"task_id": task_id, "dispatch": dispatch} for task_id, dispatch in among]}
        return self._execute(GONE, json.dumps(found) if found else None, name)

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _execute(self, statement: str, *args: object) -> bool:
        try:
            connection = self.connect()
            with connection.cursor() as cursor:
                cursor.execute(statement, args)
                _wait(connection, self._timeout + self._patience)
                return bool(cursor.rowcount)
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
