"""Times of the pages of ``get_tasks``: ``python -m bench.pages`` lists a user's 100,000 tasks beside 100,000 of others.

It fills a private PostgreSQL with fsync and a SQLite file with tasks in all states. Then it reads the first, a middle
and the last page of 100 and of 500 tasks with each filter, one page at a time. It prints one line of JSON for each
store: median and 99th percentile in milliseconds over all pages and for each case. The target is 10 ms a page.

The time is that of the store, from the call to the decoded tasks. The tables are neither vacuumed nor analysed after
the inserts, as after a peak of load.
"""

from __future__ import annotations

import argparse
import io
import json
import sqlite3
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet import task
from twisted.internet.defer import Deferred

from bench.harness import Figures, emit, folder, milliseconds
from taskd.model.states import SHOWN_STATES, STATUSES
from taskd.ports.store import IStore
from taskd.ports.tasks import Page, TaskQuery
from taskd.store.postgres.store import PostgresStore
from taskd.store.sqlite.database import open_sqlite
from taskd.store.sqlite.store import SqliteStore
from tests.services import Postgres

TARGET_MS = 10.0
LIMITS = (100, 500)
OWNER = 1
OTHERS = 100
IN_FLIGHT = 2000
"""How many of the newest tasks are queued or running: as many as some workers hold."""

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
FILTERS: dict[str, dict[str, str]] = {
    "all": {},
    **{f"status={status}": {"status": status} for status in STATUSES},
    **{f"state={state}": {"state": state} for state in SHOWN_STATES},
    "kind=simulate": {"kind": "simulate"},
    "kind=rare": {"kind": "rare"},
    "kind=none": {"kind": "none"},
    "kind=rare status=Fallida": {"kind": "rare", "status": "Fallida"},
}


class Row(NamedTuple):
    """A stored task. Times are in seconds after START."""

    user_id: int
    task: str
    kind: str
    state: str
    due: bool
    attempt: int
    worker: str | None
    held: bool
    run_at: float
    finished_at: float | None
    result: str | None


COLUMNS = (*Row._fields, "created_at")


def rows(tasks: int) -> Iterator[Row]:
    """``tasks`` tasks of the owner, and after each of them one of another user, from the oldest to the newest."""
    kinds = ("simulate", "report", "simulate", "simulate", "mail")
    for n in range(2 * tasks):
        mine, k = n % 2 == 0, n // 2
        user = OWNER if mine else 2 + k % OTHERS
        kind = "rare" if k % 2000 == 0 else kinds[k % 5]
        text, at = f"task number {n} of an ordinary length", n / 1000
        if n >= 2 * tasks - IN_FLIGHT:
            state = "running" if k % 8 == 0 else "queued"
            yield Row(user, text, kind, state, True, 1, "worker", True, at, None, None)
        elif k % 10 < 6:
            result = json.dumps({"text": "x" * (5000 if k % 100 == 0 else 50)})
            yield Row(user, text, kind, "completed", True, 1, "worker", False, at, at + 2, result)
        elif k % 10 < 8:
            state = "failed" if k % 10 == 6 else "cancelled"
            yield Row(user, text, kind, state, True, 3, "worker", False, at, at + 2, None)
        elif k % 100 == 8:
            yield Row(user, text, kind, "waiting", False, 0, None, False, at + 1e9, None, None)
        else:
            yield Row(user, text, kind, "waiting", True, 2 if k % 50 == 9 else 0, None, False, at, None, None)


def fill_sqlite(file: Path, tasks: int) -> None:
    """Insert the tasks without the store."""

    def values() -> Iterator[tuple[Any, ...]]:
        def micros(seconds: float | None) -> int | None:
            return None if seconds is None else round((START.timestamp() + seconds) * 1e6)

        for n, row in enumerate(rows(tasks)):
            times = [micros(t) for t in (row.run_at, row.finished_at, n / 1000)]
            yield (*row[:8], *times[:2], row.result, times[2])

    connection = sqlite3.connect(file)
    users = [(n, f"u{n}", f"u{n}", "x", 0) for n in range(1, OTHERS + 2)]
    insert = "INSERT INTO users (id, username, username_key, password, created_at) VALUES (?, ?, ?, ?, ?)"
    connection.executemany(insert, users)
    marks = ", ".join("?" * len(COLUMNS))
    connection.executemany(f"INSERT INTO tasks ({', '.join(COLUMNS)}) VALUES ({marks})", values())
    connection.commit()
    connection.close()


def fill_postgres(server: Postgres, tasks: int) -> None:
    """Copy the tasks without the store."""

    def text(value: Any) -> str:
        return "\\N" if value is None else str(value).replace("\\", "\\\\")

    def moment(seconds: float | None) -> str | None:
        return None if seconds is None else (START + timedelta(seconds=seconds)).isoformat()

    lines = io.StringIO()
    for n, row in enumerate(rows(tasks)):
        times = [moment(t) for t in (row.run_at, row.finished_at, n / 1000)]
        values = (*row[:8], *times[:2], row.result, times[2])
        lines.write("\t".join(map(text, values)) + "\n")
    lines.seek(0)
    connection = server.connect()
    connection.cursor().copy_expert(f"COPY tasks ({', '.join(COLUMNS)}) FROM STDIN", lines)
    connection.close()


async def measure(store: IStore, name: str, tasks: int, repeats: int) -> Figures:
    """Measure one store."""
    ends = {"first": None, "middle": tasks, "last": 2 * 100}
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for position, before in ends.items():
            for limit in LIMITS:
                for what, wanted in FILTERS.items():
                    query = TaskQuery(limit, before, **wanted)
                    began = time.perf_counter()
                    page: Page = await store.list_tasks(OWNER, query)
                    seconds = time.perf_counter() - began
                    times.setdefault(f"{position} {limit} {what}", []).append(seconds)
                    if len(page.tasks) > limit:
                        raise RuntimeError(f"a page of {len(page.tasks)} tasks")
    cases = {case: milliseconds(seconds) for case, seconds in times.items()}
    total = milliseconds([seconds for case in times.values() for seconds in case])
    slowest = max(cases, key=lambda case: cases[case]["p50_ms"])
    return {
        "bench": "pages",
        "store": name,
        "tasks": tasks,
        "pages": repeats * len(cases),
        **total,
        "within_target": bool(cases[slowest]["p50_ms"] < TARGET_MS and total["p99_ms"] < TARGET_MS),
        "slowest": {"case": slowest, **cases[slowest]},
        "cases": cases,
    }


async def run(reactor: Any, tasks: int, repeats: int) -> None:
    """Measure both stores, one after the other."""
    server = Postgres()
    server.start()
    try:
        store = PostgresStore(server.dsn(), reactor)
        await store.start()
        fill_postgres(server, tasks)
        emit(await measure(store, "postgres", tasks, repeats))
        await store.stop()
    finally:
        server.stop()
    with folder() as place:
        file = place / "data" / "taskd.sqlite3"
        embedded = SqliteStore(open_sqlite(file, reactor), reactor)
        await embedded.start()
        fill_sqlite(file, tasks)
        emit(await measure(embedded, "sqlite", tasks, repeats))
        await embedded.stop()


def main() -> None:
    """Measure as the options say."""
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tasks", type=int, default=100_000, help="tasks of the user, and as many of other users")
    parser.add_argument("--repeats", type=int, default=40, help="reads of each page")
    options = parser.parse_args()
    task.react(lambda reactor: Deferred.fromCoroutine(run(reactor, options.tasks, options.repeats)))


if __name__ == "__main__":
    main()
