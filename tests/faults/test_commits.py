"""Connections to PostgreSQL that break around a COMMIT."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import psycopg2
import pytest

from tests import services
from tests.faults.proxy import Moment, Proxy
from tests.faults.scenarios import play
from tests.faults.stage import Services
from tests.processes import eventually


def test_cuts_around_a_commit(own: Services) -> None:
    """Cuts before a statement is forwarded, while PostgreSQL executes it, and before its answer is forwarded."""
    assert play("commits_cut", own)["cuts"] == 12


@pytest.mark.parametrize("moment", Moment)
def test_the_proxy_cuts_when_it_says(own: Services, moment: Moment) -> None:
    """A forwarded statement is executed. The client never gets an answer, and other connections stay open."""
    table = services.unique("cut")
    own.postgres.query(f"CREATE TABLE {table} (n integer)")
    # close the proxy first, because psycopg2 cannot close a connection that waits for an answer
    with contextlib.ExitStack() as stack, Proxy(own.postgres.port) as proxy:
        first, second = (
            stack.enter_context(contextlib.closing(psycopg2.connect(**own.postgres.dsn() | {"port": proxy.port})))
            for _ in range(2)
        )
        for connection in (first, second):
            connection.autocommit = True
            connection.cursor().execute(f"PREPARE put AS INSERT INTO {table} VALUES ($1)")
        proxy.arm("put", moment)
        failed = threading.Event()
        threading.Thread(target=_execute, args=(first, failed), daemon=True).start()
        assert proxy.wait_hit(10)
        there = moment is not Moment.BEFORE
        eventually(lambda: own.postgres.query(f"SELECT n FROM {table}") == [(1,)] * there, 10)
        assert failed.wait(0.5 if moment is Moment.SILENT else 10) == (moment is not Moment.SILENT)
        second.cursor().execute("EXECUTE put (2)")
        assert own.postgres.query(f"SELECT count(*) FROM {table}") == [(1 + there,)]


def _execute(connection: Any, failed: threading.Event) -> None:
    try:
        connection.cursor().execute("EXECUTE put (1)")
    except psycopg2.OperationalError:
        failed.set()
