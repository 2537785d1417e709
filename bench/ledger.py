"""Reads the results in the database: whether all tasks have ended as they should, and the sizes of the batches."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.harness import Failed, Figures
from tests.services import Postgres

Query = Callable[[str], Sequence[Sequence[Any]]]

# Each part repeats the predicate of a partial index of open tasks, so that the query costs nearly nothing.
_OPEN = """
SELECT 1 FROM tasks WHERE held
UNION ALL
SELECT 1 FROM tasks WHERE NOT held AND finished_at IS NULL AND due
UNION ALL
SELECT 1 FROM tasks WHERE NOT due AND finished_at IS NULL
LIMIT 1
"""
_ENDS = """
SELECT status, attempt, count(*), count(DISTINCT id) FROM tasks WHERE user_id IN ({users}) GROUP BY status, attempt
"""
# All rows that one transaction changes get the same time, so the number of distinct times is that of transactions.
_BATCHES = """
SELECT count(*), count(DISTINCT created_at), count(DISTINCT finished_at) FROM tasks WHERE user_id IN ({users})
"""


class Ledger:
    """Reads the table ``tasks`` without the code of taskd."""

    def __init__(self, query: Query, close: Callable[[], None]) -> None:
        self._query = query
        self.close = close

    def all_done(self) -> bool:
        """Whether every task of every user has ended."""
        return not self._query(_OPEN)

    def check(self, users: Sequence[int], tasks: int) -> None:
        """Raise Failed unless these users have exactly ``tasks`` tasks, all completed in the first attempt."""
        found = {(status, attempt): n for status, attempt, n, _ in self._query(_ENDS.format(users=_list(users)))}
        if found != {("Completada", 1): tasks}:
            shown = ", ".join(f"{n} {status} in attempt {attempt}" for (status, attempt), n in sorted(found.items()))
            raise Failed(f"wrong: {tasks} tasks should be Completada in attempt 1, but there are {shown or 'none'}")

    def batches(self, users: Sequence[int]) -> Figures:
        """Mean tasks in a transaction."""
        tasks, creates, finishes = self._query(_BATCHES.format(users=_list(users)))[0]
        return {"create": round(tasks / max(1, creates), 1), "finish": round(tasks / max(1, finishes), 1)}


def in_postgres(server: Postgres, database: str) -> Ledger:
    """The ledger of a distributed deployment."""
    connection = server.connect(database)
    cursor = connection.cursor()
    # A plan that looks expensive is compiled: that takes a quarter of a second of the time that is being measured.
    cursor.execute("SET enable_seqscan = off; SET jit = off")

    def query(sql: str) -> Sequence[Sequence[Any]]:
        cursor.execute(sql)
        rows: list[Sequence[Any]] = cursor.fetchall()
        return rows

    return Ledger(query, connection.close)


def in_sqlite(data: Path) -> Ledger:
    """The ledger of an embedded server, from the file in its data folder."""
    files = [file for file in data.iterdir() if file.is_file() and _is_sqlite(file)]
    if len(files) != 1:
        raise Failed(f"one SQLite file was expected in {data}, but there are: {', '.join(map(str, files)) or 'none'}")
    connection = sqlite3.connect(f"{files[0].as_uri()}?mode=ro", uri=True, timeout=10, isolation_level=None)

    def query(sql: str) -> Sequence[Sequence[Any]]:
        return connection.execute(sql).fetchall()

    return Ledger(query, connection.close)


def _is_sqlite(file: Path) -> bool:
    with contextlib.suppress(OSError), file.open("rb") as opened:
        return opened.read(15) == b"SQLite format 3"
    return False


def _list(users: Sequence[int]) -> str:
    return ",".join(map(str, users))
