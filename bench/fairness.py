"""Whether users get equal shares of the slots, and how long a newcomer waits.

It reads from the database when each task began and ended, and computes from it what each user had of the slots. Prints
one line of JSON for each case:

- ``shares``: ten users with due work throughout, each with tasks of another length, from 0.05 to 10 seconds, on 100
  slots. ``jain`` is the least of Jain's index over all windows of 5 seconds, from one longest task after the last user
  has joined; 1 is perfectly fair.
- ``weights``: three users with the weights 1, 2 and 4 on 70 slots: ``error`` is the largest relative difference of a
  user's share in 30 seconds from what its weight says.
- ``kinds``: a user with 40 kinds beside a user with one: ``share`` is what the first one gets of all slot time; 0.5 is
  fair.
- ``newcomer``: one user has a backlog; ``waits_s`` are the times until a single task of another user begins. The tasks
  of the backlog take ``task_s`` each. With ``--before``, that user has just had tasks of this other length.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.fairness_handlers import KINDS
from bench.harness import Deployment, Failed, Figures, Services, emit, folder, run_benchmark, wait_until
from taskd import __version__
from taskd.protocol.limits import MAX_BATCH
from tests.slot_time import Span, jain, slot_seconds

LENGTHS = [round(0.05 * 200 ** (n / 9), 3) for n in range(10)]
"""Seconds that a task of each of the ten users takes: 0.05 to 10."""

BATCH = MAX_BATCH // 2
"""Tasks in one request, whose line is not too long."""

WINDOW = 5.0
STEP = 1.0


class Bench:
    """One deployment, and what is read from its database."""

    def __init__(self, deployment: Deployment, services: Services | None) -> None:
        self.deployment = deployment
        self._services = services
        self._names = 0

    def user(self, server: int = 0) -> tuple[Any, int]:
        """A new user's connection and id."""
        self._names += 1
        return self.deployment.client(f"user{self._names}", server % len(self.deployment.ports))

    def submit(
        self, client: Any, count: int, seconds: float, kinds: Sequence[str] = KINDS[:1], text: str = "t"
    ) -> list[int]:
        """Create tasks; their ids."""
        ids: list[int] = []
        for first in range(0, count, BATCH):
            some = range(first, min(count, first + BATCH))
            specs = [{"task": text, "kind": kinds[n % len(kinds)], "payload": {"seconds": seconds}} for n in some]
            reply = client.request("new_tasks", tasks=specs)
            if not reply["ok"]:
                raise Failed(f"not created: {reply}")
            ids += reply["task_ids"]
        return ids

    def query(self, sql: str) -> list[Any]:
        """The rows of a statement."""
        if self._services is not None:
            return list(self._services.postgres.query(sql, database=self.deployment.database))
        (file,) = self.deployment.data.glob("*.sqlite3")
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(sql).fetchall()

    def spans(self) -> list[Span]:
        """When each task held a slot. What still runs has no end yet."""
        if self._services is not None:
            first, last = (f"extract(epoch FROM {name})::float8" for name in ("started_at", "finished_at"))
        else:
            first, last = "started_at / 1e6", "finished_at / 1e6"
        rows = self.query(f"SELECT user_id, {first}, {last} FROM tasks WHERE started_at IS NOT NULL")
        return [Span(user, began, float("inf") if ended is None else ended) for user, began, ended in rows]

    def begun_at(self, task_id: int) -> float:
        """Seconds from the creation of a task until it began, once it has ended."""
        found: list[float] = []

        def ended() -> bool:
            names = ("started_at", "created_at")
            if self._services is not None:
                first, last = (f"extract(epoch FROM {name})::float8" for name in names)
            else:
                first, last = (f"{name} / 1e6" for name in names)
            sql = f"SELECT {first} - {last} FROM tasks WHERE id = {task_id} AND finished_at IS NOT NULL"
            found.extend(wait for (wait,) in self.query(sql))
            return bool(found)

        wait_until(ended, 120, "the newcomer's task has ended", 0.05)
        return round(found[0], 3)


def shares(bench: Bench, slots: int, seconds: float) -> Figures:
    """Ten users with tasks of different lengths."""
    users = []
    for n, length in enumerate(LENGTHS):
        client, user = bench.user(n)
        bench.submit(client, round(1.5 * slots / 5 * (seconds + max(LENGTHS)) / length) + slots, length)
        users.append(user)
    joined = time.time()
    time.sleep(max(LENGTHS) + seconds + 1)
    spans, lowest, at = bench.spans(), 1.0, 0.0
    since = joined + max(LENGTHS)
    idle = 0.0
    while since + WINDOW <= joined + max(LENGTHS) + seconds:
        had = slot_seconds(spans, since, since + WINDOW)
        if (index := jain([had.get(user, 0.0) for user in users])) < lowest:
            lowest, at = index, since - joined
        idle = max(idle, 1 - sum(had.values()) / (slots * WINDOW))
        since += STEP
    return {"jain": round(lowest, 4), "at_s": round(at), "idle": round(idle, 3), "slots": slots}


def weights(bench: Bench, slots: int, seconds: float, set_weight: Callable[[int, float], None]) -> Figures:
    """Three users with different weights."""
    wanted: dict[int, float] = {}
    for n, weight in enumerate((1, 2, 4)):
        client, user = bench.user(n)
        set_weight(user, weight)
        bench.submit(client, round(2 * slots * (seconds + 10)), 0.5)
        wanted[user] = weight
    time.sleep(5)
    since = time.time()
    time.sleep(seconds + 1)
    had = slot_seconds(bench.spans(), since, since + seconds)
    total = sum(had.values())
    errors = [had.get(u, 0.0) / total / (weight / sum(wanted.values())) - 1 for u, weight in wanted.items()]
    return {"error": round(max(map(abs, errors)), 4), "idle": round(1 - total / (slots * seconds), 3), "slots": slots}


def kinds(bench: Bench, slots: int, seconds: float) -> Figures:
    """A user with 40 kinds beside a user with one."""
    many, first = bench.user(0)
    one, second = bench.user(1)
    count = round(2 * slots * (seconds + 10) / 0.5)
    bench.submit(many, count, 0.5, KINDS[1:])
    bench.submit(one, count, 0.5)
    time.sleep(5)
    since = time.time()
    time.sleep(seconds + 1)
    had = slot_seconds(bench.spans(), since, since + seconds)
    return {"share": round(had.get(first, 0.0) / sum(had.values()), 4), "users": [first, second], "slots": slots}


def newcomer(bench: Bench, backlog: int, length: float, probes: int, before: float, slots: int) -> Figures:
    """A single task of a new user behind somebody's backlog."""
    big, _ = bench.user(0)
    if before:
        # so many that some still wait when the others come
        bench.submit(big, min(30_000, round(3 * slots / before)), before)
    bench.submit(big, backlog, length, text="backlog")
    if before:
        begun = "SELECT 1 FROM tasks WHERE task = 'backlog' AND started_at IS NOT NULL LIMIT 1"
        wait_until(lambda: bool(bench.query(begun)), 60, "the backlog begins", 0.02)
    else:
        time.sleep(max(2.0, 3 * length))
    waits = []
    for n in range(probes):
        client, _ = bench.user(n)
        (task_id,) = bench.submit(client, 1, 0.01)
        waits.append(bench.begun_at(task_id))
    return {"backlog": backlog, "before_s": before, "task_s": length, "waits_s": waits, "worst_s": max(waits)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the options say. Returns the exit status."""
    options = _options(arguments)
    return run_benchmark(lambda stack: _play_cases(options, stack))


def _play_cases(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    services = None if options.embedded else Services.start(stack)
    for case in options.cases:
        _play(case, options, services)


def _play(case: str, options: argparse.Namespace, services: Services | None) -> None:
    slots = options.slots or {"weights": 70, "newcomer": 4}.get(case, 100)
    env = {"TASKD_HANDLERS": "bench.fairness_handlers", "TASKD_BCRYPT_ROUNDS": "4", "TASKD_REGISTRATIONS_PER_HOUR": "0"}
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(folder())
        deployment = Deployment(place, services, servers=options.servers, slots=slots, env=env)
        stack.callback(deployment.stop)
        deployment.start()
        bench = Bench(deployment, services)
        if case == "shares":
            figures = shares(bench, slots, options.seconds)
        elif case == "weights":
            figures = weights(bench, slots, options.seconds, _weigh(services, deployment))
        elif case == "kinds":
            figures = kinds(bench, slots, options.seconds)
        else:
            figures = newcomer(bench, options.backlog, options.length, options.probes, options.before, slots)
        deployment.check_alive()
    mode = "embedded" if services is None else "distributed"
    emit({"system": "taskd", "version": __version__, "mode": mode, "servers": options.servers, "case": case} | figures)


def _weigh(services: Services | None, deployment: Deployment) -> Callable[[int, float], None]:
    def set_weight(user: int, weight: float) -> None:
        if services is None:
            raise Failed("the case weights needs PostgreSQL: leave out --embedded")
        sql = "UPDATE users SET weight = %s WHERE id = %s"
        services.postgres.query(sql, (weight, user), database=deployment.database)

    return set_weight


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fairness", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    all_cases = ("shares", "weights", "kinds", "newcomer")
    add("cases", nargs="*", default=all_cases, metavar="CASE", help=f"some of {', '.join(all_cases)}; all")
    add("--seconds", type=float, default=30.0, metavar="S", help="how long shares are observed (30)")
    add("--slots", type=int, metavar="N", help="slots of the worker (100; weights: 70, newcomer: 4)")
    add("--servers", type=int, default=1, metavar="N", help="servers (1)")
    add("--embedded", action="store_true", help="one server on SQLite with its own worker")
    add("--backlog", type=int, default=3000, metavar="N", help="tasks of the user before the newcomer (3000)")
    add("--length", type=float, default=0.2, metavar="S", help="seconds that each of them takes (0.2)")
    add(
        "--before",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds that the same user's tasks took before (0: none)",
    )
    add("--probes", type=int, default=5, metavar="N", help="newcomers, one after the other (5)")
    options = parser.parse_args(arguments)
    if unknown := [case for case in options.cases if case not in all_cases]:
        parser.error(f"there is no case {unknown[0]}: choose from {', '.join(all_cases)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
