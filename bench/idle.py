"""What daemons cost that have nothing to do: ``python -m bench.idle``.

Prints one line of JSON for each case:

- ``idle``: two servers and a worker of 40 kinds in three queues. Now and then a delayed task becomes due. At the end,
  all queues in RabbitMQ are deleted.
- ``full``: two servers and two workers whose slots are full of long tasks, with 1,500 tasks that wait; ``without`` has
  the same figures before there was any task.

The figures:

- ``transactions_per_s``: transactions of all daemons in PostgreSQL, committed or not;
- ``cpu_percent``: percent of a core that the busiest daemon uses, its watchdog included;
- ``late_s``: for each delayed task, the seconds from its time until it began;
- ``healed_s``: seconds until all deleted queues are there again with their consumers;
- ``task_after_s``: seconds until a new task has ended after that.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence

from bench.fairness_handlers import KINDS
from bench.harness import (
    Deployment,
    Failed,
    Figures,
    Meter,
    Services,
    emit,
    folder,
    run_benchmark,
    time_tasks,
    wait_until,
)
from taskd import __version__
from taskd.protocol.limits import MAX_BATCH

QUEUES = ("slow", "nightly")
"""Besides that of the deployment."""

DELAYED = 2
LONG = 3600.0
WAITING = 1500
SLOTS = 100
SETTLE = 20.0
"""Seconds after a start or a flood that do not count. PostgreSQL counts the transactions of an idle connection up to
ten seconds late."""

# rabbitmqctl refuses to delete an exclusive queue
_DELETE_QUEUES = '[rabbit_amqqueue:delete(Q, false, false, <<"a test">>) || Q <- rabbit_amqqueue:list()].'
_TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"
_LATE = """
SELECT extract(epoch FROM started_at - run_at)::float8 FROM tasks WHERE task = 'delayed' AND finished_at IS NOT NULL
"""


class Bench:
    """One deployment, and its figures."""

    def __init__(self, services: Services, deployment: Deployment) -> None:
        self._services = services
        self.deployment = deployment

    def watch(self, seconds: float) -> Figures:
        """What the daemons cost in so many seconds."""
        began, before = time.monotonic(), self._transactions()
        meter = Meter({str(d.pid): [d.pid] for d in self.deployment.daemons})
        time.sleep(seconds)
        took, used = time.monotonic() - began, meter.used()
        return {
            "transactions_per_s": round((self._transactions() - before) / took, 2),
            "cpu_percent": round(100 * max(used.values()) / took, 2),
        }

    def lateness(self) -> list[float]:
        """How late the delayed tasks have begun."""
        rows = self._services.postgres.query(_LATE, database=self.deployment.database)
        if len(rows) != DELAYED:
            raise Failed(f"{len(rows)} of {DELAYED} delayed tasks have ended")
        return sorted(round(late, 2) for (late,) in rows)

    def heal(self) -> float:
        """Delete all queues; the seconds until as many are there again, with consumers."""
        rabbitmq = self._services.rabbitmq

        def consumed() -> int:
            lines = rabbitmq.ctl("list_queues", "name", "consumers").splitlines()
            return sum(line.split()[-1] != "0" for line in lines)

        before = consumed()
        if not before:
            raise Failed("no queue has a consumer")
        rabbitmq.ctl("eval", _DELETE_QUEUES)
        began = time.monotonic()
        return round(wait_until(lambda: consumed() >= before, 60, "the queues are there again") - began, 1)

    def run_one(self) -> float:
        """The seconds until a new task has ended."""
        client, _ = self.deployment.client("someone")
        return round(time_tasks(client, 1)[0], 3)

    def stop_all(self) -> int:
        """Let all tasks end, so that the workers can stop at once; returns how many were running."""
        sql = "UPDATE tasks SET finished_at = now(), state = 'cancelled' WHERE finished_at IS NULL RETURNING started_at"
        rows = self._services.postgres.query(sql, database=self.deployment.database)
        return sum(started is not None for (started,) in rows)

    def _transactions(self) -> int:
        database = self.deployment.database
        [(count,)] = self._services.postgres.query(_TRANSACTIONS, (database,), database=database)
        return int(count)


def idle(bench: Bench, seconds: float) -> Figures:
    """Nothing but some delayed tasks, and then deleted queues."""
    client, _ = bench.deployment.client("ana")
    for n in range(DELAYED):
        delay = SETTLE + (n + 0.5) * seconds / (DELAYED + 1)
        client.request("new_task", task="delayed", kind=KINDS[n], payload={"seconds": 0.3}, delay=delay)
    time.sleep(SETTLE)
    figures = bench.watch(seconds)
    return figures | {"late_s": bench.lateness(), "healed_s": bench.heal(), "task_after_s": bench.run_one()}


def full(bench: Bench, seconds: float) -> Figures:
    """All slots taken, and tasks that wait."""
    time.sleep(SETTLE)
    without = bench.watch(seconds)
    client, _ = bench.deployment.client("ana")
    count = 2 * SLOTS + WAITING
    for first in range(0, count, MAX_BATCH):
        specs = [{"task": "t", "kind": KINDS[0], "payload": {"seconds": LONG}}] * min(MAX_BATCH, count - first)
        client.request("new_tasks", tasks=specs)
    time.sleep(SETTLE)
    figures = bench.watch(seconds)
    if (running := bench.stop_all()) != 2 * SLOTS:
        raise Failed(f"{running} tasks ran instead of {2 * SLOTS}")
    return figures | {"without": without}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the options say. Returns the exit status."""
    options = _options(arguments)
    return run_benchmark(lambda stack: _play_cases(options, stack))


def _play_cases(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    services = Services.start(stack)
    for case in options.cases:
        _play(case, options.seconds, services)


def _play(case: str, seconds: float, services: Services) -> None:
    env = {
        "TASKD_HANDLERS": "bench.fairness_handlers",
        "TASKD_QUEUES": ",".join(QUEUES),
        "TASKD_BCRYPT_ROUNDS": "4",
        "TASKD_REGISTRATIONS_PER_HOUR": "0",
    }
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(folder())
        deployment = Deployment(place, services, servers=2, workers=1 + (case == "full"), slots=SLOTS, env=env)
        stack.callback(deployment.stop)
        deployment.start()
        bench = Bench(services, deployment)
        figures = (full if case == "full" else idle)(bench, seconds)
        deployment.check_alive()
    emit({"system": "taskd", "version": __version__, "case": case, "seconds": seconds} | figures)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=(__doc__ or "").partition(":")[0])
    add = parser.add_argument
    add("cases", nargs="*", default=("idle", "full"), metavar="CASE", help="idle, full; both")
    add("--seconds", type=float, default=30.0, metavar="S", help="how long the cost is measured (30)")
    options = parser.parse_args(arguments)
    if unknown := [case for case in options.cases if case not in ("idle", "full")]:
        parser.error(f"there is no case {unknown[0]}: choose from idle, full")
    return options


if __name__ == "__main__":
    sys.exit(main())
