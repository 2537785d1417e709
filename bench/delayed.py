"""Cost of a million delayed tasks: ``python -m bench.delayed`` measures it before and when they are due.

They are submitted over the socket, a thousand in a request, to run in an hour. Prints one line of JSON:

- ``created_per_s``: tasks created a second; ``server_grew_mib``: growth of the server's memory meanwhile;
- ``new_task_p50_ms``, ``new_task_p99_ms``: time from the submission to the end of a task of another user, one by one,
  while the delayed tasks wait; ``idle_*``: the same before there are any;
- ``due_per_s``: tasks a second, from the moment when ``--due`` of them become due until all of these have ended.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil

from bench.harness import (
    Deployment,
    Failed,
    Figures,
    Services,
    emit,
    folder,
    milliseconds,
    run_benchmark,
    time_tasks,
    wait_until,
)
from taskd import __version__
from taskd.protocol.limits import MAX_BATCH

PROBES = 100
_DUE = "UPDATE tasks SET run_at = now() WHERE id IN (SELECT id FROM tasks WHERE NOT due ORDER BY run_at LIMIT %s)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the options say. Returns the exit status."""
    options = _options(arguments)
    return run_benchmark(lambda stack: _play(options, stack))


def _play(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    services = Services.start(stack)
    place = stack.enter_context(folder())
    # one user has more tasks than the default quota allows
    deployment = Deployment(place, services, env={"TASKD_QUOTA_OPEN": "0", "TASKD_QUOTA_DAILY": "0"})
    stack.callback(deployment.stop)
    deployment.start()
    emit({"system": "taskd", "version": __version__, **_measure(options, deployment, services)})


def _measure(options: argparse.Namespace, deployment: Deployment, services: Services) -> Figures:
    big_user, _ = deployment.client("big_user")
    other, _ = deployment.client("other")
    idle = time_tasks(other, PROBES)
    server = psutil.Process(deployment.daemons[0].pid)
    before, began = server.memory_info().rss, time.monotonic()
    spec = {"task": "later", "payload": {"seconds": 0}, "delay": 3600}
    for first in range(0, options.tasks, MAX_BATCH):
        reply = big_user.request("new_tasks", tasks=[spec] * min(MAX_BATCH, options.tasks - first))
        if not reply["ok"]:
            raise Failed(f"not created: {reply}")
    created = time.monotonic() - began
    found: Figures = {
        "tasks": options.tasks,
        "created_per_s": round(options.tasks / created),
        "server_grew_mib": round((server.memory_info().rss - before) / 2**20, 1),
        **milliseconds(idle, "idle_"),
        **milliseconds(time_tasks(other, PROBES), "new_task_"),
    }

    def query(sql: str, *arguments: Any) -> list[Any]:
        return services.postgres.query(sql, arguments, database=deployment.database)

    began = time.monotonic()
    query(_DUE, options.due)
    ended = "SELECT count(*) >= %s FROM tasks WHERE status = 'Completada' AND task = 'later'"
    end = wait_until(lambda: query(ended, options.due)[0][0], options.limit, "what is due has ended", 0.2)
    return found | {"due": options.due, "due_per_s": round(options.due / (end - began))}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.delayed", description=(__doc__ or "").partition(":")[0])
    add = parser.add_argument
    add("--tasks", type=int, default=1_000_000, metavar="N", help="number of delayed tasks")
    add("--due", type=int, default=50_000, metavar="N", help="number of tasks that become due at once")
    add("--limit", type=float, default=300.0, metavar="SECONDS", help="for them to end")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
