"""Scenarios in which RabbitMQ, a server or PostgreSQL fail under running tasks: the workers live, so they keep them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import psycopg2

from tests.daemons import Daemon
from tests.faults.audit import Killed, pid_of
from tests.faults.load import Load
from tests.faults.outages import rabbitmq_away, rabbitmq_refuses
from tests.faults.processes import Line, await_busy, lasting, running
from tests.faults.stage import BEAT, SEEN_WITHIN, Stage
from tests.processes import eventually

KILLED_WITHIN = 1.0
"""Seconds within which the tasks of a worker that was killed run again."""

FROM_STOPPED = 1.5
"""So much later those begin that were assigned to a worker that was stopped at the same moment: its watchdog gives them
back."""

CLOSED_WITHIN = 5.0
"""The same if its watchdog was killed with it."""


def broker_restart(stage: Stage, *, tasks: int, seconds: float, lease: float) -> Line:
    """RabbitMQ is killed and comes back under running tasks: none of them starts again. In the same run one worker is
    killed, one is killed with its watchdog, and one is frozen: theirs run elsewhere within the bounds."""
    stage.cluster.env["TASKD_LEASE"] = f"{lease:g}"
    # so many slots that each healthy worker has a place for every task that was lost once
    stage.start(workers=5, options=("--slots", "100"))
    healthy, (killed, cut, frozen) = stage.workers[:2], stage.workers[2:]
    load = begin(stage, tasks, seconds, more=10)
    for victim in (killed, cut, frozen):
        await_busy(stage, victim, load)
    with rabbitmq_away(stage):
        pass
    back(stage, load)
    stage.must(not stage.runs_again(), "a task has started again after the restart of RabbitMQ")

    stage.must(len(stage.watchdogs(cut)) == 1, f"the watchdogs of a worker: {stage.watchdogs(cut)}")
    with_watchdog = stage.kill_worker(cut, with_watchdog=True)
    since = stage.freeze(frozen)
    stopped = Killed(frozen.pid, since)
    without = stage.kill_worker(killed)
    eventually(lambda: not running(stage, frozen), lease + 10, "the tasks of the frozen worker have been taken back")
    taken_back = time.time() - since
    stage.must(
        taken_back <= lease + SEEN_WITHIN + stage.slack,
        f"the tasks of a frozen worker were taken back in {taken_back:.1f} s",
    )
    must_begin_anew(stage, frozen)

    stage.await_end(load)
    stage.must_run_again([without], KILLED_WITHIN, "after_kill", FROM_STOPPED)
    stage.must_run_again([with_watchdog], CLOSED_WITHIN, "after_both")
    stage.must_run_again([stopped], lease + SEEN_WITHIN + KILLED_WITHIN, "after_freeze")
    stage.extra |= {"taken_back_s": round(taken_back, 2), "healthy": [worker.pid for worker in healthy]}
    stage.must(
        min(stage.extra[f"begun_after_{what}"] for what in ("kill", "both", "freeze")) > 0, "a victim had no task"
    )
    return stage.finish(load, {"spent": 0})


def must_begin_anew(stage: Stage, worker: Daemon) -> None:
    """SIGCONT of a worker that was fenced: at its first beat it stops its old attempts, and it registers under a new
    name."""
    names = {change.name for change in stage.records().workers if pid_of(change.name) == worker.pid}
    woken = stage.thaw(worker)
    deadline = woken + BEAT + 5
    while time.time() < deadline:
        now = {change.name for change in stage.records().workers if pid_of(change.name) == worker.pid}
        old = [run for run in stage.runs() if run.worker == worker.pid and run.at < woken]
        if now - names and all(run.until is not None for run in old):
            break
        time.sleep(0.1)
    stage.extra["new_name_s"] = round(time.time() - woken, 2)
    stage.must(now - names, "the worker that was frozen has no new name")
    late = [run for run in old if run.until is None or run.until > woken + BEAT]
    stage.must(not late, f"{len(late)} of {len(old)} old attempts went on after the worker was woken")


def connections_closed(stage: Stage, *, times: int, tasks: int, seconds: float) -> Line:
    """RabbitMQ closes all connections under running tasks, several times."""
    stage.start(workers=2)
    load = begin(stage, tasks, seconds, more=times)
    for _ in range(times):
        stage.rabbitmq.ctl("close_all_connections", "--vhost", "/", "a test closes them")
        back(stage, load)
    return untouched(stage, load)


def server_killed_after_batch(stage: Stage, *, times: int, batch: int, seconds: float, alarm: float) -> Line:
    """``kill -9`` of a server 0.1 s after a batch was confirmed, and a memory alarm of RabbitMQ during another batch.
    Both lose hints and events; every task runs all the same, and none on two workers at once."""
    stage.start(servers=2, workers=2)
    load = stage.load(lasting(seconds, seconds), total=2 * times * batch, clients=2)
    for n in range(times):
        load.allow((2 * n + 1) * batch)
        load.await_confirmed((2 * n + 1) * batch)
        time.sleep(0.1)
        stage.replace_server(stage.servers[n % 2])
        with rabbitmq_refuses(stage):
            load.allow((2 * n + 2) * batch)
            load.await_confirmed((2 * n + 2) * batch)
            time.sleep(alarm)
        stage.await_ready()
    stage.extra["servers_killed"] = times
    return untouched(stage, load)


def consumer_timeout(stage: Stage, *, timeout: float, tasks: int, seconds: float) -> Line:
    """RabbitMQ closes channels on which a message is not acked in time. Long tasks must not notice: none is."""
    # RabbitMQ looks at each channel once a minute; the settings hold for channels that are opened from now on
    with stage.rabbitmq.setting(consumer_timeout=int(1000 * timeout), channel_tick_interval=1000):
        stage.start(workers=2)
        return untouched(stage, begin(stage, tasks, seconds))


def tables_locked(stage: Stage, *, locks: Sequence[str], lease: float, tasks: int, seconds: float) -> Line:
    """Somebody locks these tables for longer than the lease under running tasks. Nothing is taken back, then and
    later."""
    stage.cluster.env["TASKD_LEASE"] = f"{lease:g}"
    stage.start(servers=2, workers=2, options=("--slots", "100"))
    load = begin(stage, tasks, seconds, more=len(locks))
    for tables in locks:
        with contextlib.closing(stage.postgres.connect(stage.database)) as connection:
            connection.autocommit = False
            _lock(connection, tables)
            time.sleep(lease + 4)
            connection.rollback()
        # what was judged by old beats would be taken back now
        time.sleep(3)
        back(stage, load)
    stage.extra["locks"] = list(locks)
    return untouched(stage, load)


def _lock(connection: Any, tables: str) -> None:
    """Lock tables, again if that has met a transaction which has locked one of them and waits for another one."""
    while True:
        try:
            connection.cursor().execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
            return
        except psycopg2.errors.DeadlockDetected:
            connection.rollback()


# -- what these scenarios share


def begin(stage: Stage, tasks: int, seconds: float, more: int = 0) -> Load:
    """Submit tasks of so many seconds, and wait until all of them run. ``back`` may submit ``more`` short ones."""
    long, short = lasting(seconds, seconds + 2), lasting(0.0, 0.1)
    load = stage.load(lambda n: long(n) if n < tasks else short(n), total=tasks + more)
    load.allow(tasks)
    load.await_confirmed(tasks)
    eventually(lambda: stage.count("state = 'running'") >= tasks, 20, "all tasks run")
    return load


def back(stage: Stage, load: Load) -> None:
    """Wait until taskd works again: it runs one more task if there is one, and every worker consumes."""
    since = time.time()
    if not load.done:
        load.allow(load.attempted + 1)
        taken = stage.await_back(load, since)
        stage.extra["slowest_back_s"] = max(round(taken, 2), stage.extra.get("slowest_back_s", 0.0))


def untouched(stage: Stage, load: Load) -> Line:
    """The end of a scenario in which nothing may run twice or lose an attempt."""
    stage.await_end(load)
    return stage.finish(load, {"run_twice": 0, "losses": 0, "spent": 0})
