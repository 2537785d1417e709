"""Scenarios in which PostgreSQL or RabbitMQ crash, are down, refuse messages, or lose them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import pika

from tests.cluster import user
from tests.faults.load import Spec
from tests.faults.processes import Line, lasting
from tests.faults.stage import ATTEMPTS, Stage
from tests.faults.worker import KIND
from tests.processes import eventually


@contextlib.contextmanager
def _postgres_away(stage: Stage) -> Iterator[None]:
    """Crash PostgreSQL, and start it again at the end of the block."""
    stage.postgres.stop("immediate")
    try:
        yield
    finally:
        stage.postgres.start()


@contextlib.contextmanager
def rabbitmq_away(stage: Stage) -> Iterator[None]:
    """Kill RabbitMQ, and start it again at the end of the block."""
    stage.rabbitmq.kill()
    try:
        yield
    finally:
        stage.rabbitmq.start()


@contextlib.contextmanager
def rabbitmq_refuses(stage: Stage) -> Iterator[None]:
    """RabbitMQ refuses messages during the block, because of a memory alarm."""
    stage.rabbitmq.ctl("set_vm_memory_high_watermark", "0")
    try:
        yield
    finally:
        stage.rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")


STARTED_WITHIN = 3.0
"""Seconds within which a new task has begun and ended, whatever becomes of messages: it begins within 2.5 seconds."""


def postgres_crashes(stage: Stage, *, pauses: Sequence[float], rate: float) -> Line:
    """``pg_ctl stop -m immediate`` under load, and a start after each pause, in seconds."""
    stage.start()
    load = stage.load(lasting(0.05, 0.3, max_attempts=ATTEMPTS), rate=rate)
    backs = []
    for pause in pauses:
        load.await_confirmed(load.confirmed + int(rate))
        with _postgres_away(stage):
            time.sleep(pause)
        backs.append(stage.await_back(load, time.time()))
    stage.extra |= {"crashes": len(backs), "slowest_back_s": round(max(backs), 2)}
    if max(pauses) > 6:
        stage.must(load.refusals["unavailable"], "no client got the answer unavailable")
    return stage.finish(load)


def failover(stage: Stage, *, tasks: int, delay: float, seconds: float) -> Line:
    """PostgreSQL crashes, and a standby takes over that has the tasks but none of their assignments. The workers that
    run them say so, and no task begins a second time, whether it ends during the outage or later, and whatever it says
    meanwhile."""
    stage.start(servers=2, workers=2, options=("--slots", str(tasks)))
    long, short = lasting(2.5, seconds), lasting(0.0, 0.1)

    def spec(n: int) -> Spec:
        if n == tasks:
            return short(n)
        found = long(n) | {"delay": delay}
        return found | {"payload": {**found["payload"], "talks": 20}} if n % 2 else found

    load = stage.load(spec, total=tasks + 1)
    load.allow(tasks)
    load.await_confirmed(tasks)
    stage.postgres.keep_standby()
    waiting = stage.count("state = 'waiting'")
    stage.must(waiting == tasks, f"only {waiting} of {tasks} tasks waited when the standby stopped to follow")
    eventually(lambda: stage.count("state = 'running'") == tasks, delay + 20, "all tasks run")
    stage.postgres.fail_over()
    since = time.time()
    load.allow(tasks + 1)
    stage.extra["back_s"] = round(stage.await_back(load, since), 2)
    [(timeline,)] = stage.rows("SELECT DISTINCT timeline FROM workers WHERE state = 'serving'")
    stage.must(timeline == "00000002", f"the workers are on timeline {timeline}")
    return stage.finish(load, {"run_twice": 0, "losses": 0, "spent": 0})


def rabbitmq_crashes(stage: Stage, *, times: int, rate: float) -> Line:
    """``kill -9`` of RabbitMQ under load, each time with a start at once."""
    stage.start()
    load = stage.load(lasting(0.05, 0.3, max_attempts=ATTEMPTS), rate=rate)
    backs = []
    for _ in range(times):
        load.await_confirmed(load.confirmed + int(rate))
        with rabbitmq_away(stage):
            pass
        backs.append(stage.await_back(load, time.time()))
    stage.extra |= {"crashes": len(backs), "slowest_back_s": round(max(backs), 2)}
    return stage.finish(load)


def rabbitmq_down(stage: Stage, *, seconds: float, tasks: int) -> Line:
    """Create, run, list and cancel tasks while RabbitMQ is down."""
    stage.start()
    before = tasks // 10
    load = stage.load(lasting(0.0, 0.2, max_attempts=ATTEMPTS), total=tasks + before + 2, rate=tasks / seconds * 2)
    load.allow(before)
    load.await_confirmed(before)
    with rabbitmq_away(stage):
        began = time.monotonic()
        load.allow(tasks + before)
        try:
            load.await_confirmed(tasks + before, seconds)
        except AssertionError:
            stage.violations.append(f"only {load.confirmed - before} tasks were confirmed while RabbitMQ was down")
        since = time.time()
        load.allow(tasks + before + 1)
        slowest = stage.await_back(load, since)
        stage.must(slowest <= STARTED_WITHIN + stage.slack, f"without RabbitMQ a new task ended after {slowest:.2f} s")
        with user(stage.cluster.ports[0], "user0") as client:
            listed = client.request("get_tasks", limit=5)
            stage.must(listed["ok"] and listed["tasks"], f"tasks could not be listed: {listed}")
            later = client.request("new_task", task="later", kind=KIND, delay=3600)
            cancelled = client.request("cancel_task", task_id=later["task_id"])
            stage.must(cancelled.get("task", {}).get("status") == "Cancelada", f"not cancelled: {cancelled}")
        time.sleep(max(0.0, began + seconds - time.monotonic()))
    since = time.time()
    # one more task, so that there is a confirmation after the restart
    load.allow(tasks + before + 2)
    stage.extra |= {"down_s": seconds, "created_meanwhile": tasks, "back_s": round(stage.await_back(load, since), 2)}
    # the cancelled task is not one of the load
    return stage.finish(load, {"phantoms": 1})


def memory_alarm(stage: Stage, *, seconds: float, rate: float) -> Line:
    """RabbitMQ refuses messages for some seconds, because of a memory alarm."""
    stage.start()
    load = stage.load(lasting(0.0, 0.2, max_attempts=ATTEMPTS), rate=rate)
    load.await_confirmed(int(rate))
    with rabbitmq_refuses(stage):
        slowest = stage.await_back(load, time.time())
        stage.must(slowest <= STARTED_WITHIN + stage.slack, f"in an alarm a new task ended after {slowest:.2f} s")
        before, began = load.confirmed, time.monotonic()
        time.sleep(seconds)
        meanwhile = load.confirmed - before
        expected = rate * (time.monotonic() - began)
    since = time.time()
    stage.must(
        meanwhile > expected / 2, f"only {meanwhile} of some {expected:.0f} tasks were confirmed during the alarm"
    )
    back = stage.await_back(load, since)
    stage.extra |= {"alarm_s": seconds, "created_meanwhile": meanwhile, "back_s": round(back, 2)}
    return stage.finish(load)


# rabbitmqctl refuses to delete an exclusive queue
_DELETE_QUEUES = '[rabbit_amqqueue:delete(Q, false, false, <<"a test">>) || Q <- rabbit_amqqueue:list()].'

_EATING = '{"max-length": 0, "message-ttl": 0}'
"""A policy under which no message stays in a queue."""


def queues_lost(stage: Stage, *, times: int, rate: float, policy: float) -> Line:
    """Delete all queues and exchanges under load, several times; then have a policy eat messages for some seconds."""
    stage.start(servers=2, workers=2)
    load = stage.load(lasting(0.05, 0.3, max_attempts=ATTEMPTS), rate=rate)
    load.await_confirmed(int(rate))
    slowest = 0.0
    for n in range(times):
        if n % 2:
            with _channel(stage) as channel:
                for name in stage.rabbitmq.ctl("list_exchanges", "name").split():
                    if name.startswith("taskd."):
                        channel.exchange_delete(name)
        else:
            stage.rabbitmq.ctl("eval", _DELETE_QUEUES)
        slowest = max(slowest, stage.await_back(load, time.time()))
    stage.rabbitmq.ctl("set_policy", "eating", ".*", _EATING, "--apply-to", "queues")
    try:
        ends = time.monotonic() + policy
        while time.monotonic() < ends:
            slowest = max(slowest, stage.await_back(load, time.time()))
            time.sleep(0.2)
    finally:
        stage.rabbitmq.ctl("clear_policy", "eating")
    stage.must(slowest <= STARTED_WITHIN + stage.slack, f"a new task ended only after {slowest:.2f} s")
    stage.extra |= {"deletions": times, "slowest_back_s": round(slowest, 2)}
    return stage.finish(load)


@contextlib.contextmanager
def _channel(stage: Stage) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    rabbitmq = stage.rabbitmq
    credentials = pika.PlainCredentials(rabbitmq.user, rabbitmq.password)
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(rabbitmq.host, rabbitmq.port, credentials=credentials)
    )
    try:
        yield connection.channel()
    finally:
        connection.close()
