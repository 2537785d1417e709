"""Scenarios in which daemons are killed, stopped or drained, or end themselves."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from taskd.worker.suspects import MAX_WAIT
from tests.daemons import Daemon
from tests.faults.load import Load, Spec
from tests.faults.stage import ATTEMPTS, END_SECONDS, SEEN_WITHIN, Stage
from tests.faults.worker import KIND
from tests.processes import eventually

Line = dict[str, Any]

LEASE = 3.0
"""The lease of the workers in seconds: TASKD_LEASE of the cluster."""


def lasting(least: float, most: float, **more: Any) -> Callable[[int], Spec]:
    """Tasks that take from ``least`` to ``most`` seconds. The n-th task is the same in every run."""

    def spec(n: int) -> Spec:
        seconds = round(random.Random(n).uniform(least, most), 3)
        return {"task": f"task {n}", "kind": KIND, "payload": {"seconds": seconds}, **more}

    return spec


def await_busy(stage: Stage, worker: Daemon, load: Load, tasks: int = 1) -> None:
    """Wait until this worker runs this number of tasks, or until all clients have ended."""
    eventually(lambda: running(stage, worker) >= tasks or load.done, 30, "the worker runs tasks")


def running(stage: Stage, worker: Daemon) -> int:
    """The number of tasks that this worker runs."""
    return stage.count(f"state = 'running' AND worker LIKE '%:{worker.pid}:%'")


def await_new_run(stage: Stage, worker: Daemon, since: float) -> None:
    """Wait until this worker has begun a task after this time."""
    sql = f"SELECT FROM task_changes WHERE at > {since} AND new = 'running' AND worker LIKE '%:{worker.pid}:%' LIMIT 1"
    eventually(lambda: stage.rows(sql), 30, "the worker takes tasks again")


def kills(stage: Stage, *, tasks: int, workers: int, servers: int, rate: float) -> Line:
    """``kill -9`` of workers and servers, one at a time, while tasks are submitted and run."""
    chance = random.Random(1)
    stage.start(servers=2, workers=2)
    plan = ["worker"] * workers + ["server"] * servers
    chance.shuffle(plan)
    share = tasks / (len(plan) + 1)
    load = stage.load(lasting(0.05, 0.4, max_attempts=ATTEMPTS), total=tasks, rate=rate)
    killed = []
    for n, what in enumerate(plan):
        stage.await_ready()
        # the clients wait here until the next daemon is killed
        load.allow(int(share * (n + 2)))
        load.await_confirmed(int(share * (n + 1 + chance.random() * 0.8)))
        if what == "server":
            stage.replace_server(chance.choice(stage.servers))
        else:
            killed.append(stage.kill_worker(_busy_worker(stage, chance)))
            stage.launch_worker()
    load.allow(tasks)
    stage.await_end(load)
    stage.must_run_again(killed, waits=MAX_WAIT)
    return stage.finish(load)


def _busy_worker(stage: Stage, chance: random.Random) -> Daemon:
    """A random worker, one that runs tasks if there is any."""
    busy = [worker for worker in stage.workers if running(stage, worker)]
    return chance.choice(busy or stage.workers)


def frozen(stage: Stage, *, seconds: Sequence[float], rate: float) -> Line:
    """SIGSTOP of a worker for longer than its lease, then SIGCONT. Its late outcomes do not count, and it works on."""
    stage.start(workers=2)
    load = stage.load(lasting(0.3, 0.6, max_attempts=ATTEMPTS), rate=rate)
    victim = stage.workers[0]
    slowest = 0.0
    for pause in seconds:
        await_busy(stage, victim, load, 2)
        began = stage.freeze(victim)
        eventually(lambda: not running(stage, victim), LEASE + 10, "its tasks have been taken back")
        slowest = max(slowest, time.time() - began)
        time.sleep(max(0.0, began + pause - time.time()))
        stage.thaw(victim)
        await_new_run(stage, victim, time.time())
    stage.extra |= {"taken_back_s": round(slowest, 2)}
    stage.must(
        slowest <= LEASE + SEEN_WITHIN + stage.slack,
        f"tasks of a silent worker were taken back only after {slowest:.1f} s",
    )
    return stage.finish(load)


def drains(stage: Stage, *, times: int, rate: float) -> Line:
    """SIGTERM of workers under load, with tasks that outlast the grace time. No task spends an attempt on that."""
    options = "--slots", "50", "--grace", "1"
    stage.start(workers=2, options=options)
    short, long = lasting(0.05, 0.4), lasting(3, 4)
    load = stage.load(lambda n: long(n) if n % 10 == 0 else short(n), rate=rate)
    slowest = 0.0
    for _ in range(times):
        stage.await_ready()
        victim = stage.workers.pop(0)
        await_busy(stage, victim, load, 3)
        stage.expect_end(victim)
        stage.launch_worker(*options)
        began = time.monotonic()
        status = victim.terminate(END_SECONDS)
        slowest = max(slowest, time.monotonic() - began)
        stage.must(status == 0, f"a drained worker ended with {status}")
    stage.extra |= {"slowest_drain_s": round(slowest, 2)}
    stage.await_end(load)
    spent = stage.count("attempt <> 1")
    stage.extra |= {"attempts_spent": spent}
    stage.must(spent == 0, f"{spent} tasks spent an attempt on being given back")
    return stage.finish(load)


def poison(stage: Stage, *, good: int) -> Line:
    """One task kills its worker whenever it runs. Only this task fails, with a reason."""
    stage.start(workers=2)
    well = lasting(0.0, 0.3)

    def spec(n: int) -> Spec:
        return {"task": "poison", "kind": "poison"} if n == good // 2 else well(n)

    load = stage.load(spec, total=good + 1)
    deadline = time.monotonic() + END_SECONDS
    # restart workers as systemd does
    while (not load.done or stage.count("finished_at IS NULL")) and time.monotonic() < deadline:
        stage.replace_dead_workers([1])
        time.sleep(0.1)
    stage.await_ready()
    [(task_id, status, attempt, error)] = stage.rows(
        "SELECT id, status, attempt, error FROM tasks WHERE kind = 'poison'"
    )
    deaths = sum(run.task_id == task_id for run in stage.runs())
    stage.extra |= {"poison": {"status": status, "attempt": attempt, "error": error, "deaths": deaths}}
    stage.must(status == "Fallida", f"the poison is {status}")
    # the first three losses of a task that is not known to be the culprit are not spent
    stage.must(attempt == 3 and deaths <= 6, f"the poison was run {deaths} times and is in attempt {attempt}")
    stage.must(error and "worker" in error, f"the error of the poison does not name the worker: {error!r}")
    others = stage.count("kind <> 'poison' AND status <> 'Completada'")
    stage.must(others == 0, f"{others} other tasks did not succeed")
    return stage.finish(load, {"failed": 1})
