"""Cost of a million waiting tasks of one user for the other users: how fast tasks run with them and without.

In both cases, five users have no-op tasks in the backlog. They are assigned in fair order and run by one worker. The
rates are those of all five users until the tasks of the first four have ended. The fifth user has as many tasks as each
of the others in one case, and a million in the other. With ``--users``, other users have the million in equal parts.
Prints one line of JSON:

- ``empty`` and ``full``: the medians of the two cases; ``ratio``: the median of full / empty, round by round;
- ``ended_per_s``: tasks that end in a second, without the first of them;
- ``new_task_starts_s``: the longest time that one of ten new tasks of another user waited until it ran, while the rest
  of the backlog was processed; the worst of all rounds;
- ``server_grew_mib``: the growth of the server's resident memory since its start; the worst of all rounds;
- ``others_cpu``: the share of the machine's CPU time that other processes used. Above 0.1 the rates say little.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.harness import Deployment, Failed, Figures, Meter, Services, emit, folder, run_benchmark, wait_until
from taskd import __version__

USERS = 4
"""Users besides the one with the backlog."""

PROBES = 10
"""New tasks of another user that are measured, one after the other."""

WARM_UP = 0.15
"""The share of the tasks that does not count, as batches and caches still grow."""

# The tasks are already due, so they are in the backlog from the start.
_INSERT = """
INSERT INTO tasks (user_id, task, queue, payload, run_at)
SELECT %s, 't', %s, %s::json, now() - interval '1 minute' FROM generate_series(1, %s)
"""
_INSERT_USERS = """
INSERT INTO users (username, username_key, password) SELECT 'crowd-' || n, 'crowd-' || n, 'none'
FROM generate_series(1, %s) AS n RETURNING id
"""
_INSERT_FOR = """
INSERT INTO tasks (user_id, task, payload, queue, run_at)
SELECT user_id, 't', %s::json, %s, now() - interval '1 minute'
FROM unnest(%s::bigint[]) AS u (user_id), generate_series(1, %s)
"""
_OPEN = "SELECT FROM tasks WHERE user_id = ANY (%s) AND status = 'Procesando' LIMIT 1"
# The times of all users' tasks until the last task of these users. After that, the cases differ.
_TIMES = """
SELECT extract(epoch FROM finished_at)::float8 FROM tasks
WHERE finished_at >= to_timestamp(%s)
    AND finished_at <= (SELECT max(finished_at) FROM tasks WHERE user_id = ANY (%s) AND id > %s)
ORDER BY 1
"""
_WAITED = "SELECT extract(epoch FROM started_at - created_at)::float8 FROM tasks WHERE id = %s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the options say. Returns the exit status."""
    options = _options(arguments)
    return run_benchmark(lambda stack: _compare(options, stack))


def _compare(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    services = Services.start(stack)
    place = stack.enter_context(folder())
    without = stack.enter_context(_Case(place, "without", services))
    with_it = stack.enter_context(_Case(place, "with", services))
    filling = with_it.fill(options.backlog, options.seconds, options.users)
    rounds = []
    for n in range(options.repeat):
        # in alternating order, so that other load of the machine affects both
        cases = (without, with_it) if n % 2 == 0 else (with_it, without)
        found = {case: case.measure(options) for case in cases}
        rounds.append((found[without], found[with_it]))
    emit(_line(options, rounds) | {"fill_s": filling})


def _line(options: argparse.Namespace, rounds: Sequence[tuple[Figures, Figures]]) -> Figures:
    empty, full = (
        {name: round(statistics.median(each[case][name] for each in rounds), 3) for name in rounds[0][case]}
        for case in (0, 1)
    )
    rates = ("ended_per_s",)
    return {
        "system": "taskd",
        "version": __version__,
        "backlog": options.backlog,
        "users": options.users,
        "tasks": options.tasks,
        "rounds": options.repeat,
        "empty": empty,
        "full": full,
        "ratio": {name: round(statistics.median(b[name] / a[name] for a, b in rounds), 3) for name in rates},
        # the worst of all rounds
        "new_task_starts_s": max(each[1]["new_task_starts_s"] for each in rounds),
        "server_grew_mib": max(each[1]["server_grew_mib"] for each in rounds),
    }


class _Case(Deployment):
    """One server and one worker. They start for a measurement after all tasks were inserted, and stop after it."""

    def __init__(self, place: Path, name: str, services: Services) -> None:
        (place / name).mkdir()
        super().__init__(place / name, services)
        self._store: Any = None
        self._users: list[int] = []

    def __enter__(self) -> _Case:
        self.start()
        self._store = self.services.postgres.connect(self.database).cursor() if self.services else None
        self._store.execute("SET enable_seqscan = off")
        for n in range(USERS + 1):
            connection, user = self.client(f"user-{n}")
            connection.close()
            self._users.append(user)
        self._halt()
        return self

    def __exit__(self, *error: object) -> None:
        if self._store is not None:
            self._store.connection.close()
        self.stop()

    def fill(self, tasks: int, seconds: float, users: int) -> float:
        """Give the last user a backlog, or so many users an equal part of it. Returns the seconds that this took."""
        start = time.monotonic()
        if users == 1:
            self._insert(self._users[-1], tasks, seconds)
        else:
            ids = [user for (user,) in self._query(_INSERT_USERS, users)]
            self._query(_INSERT_FOR, json.dumps({"seconds": seconds}), self._env["RABBITMQ_QUEUE"], ids, tasks // users)
        return round(time.monotonic() - start, 1)

    def measure(self, options: argparse.Namespace) -> Figures:
        """Measure one round. Afterwards the backlog is smaller, and nothing else has changed."""
        each = options.tasks // (USERS + 1)
        last = self._query("SELECT coalesce(max(id), 0) FROM tasks")[0][0]
        others, big_user = self._users[:-1], self._users[-1]
        for user in others:
            self._insert(user, each)
        if not self._query(_OPEN, [big_user]):
            self._insert(big_user, each)
        self._query("VACUUM (ANALYZE) tasks")
        self._query("CHECKPOINT")
        self._start_server()
        server = psutil.Process(self._servers[0].pid)
        before = server.memory_info().rss
        # count from now on
        began = time.time()
        self._worker_daemons = [self._daemon("taskworker")]
        meter = Meter(self.pids)
        wait_until(lambda: not self._query(_OPEN, others), options.limit, "all tasks of the others have ended", 0.05)
        noise = meter.others(sum(meter.used().values()))
        figures: Figures = {
            "ended_per_s": self._rate(began, others, last, options.tasks),
            "new_task_starts_s": self._measure_new_tasks(),
            "server_grew_mib": round((server.memory_info().rss - before) / 2**20, 1),
            "others_cpu": noise,
        }
        self.check_alive()
        self._halt()
        return figures

    def _rate(self, began: float, users: Sequence[int], last: int, tasks: int) -> float:
        times = [at for (at,) in self._query(_TIMES, began, list(users), last)]
        counted = times[int(tasks * WARM_UP) :]
        if len(counted) < tasks / 10:
            raise Failed(f"only {len(times)} tasks were seen: too few to tell a rate; use more --tasks")
        return round(len(counted) / (counted[-1] - counted[0]))

    def _measure_new_tasks(self) -> float:
        """The longest time that a new task of another user waited until it ran, while the backlog is processed."""
        slowest = 0.0
        client, _ = self.client("another")
        with client:
            for _ in range(PROBES):
                answer = client.request("new_task", task="t", payload={"seconds": 0})
                if not answer["ok"] or not client.request("wait", task_ids=[answer["task_id"]], timeout=60)["done"]:
                    raise Failed(f"a new task of another user did not end within a minute: {answer}")
                slowest = max(slowest, self._query(_WAITED, answer["task_id"])[0][0])
        return round(slowest, 3)

    def _start_server(self) -> None:
        (port,) = self.ports
        self._servers = [self._daemon("taskserver", "--listen", f"tcp:{port}:interface=127.0.0.1")]
        self._wait_for(self._servers[0], port)

    def _halt(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
        self._servers, self._worker_daemons = [], []

    def _insert(self, user: int, tasks: int, seconds: float = 0.0) -> None:
        payload = json.dumps({"seconds": seconds})
        self._query(_INSERT, user, self._env["RABBITMQ_QUEUE"], payload, tasks)

    def _query(self, sql: str, *arguments: Any) -> list[Any]:
        self._store.execute(sql, arguments or None)
        return list(self._store.fetchall()) if self._store.description is not None else []


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.backlog", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--backlog", type=int, default=1_000_000, metavar="N", help="waiting tasks of the user with the backlog")
    add("--users", type=int, default=1, metavar="N", help="users who share the backlog equally (1)")
    add("--seconds", type=float, default=0.0, metavar="S", help="seconds that each of them takes (0)")
    add("--tasks", type=int, default=20_000, metavar="N", help="tasks of all five users that are measured")
    add("--repeat", type=int, default=5, metavar="N", help="rounds of both cases; the line has the medians")
    add("--limit", type=float, default=300.0, metavar="SECONDS", help="for each measurement")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
