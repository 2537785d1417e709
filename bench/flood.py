"""Whether a user who creates and cancels many tasks delays others: ``python -m bench.flood``.

One user creates tasks that take a second, and cancels all of them. Another user submits one task after the other:
before that, as soon as all are created, and as soon as all are cancelled. Prints one line of JSON:

- ``idle``, ``created``, ``cancelled``: ``p50_ms`` and ``p99_ms`` from the submission of these tasks to their end;
- ``create_s``, ``cancel_s``: how long the first user's requests took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence

from bench.harness import Deployment, Failed, Services, emit, folder, milliseconds, run_benchmark, time_tasks
from taskd import __version__
from taskd.protocol.limits import MAX_BATCH
from tests.daemons import LineClient

PROBES = 50
PIPELINED = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the options say. Returns the exit status."""
    options = _options(arguments)
    return run_benchmark(lambda stack: _play(options, stack))


def _play(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    services = None if options.embedded else Services.start(stack)
    place = stack.enter_context(folder())
    deployment = Deployment(place, services, slots=options.slots)
    stack.callback(deployment.stop)
    deployment.start()
    flooder, _ = deployment.client("flooder")
    other, _ = deployment.client("other")
    found = {"tasks": options.tasks, "slots": options.slots, "idle": milliseconds(time_tasks(other, PROBES))}
    began = time.monotonic()
    ids = _create(flooder, options.tasks)
    found["create_s"] = round(time.monotonic() - began, 2)
    found["created"] = milliseconds(time_tasks(other, PROBES))
    began = time.monotonic()
    _cancel(flooder, ids)
    found["cancel_s"] = round(time.monotonic() - began, 2)
    found["cancelled"] = milliseconds(time_tasks(other, PROBES))
    deployment.check_alive()
    mode = "embedded" if services is None else "distributed"
    emit({"system": "taskd", "version": __version__, "mode": mode, **found})


def _create(client: LineClient, count: int) -> list[int]:
    ids: list[int] = []
    for first in range(0, count, MAX_BATCH):
        specs = [{"task": "t", "payload": {"seconds": 1}}] * min(MAX_BATCH, count - first)
        reply = client.request("new_tasks", tasks=specs)
        if not reply["ok"]:
            raise Failed(f"not created: {reply}")
        ids += reply["task_ids"]
    return ids


def _cancel(client: LineClient, ids: Sequence[int]) -> None:
    """Cancel all that has not ended. Some requests are under way at the same time."""
    for first in range(0, len(ids), PIPELINED):
        some = ids[first : first + PIPELINED]
        for task_id in some:
            client.send_line(json.dumps({"action": "cancel_task", "id": task_id, "task_id": task_id}).encode())
        for _ in some:
            reply = json.loads(client.read_line())
            if not reply["ok"] and reply["code"] != "conflict":
                raise Failed(f"not cancelled: {reply}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.flood", description=(__doc__ or "").partition(":")[0])
    add = parser.add_argument
    add("--tasks", type=int, default=20_000, metavar="N", help="tasks of the first user (20000)")
    add("--slots", type=int, default=100, metavar="N", help="slots of the worker (100)")
    add("--embedded", action="store_true", help="one server on SQLite with its own worker")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
