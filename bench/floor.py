"""The floor: the same statements and messages in the same batches, without the code of taskd's server and worker.

Two bare processes (:mod:`bench.bare`) replace the server and the worker. There are no clients, accounts or protocol,
and no task is run. The floor is the cost of PostgreSQL, RabbitMQ and their drivers: no server of this design can be
faster. The difference from a run of taskd is the cost of taskd.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import time
from pathlib import Path
from typing import Any

from bench import ledger
from bench.harness import (
    Figures,
    Meter,
    Process,
    Services,
    folder,
    micros_a_task,
    milliseconds,
    run_python,
    wait_ready,
    wait_report,
    wait_until,
)
from taskd.store import migrations
from tests.services import unique

WARM_UP = 50
ONE_AT_A_TIME = 200


@dataclasses.dataclass(frozen=True)
class Batches:
    """Mean tasks in a transaction.

    The defaults are those of a run of 20,000 tasks by two clients with 200 requests each in flight; see README.md.
    """

    create: float = 100.0
    finish: float = 45.0


ONE_BY_ONE = Batches(create=1, finish=1)


def measure(services: Services, tasks: int, users: int, batches: Batches, limit: float) -> Figures:
    """Measure one run. Raises Failed."""
    figures: Figures = {
        "system": "floor",
        "version": None,
        "mode": "distributed",
        "floor": True,
        "tasks": tasks,
        "clients": 0,
        "in_flight": None,
        "batch_submit": None,
        "servers": 1,
        "workers": 1,
        "slots": None,
    }
    with _Pair(services, tasks, users, batches, sequential=False) as pair:
        throughput = pair.throughput(limit)
        measured = pair.books.batches(list(range(1, users + 1)))
    with _Pair(services, WARM_UP + ONE_AT_A_TIME, 1, ONE_BY_ONE, sequential=True) as pair:
        latency = pair.latency(limit)
    return figures | throughput | latency | {"batches": measured}


class _Pair:
    """A creating and a working process with their own database and queue."""

    def __init__(self, services: Services, tasks: int, users: int, batches: Batches, sequential: bool) -> None:
        self._services = services
        self._tasks = tasks
        self._users = users
        self._batches = batches
        self._sequential = sequential
        self._queue = unique("floor")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Pair:
        with self._stack:
            place = self._stack.enter_context(folder())
            database = self._services.postgres.create_database()
            self._stack.callback(self._services.postgres.drop_database, database)
            self._create_tables(database)
            self.books = ledger.in_postgres(self._services.postgres, database)
            self._stack.callback(self.books.close)
            self._worker = self._start(place, "work", database)
            self._creator = self._start(place, "create", database)
            wait_ready([self._worker, self._creator])
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def throughput(self, limit: float) -> Figures:
        """Create and finish all tasks as fast as possible."""
        pids = {"server": [self._creator.pid], "worker": [self._worker.pid], **self._services.pids}
        meter, start = Meter(pids), time.monotonic()
        self._creator.send(signal.SIGUSR1)
        report = wait_report(self._creator, limit)
        end = wait_until(self._done, limit, "all tasks are Completada", pause=0.02)
        used = meter.used()
        others = meter.others(sum(used.values()))
        self.books.check(list(range(1, self._users + 1)), self._tasks)
        return {
            "confirmed_per_s": round(self._tasks / (report["confirmed_at"] - start)),
            "end_to_end_per_s": round(self._tasks / (end - start)),
            "cpu_us_per_task": micros_a_task(used | {"clients": 0.0}, self._tasks),
            "others_cpu": others,
        }

    def latency(self, limit: float) -> Figures:
        """Create and finish one task after the other."""
        self._creator.send(signal.SIGUSR1)
        report = wait_report(self._creator, limit)
        wait_until(self._done, limit, "all tasks are Completada")
        self.books.check([1], self._tasks)
        timed = slice(WARM_UP, None)
        return milliseconds(report["completed"][timed], "latency_") | milliseconds(
            report["confirmed"][timed], "confirm_"
        )

    def _done(self) -> bool:
        for process in (self._creator, self._worker):
            # This raises if the process has failed.
            if process.returncode is not None:
                wait_ready([process])
        return self.books.all_done()

    def _create_tables(self, database: str) -> None:
        self._services.postgres.query(migrations.CREATE_TABLE, database=database)
        for migration in migrations.load("postgres"):
            self._services.postgres.query(migration.sql, database=database)

    def _start(self, place: Path, role: str, database: str) -> Process:
        job: dict[str, Any] = {
            "dsn": self._services.postgres.dsn(database),
            "amqp": {
                "host": self._services.rabbitmq.host,
                "port": self._services.rabbitmq.port,
                "user": self._services.rabbitmq.user,
                "password": self._services.rabbitmq.password,
            },
            "queue": self._queue,
            "tasks": self._tasks,
            "users": self._users,
            "sequential": self._sequential,
            **dataclasses.asdict(self._batches),
        }
        file = place / f"{role}.json"
        file.write_text(json.dumps(job))
        process = run_python(place, role, "-m", "bench.bare", role, str(file))
        self._stack.callback(process.dispose)
        return process
