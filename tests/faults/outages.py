"""Scenarios in which PostgreSQL or RabbitMQ crash, are down, refuse messages, or lose them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import pika

from taskd.model.tasks import Route
from tests import services
from tests.cluster import user
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


SETTLED = 2.0
"""Seconds after which a new quorum queue survives ``kill -9`` of RabbitMQ. A queue that was declared just before the
kill comes back without a leader (rabbitmq-server issue 15725), which is not what these scenarios test."""


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


def rabbitmq_crashes(stage: Stage, *, times: int, rate: float) -> Line:
    """``kill -9`` of RabbitMQ under load, each time with a start at once."""
    stage.start()
    load = stage.load(lasting(0.05, 0.3, max_attempts=ATTEMPTS), rate=rate)
    backs = []
    time.sleep(SETTLED)
    for _ in range(times):
        load.await_confirmed(load.confirmed + int(rate))
        with rabbitmq_away(stage):
            pass
        backs.append(stage.await_back(load, time.time()))
    stage.extra |= {"crashes": len(backs), "slowest_back_s": round(max(backs), 2)}
    return stage.finish(load)


def rabbitmq_down(stage: Stage, *, seconds: float, tasks: int) -> Line:
    """Create, list and cancel tasks while RabbitMQ is down."""
    stage.start()
    before = tasks // 10
    load = stage.load(lasting(0.0, 0.2, max_attempts=ATTEMPTS), total=tasks + before + 1, rate=tasks / seconds * 2)
    load.allow(before)
    load.await_confirmed(before)
    time.sleep(SETTLED)
    with rabbitmq_away(stage):
        began = time.monotonic()
        load.allow(tasks + before)
        try:
            load.await_confirmed(tasks + before, seconds)
        except AssertionError:
            stage.violations.append(f"only {load.confirmed - before} tasks were confirmed while RabbitMQ was down")
        with user(stage.cluster.ports[0], "user0") as client:
            listed = client.request("get_tasks", state="waiting", limit=5)
            stage.must(listed["ok"] and listed["tasks"], f"tasks could not be listed: {listed}")
            cancelled = client.request("cancel_task", task_id=listed["tasks"][-1]["id"])
            stage.must(cancelled.get("task", {}).get("status") == "Cancelada", f"not cancelled: {cancelled}")
        time.sleep(max(0.0, began + seconds - time.monotonic()))
    since = time.time()
    # one more task, so that there is a confirmation after the restart
    load.allow(tasks + before + 1)
    stage.extra |= {"down_s": seconds, "created_meanwhile": tasks, "back_s": round(stage.await_back(load, since), 2)}
    return stage.finish(load)


def memory_alarm(stage: Stage, *, seconds: float, rate: float) -> Line:
    """RabbitMQ refuses messages for some seconds, because of a memory alarm."""
    stage.start()
    load = stage.load(lasting(0.0, 0.2, max_attempts=ATTEMPTS), rate=rate)
    load.await_confirmed(int(rate))
    with rabbitmq_refuses(stage):
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


def queue_lost(stage: Stage, *, messages: int) -> Line:
    """Purge one queue and delete another one under its consumer, with this number of messages in each."""
    other = services.unique("other")
    # the window lets all messages into the queues at once
    stage.cluster.env |= {"TASKD_QUEUES": other, "TASKD_WINDOW": str(messages)}
    queues = stage.cluster.queue, other
    stage.start(options=("--slots", "20"))
    task = lasting(0.1, 0.3)
    load = stage.load(lambda n: task(n) | {"queue": queues[n % 2]}, total=2 * messages)
    load.await_confirmed(2 * messages)
    with _channel(stage) as channel:
        # the last messages may still be in the outbox
        eventually(lambda: not stage.count("state = 'waiting'"), 20, "all messages are in the queues")
        first, second = names = [Route(queue, KIND).name for queue in queues]

        def fewest() -> int:
            return min(channel.queue_declare(name, passive=True).method.message_count for name in names)

        # a message is published after its task was stored
        eventually(lambda: fewest() > messages / 2, 20, "all messages are in the queues")
        purged = channel.queue_purge(first).method.message_count
        deleted = channel.queue_delete(second).method.message_count
    lost = time.monotonic()
    eventually(lambda: not stage.count("finished_at IS NULL"), 60 + messages / 50, "all tasks have ended")
    stage.extra |= {"purged": purged, "deleted": deleted, "all_ended_s": round(time.monotonic() - lost, 1)}
    stage.must(min(purged, deleted) > messages / 2, f"only {purged} and {deleted} messages were there to lose")
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
