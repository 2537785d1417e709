"""Throughput, latency and CPU time of no-op tasks, through real daemons or without them (--floor).

Prints one line of JSON for each run; README.md here explains the figures. The exit status is 1 unless every task was
completed exactly once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import floor, ledger, submit
from bench.harness import (
    PASSWORD,
    START_SECONDS,
    Deployment,
    Failed,
    Figures,
    Meter,
    Process,
    Services,
    emit,
    emit_all,
    folder,
    micros_a_task,
    milliseconds,
    report,
    run_benchmark,
    run_python,
    wait_ready,
    wait_until,
)
from taskd import __version__
from tests.daemons import LineClient
from tests.services import HOST

WARM_UP_AT_ONCE = 500
WARM_UP = 50
ONE_AT_A_TIME = 200
IN_FLIGHT = 200
IN_FLIGHT_BATCHES = 2
NO_OP = {"task": "t", "kind": "simulate", "payload": {"seconds": 0}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the options say. Returns the exit status."""
    options = _options(arguments)
    return run_benchmark(lambda stack: _run(options, None if options.embedded else Services.start(stack)))


def _run(options: argparse.Namespace, services: Services | None) -> None:
    real: list[Figures] = []
    bare: list[Figures] = []
    for _ in range(options.repeat):
        if not options.floor:
            real.append(measure(options, services))
            emit(real[-1])
        if services is not None and (options.floor or options.compare):
            # The same batches as the run before it, so that both load the services equally.
            sizes = floor.Batches(**real[-1]["batches"]) if options.compare else options.batches
            bare.append(floor.measure(services, options.tasks, options.clients, sizes, options.limit))
            emit(bare[-1])
    emit_all(real)
    emit_all(bare)
    if options.compare:
        ratios = [_ratio(r, b) for r, b in zip(real, bare, strict=True)]
        for ratio in ratios if len(ratios) == 1 else []:
            emit(ratio)
        emit_all(ratios)


def _ratio(real: Figures, bare: Figures) -> Figures:
    """The speed and the CPU time of taskd as multiples of those of the floor."""
    both = "end_to_end_per_s", "latency_p50_ms"
    found: Figures = {"ratio": "taskd/floor"} | {name: round(real[name] / bare[name], 3) for name in both}
    mine, floors = real["cpu_us_per_task"], bare["cpu_us_per_task"]
    return found | {"cpu": {name: round(mine[name] / floors[name], 3) for name in mine if floors.get(name)}}


def measure(options: argparse.Namespace, services: Services | None) -> Figures:
    """Measure one run on its own deployment. Raises Failed."""
    with folder() as place, contextlib.ExitStack() as stack:
        deployment = Deployment(
            place,
            services,
            servers=options.servers,
            workers=options.workers,
            slots=options.slots,
            profiles=options.profile,
        )
        stack.callback(deployment.stop)
        deployment.start()
        books = ledger.in_sqlite(deployment.data) if services is None else _postgres_ledger(services, deployment)
        stack.callback(books.close)
        client, user = deployment.client("watcher", watch=True)
        with client:
            warm_up(client, books)
            one_by_one = one_at_a_time(client)
        figures: Figures = {
            "system": "taskd",
            "version": __version__,
            "mode": "embedded" if services is None else "distributed",
            "floor": False,
            "tasks": options.tasks,
            "clients": options.clients,
            "in_flight": options.in_flight,
            "batch_submit": options.batch_submit,
            "servers": options.servers,
            "workers": options.workers if services else 0,
            "slots": options.slots,
        }
        throughput, users = _throughput(options, deployment, books)
        books.check([user], WARM_UP_AT_ONCE + WARM_UP + ONE_AT_A_TIME)
        books.check(users, options.tasks)
        deployment.check_alive()
        return figures | throughput | one_by_one | {"batches": books.batches(users)}


def _postgres_ledger(services: Services, deployment: Deployment) -> ledger.Ledger:
    return ledger.in_postgres(services.postgres, deployment.database)


def warm_up(client: LineClient, books: ledger.Ledger) -> None:
    """Run many tasks at once, so that every database connection has planned its statements before the measurement."""
    line = json.dumps({"action": "new_task", "id": 0, **NO_OP}).encode()
    for _ in range(WARM_UP_AT_ONCE):
        client.send_line(line)
    events = 0
    while events < WARM_UP_AT_ONCE:
        message = json.loads(client.read_line() or b"{}")
        if message.get("event") == "task":
            events += message["task"]["state"] == "completed"
        elif message.get("status") != "task_created":
            raise Failed(f"not a confirmation: {message}")
    wait_until(books.all_done, START_SECONDS, "the tasks of the warm-up are Completada")


def one_at_a_time(client: LineClient) -> Figures:
    """Times from a submission to its confirmation and to its ``completed`` event.

    The client submits one task after the other on an idle system, and watches on the same connection.
    """
    confirmed, completed = [], []
    for _ in range(WARM_UP + ONE_AT_A_TIME):
        start = time.perf_counter()
        task_id = _submit(client)
        confirmed.append(time.perf_counter() - start)
        _await_completion(client, task_id)
        completed.append(time.perf_counter() - start)
    timed = slice(WARM_UP, None)
    return milliseconds(completed[timed], "latency_") | milliseconds(confirmed[timed], "confirm_")


def _submit(client: LineClient) -> int:
    answer = client.request("new_task", **NO_OP)
    if answer["status"] != "task_created":
        raise Failed(f"not a confirmation: {answer}")
    return int(answer["task_id"])


def _await_completion(client: LineClient, task_id: int) -> None:
    while True:
        event = client.event()
        if event["event"] != "task":
            raise Failed(f"not an event of a task: {event}")
        task = event["task"]
        if task["id"] == task_id and task["state"] in ("completed", "failed", "cancelled"):
            if task["state"] != "completed":
                raise Failed(f"not completed: {task}")
            return


def _throughput(options: argparse.Namespace, deployment: Deployment, books: ledger.Ledger) -> tuple[Figures, list[int]]:
    clients, users = _start_clients(options, deployment)
    meter, start = Meter(deployment.pids), time.monotonic()
    for client in clients:
        client.send(signal.SIGUSR1)

    def reported() -> bool:
        deployment.check_alive()
        for client in clients:
            if client.returncode not in (None, 0):
                raise Failed(f"a client failed: {client.output()[-2000:]}")
        return all(client.returncode == 0 for client in clients)

    wait_until(reported, options.limit, "all tasks are confirmed")
    end = wait_until(books.all_done, options.limit, "all tasks are Completada", pause=0.02)
    used = meter.used()
    reports = [report(client) for client in clients]
    used["clients"] = sum(r["cpu_seconds"] for r in reports)
    others = meter.others(sum(used.values()))
    confirmed_at = max(r["confirmed_at"] for r in reports)
    return {
        "confirmed_per_s": round(options.tasks / (confirmed_at - start)),
        "end_to_end_per_s": round(options.tasks / (end - start)),
        "cpu_us_per_task": micros_a_task(used, options.tasks),
        "others_cpu": others,
    }, users


def _start_clients(options: argparse.Namespace, deployment: Deployment) -> tuple[list[Process], list[int]]:
    clients, users = [], []
    for n in range(options.clients):
        server = n % options.servers
        username = f"submitter-{n}"
        connection, user = deployment.client(username, server)
        connection.close()
        users.append(user)
        share = options.tasks // options.clients + (n < options.tasks % options.clients)
        arguments = HOST, deployment.ports[server], username, PASSWORD, share, options.in_flight, options.batch_submit
        clients.append(run_python(deployment.place, f"client-{n}", submit.__file__, *arguments))
    wait_ready(clients)
    return clients, users


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--tasks", type=_positive, default=20000, metavar="N")
    add("--clients", type=_positive, default=2, metavar="N", help="submitting processes, each a user of its own")
    text = f"requests that a client keeps open ({IN_FLIGHT}; {IN_FLIGHT_BATCHES} with --batch-submit)"
    add("--in-flight", type=_positive, metavar="N", help=text)
    add("--batch-submit", type=int, default=0, metavar="K", help="submit by new_tasks, K a request (at most 1000)")
    add("--servers", type=_positive, default=1, metavar="N")
    add("--workers", type=_positive, default=1, metavar="N")
    add("--slots", type=_positive, metavar="N", help="tasks that a worker runs at a time (its own default)")
    add("--repeat", type=_positive, default=1, metavar="N", help="one line a run, and a last one of medians")
    add("--limit", type=float, default=300.0, metavar="SECONDS", help="for each half of a run")
    add("--profile", type=Path, metavar="FOLDER", help="run the daemons under cProfile; slow")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--embedded", action="store_true", help="one server on SQLite, no services")
    what.add_argument("--floor", action="store_true", help="the same statements and messages without taskd")
    what.add_argument("--compare", action="store_true", help="each run followed by its floor, in the same batches")
    text = "the floor's batches as a JSON object, such as the `batches` of an earlier run"
    add("--batches", type=_batches, default=floor.Batches(), metavar="JSON", help=text)
    options = parser.parse_args(arguments)
    if not 0 <= options.batch_submit <= 1000:
        parser.error("--batch-submit: 1 to 1000")
    if options.in_flight is None:
        options.in_flight = IN_FLIGHT_BATCHES if options.batch_submit else IN_FLIGHT
    if options.profile is not None:
        options.profile.mkdir(parents=True, exist_ok=True)
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _batches(text: str) -> floor.Batches:
    return floor.Batches(**json.loads(text))


if __name__ == "__main__":
    sys.exit(main())
