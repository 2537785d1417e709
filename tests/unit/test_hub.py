"""taskd.events: each watch, wait and listener gets its events, once and in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from msgspec import structs
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from taskd.events.publisher import MAX_BATCH_BYTES, changes_of
from taskd.events.records import EventBatch, TaskChange, decode_batch, log_event, progress_event
from taskd.events.subscriber import Subscriber
from taskd.events.watch_hub import MAX_EARLY, MAX_SEEN, PIECE, Hub, Watch
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.protocol.messages import encode
from tests.unit.stage import NOON, StageCase


def task(task_id: int = 1, version: int = 1, state: State = State.QUEUED, user_id: int = 1, text: str = "t") -> Task:
    return Task(task_id, user_id, text, "simulate", "tasks", state, NOON, NOON, version=version)


def changes(*tasks: Task) -> list[TaskChange]:
    return changes_of(tasks, NOON)


class WatchReader:
    """A watch, and what it has sent."""

    def __init__(self, hub: Hub, user_id: int = 1) -> None:
        self.pieces: list[bytes] = []
        self.watch = hub.watch(user_id, self._send)

    def _send(self, events: Sequence[bytes]) -> None:
        self.pieces.append(b"".join(event + b"\n" for event in events))

    def seen(self) -> list[Any]:
        """(task id, version) of each task event, the name of each other event."""
        lines = [json.loads(line) for line in b"".join(self.pieces).splitlines()]
        self.pieces.clear()
        return [(x["task"]["id"], x["task"]["version"]) if x["event"] == "task" else x["event"] for x in lines]


class WatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.hub = Hub()

    def opened(self, *snapshot: Task) -> WatchReader:
        reader = WatchReader(self.hub)
        reader.watch.open(snapshot)
        return reader

    def test_a_watch_gets_every_change_of_its_user_and_no_others(self) -> None:
        reader, other = self.opened(), WatchReader(self.hub, 2)
        other.watch.open([])
        self.hub.deliver(changes(task(1), task(2, user_id=2), task(3)))
        self.assertEqual(reader.seen(), [(1, 1), (3, 1)])
        self.assertEqual(other.seen(), [(2, 1)])

    def test_all_watches_of_a_user_get_the_same_events(self) -> None:
        readers = [self.opened() for _ in range(3)]
        self.hub.deliver(changes(task()))
        self.assertEqual([reader.seen() for reader in readers], [[(1, 1)]] * 3)

    def test_changes_before_the_snapshot_are_sent_behind_it(self) -> None:
        reader = WatchReader(self.hub)
        self.hub.deliver(changes(task(1, 2), task(2, 1)))
        self.hub.deliver(changes(task(3, 5)))
        self.assertEqual(reader.seen(), [])
        reader.watch.open([task(1, 2), task(3, 4)])
        self.assertEqual(reader.seen(), [(2, 1), (3, 5)])

    def test_each_version_is_sent_once_and_never_after_a_newer_one(self) -> None:
        reader = self.opened(task(1, 3))
        for version in (3, 2, 4, 4, 3, 6, 5):
            self.hub.deliver(changes(task(1, version)))
        self.assertEqual(reader.seen(), [(1, 4), (1, 6)])

    def test_only_the_versions_of_the_latest_changed_tasks_are_remembered(self) -> None:
        reader = self.opened(task(1, 1))
        self.hub.deliver(changes(*(task(n) for n in range(2, MAX_SEEN + 1))))
        self.hub.deliver(changes(task(1, 5), task(MAX_SEEN + 1)))
        reader.seen()
        self.hub.deliver(changes(task(1, 4), task(2, 1)))
        self.assertEqual(reader.seen(), [(2, 1)], "task 1 changed later, and task 2 is forgotten")

    def test_a_closed_watch_gets_nothing(self) -> None:
        reader = self.opened()
        reader.watch.close()
        reader.watch.close()
        self.hub.deliver(changes(task()))
        self.hub.gap()
        self.assertEqual(reader.pieces, [])

    def test_a_watch_that_is_closed_before_its_snapshot_sends_nothing(self) -> None:
        reader = WatchReader(self.hub)
        self.hub.deliver(changes(task()))
        reader.watch.close()
        reader.watch.open([])
        self.assertEqual(reader.pieces, [])

    def test_a_watch_that_another_closes_during_the_delivery_gets_nothing(self) -> None:
        watches: list[Watch] = []
        received: list[Sequence[bytes]] = []

        def send(events: Sequence[bytes]) -> None:
            received.append(events)
            for watch in watches:
                watch.close()

        watches += [self.hub.watch(1, send) for _ in range(2)]
        for watch in watches:
            watch.open([])
        self.hub.deliver(changes(task()))
        self.assertEqual(len(received), 1)

    def test_a_gap_closes_the_watch(self) -> None:
        reader = self.opened()
        self.hub.gap()
        self.hub.gap()
        self.hub.deliver(changes(task()))
        self.assertEqual(reader.seen(), ["gap"])
        self.assertTrue(reader.watch.closed)

    def test_a_gap_before_the_snapshot_is_sent_behind_it(self) -> None:
        reader = WatchReader(self.hub)
        self.hub.deliver(changes(task()))
        self.hub.gap()
        self.assertEqual(reader.pieces, [])
        reader.watch.open([])
        self.assertEqual(reader.seen(), ["gap"])

    def test_too_many_bytes_before_the_snapshot_become_a_gap(self) -> None:
        reader = WatchReader(self.hub)
        for n in range(1, MAX_EARLY // 4000 + 10):
            self.hub.deliver(changes(task(n, text="x" * 4000)))
        reader.watch.open([])
        self.assertEqual(reader.seen(), ["gap"])

    def test_large_changes_are_sent_in_pieces_until_the_watch_is_closed(self) -> None:
        reader = self.opened()
        self.hub.deliver(changes(*(task(n, text="x" * 4000) for n in range(1, 101))))
        self.assertLess(max(map(len, reader.pieces)), PIECE + 5000)
        self.assertEqual(reader.seen(), [(n, 1) for n in range(1, 101)])
        received: list[Sequence[bytes]] = []

        def send(events: Sequence[bytes]) -> None:
            received.append(events)
            watch.close()

        watch = self.hub.watch(1, send)
        watch.open([])
        self.hub.deliver(changes(*(task(n, text="x" * 4000) for n in range(1, 101))))
        self.assertEqual(len(received), 1)

    def test_output_of_running_tasks_is_sent_in_pieces(self) -> None:
        reader, other, early = self.opened(), self.opened(), WatchReader(self.hub)
        other.watch.close()
        outputs = [log_event(task(n), 1, ["x" * 4000], NOON) for n in range(1, 101)]
        self.hub.deliver_outputs(outputs)
        self.assertLess(max(map(len, reader.pieces)), PIECE + 5000)
        self.assertEqual(b"".join(reader.pieces), b"".join(bytes(each.event) + b"\n" for each in outputs))
        self.assertEqual((other.pieces, early.pieces), ([], []))
        early.watch.open([])
        self.assertEqual(early.seen(), [])

    def test_a_watch_closed_between_two_pieces_of_output_gets_no_more(self) -> None:
        received: list[Sequence[bytes]] = []

        def send(events: Sequence[bytes]) -> None:
            received.append(events)
            watch.close()

        watch = self.hub.watch(1, send)
        watch.open([])
        self.hub.deliver_outputs([log_event(task(n), 1, ["x" * 4000], NOON) for n in range(1, 101)])
        self.assertEqual(len(received), 1)


class ListenerTests(SynchronousTestCase):
    def test_a_listener_is_called_for_changes_outputs_and_gaps(self) -> None:
        hub, received = Hub(), []

        def listener() -> None:
            received.append(1)

        hub.listen(1, listener)
        for deliver in (
            lambda: hub.deliver(changes(task(1, state=State.RUNNING), task(2))),
            lambda: hub.deliver_outputs([progress_event(task(1), 0.5, None), progress_event(task(2), 0.5, None)]),
            hub.gap,
        ):
            deliver()
            self.assertEqual(len(received), 1)
            received.clear()
        hub.forget_listener(1, listener)
        hub.forget_listener(1, listener)
        hub.deliver(changes(task(1)))
        self.assertEqual((received, hub._listeners), ([], {}))


class WaitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.hub = Hub()

    def test_a_wait_fires_when_its_last_task_has_ended(self) -> None:
        wait = self.hub.wait([1, 2, 3])
        self.hub.deliver(changes(task(1, state=State.COMPLETED), task(2, state=State.RUNNING), task(9)))
        self.hub.deliver(changes(task(2, state=State.FAILED)))
        self.assertNoResult(wait.changed)
        self.assertEqual((wait.remaining, wait.size), ({3}, 3))
        self.hub.deliver(changes(task(3, state=State.CANCELLED)))
        self.successResultOf(wait.changed)

    def test_several_waits_may_wait_for_the_same_task(self) -> None:
        waits = [self.hub.wait([1]) for _ in range(3)]
        waits[1].close()
        self.hub.deliver(changes(task(1, state=State.COMPLETED)))
        self.successResultOf(waits[0].changed)
        self.assertNoResult(waits[1].changed)
        self.successResultOf(waits[2].changed)

    def test_a_gap_wakes_every_wait(self) -> None:
        wait = self.hub.wait([1])
        self.hub.gap()
        self.successResultOf(wait.changed)
        wait.rearm()
        self.assertNoResult(wait.changed)
        self.hub.gap()
        self.successResultOf(wait.changed)

    def test_a_repeated_end_is_harmless(self) -> None:
        wait = self.hub.wait([1])
        for _ in range(2):
            wait.ended([1, 2])
            wait.wake()
        self.successResultOf(wait.changed)

    def test_a_closed_wait_leaves_nothing_in_the_hub(self) -> None:
        wait = self.hub.wait([1, 2])
        self.hub.deliver(changes(task(1, state=State.COMPLETED)))
        wait.close()
        self.assertEqual(self.hub._waits, {})


class PublisherTests(StageCase):
    def test_changes_are_announced_at_once_and_delivered_here_a_moment_later(self) -> None:
        """So the reply to the request that made the change is sent first."""
        stage = self.stage
        reader = WatchReader(stage.hub)
        reader.watch.open([])
        stage.publisher.publish([task(1)])
        stage.publisher.publish([task(2), task(1, 2)])
        self.assertEqual([len(decode_batch(body).changes) for body in stage.broker.event_batches], [1, 2])
        self.assertEqual(reader.pieces, [])
        stage.run_pending()
        self.assertEqual(reader.seen(), [(1, 1), (2, 1), (1, 2)])

    def test_publishing_no_tasks_announces_nothing(self) -> None:
        self.stage.publisher.publish([])
        self.assertEqual(self.stage.broker.event_batches, [])

    def test_the_owner_learns_of_give_backs_from_the_third_on(self) -> None:
        """After the change itself. Another server's watch gets it, as a worker's give-back reaches all."""
        hub = Hub()
        reader = WatchReader(hub)
        reader.watch.open([])
        Subscriber(
            self.stage.broker, hub, "other", lambda changes: None, lambda: None, lambda routes: None, lambda: None
        ).start(self.stage.store.installation)
        tasks = [structs.replace(task(n, state=State.WAITING), returns=n) for n in (1, 2, 3, 4)]
        self.stage.publisher.publish_returned(tasks)
        self.stage.run_pending()
        last = [json.loads(line) for line in reader.pieces[-1].splitlines()]
        self.assertEqual(last, [{"event": "returned", "task_id": n, "returns": n} for n in (3, 4)])
        self.assertEqual(reader.seen()[:4], [(1, 1), (2, 1), (3, 1), (4, 1)])
        self.stage.publisher.publish_returned(tasks[:2])
        self.stage.run_pending()
        self.assertEqual(reader.seen(), [])

    def test_own_event_batches_are_ignored_when_they_come_back(self) -> None:
        self.stage.add_worker()
        pool = self.stage.pool()
        ended = task(state=State.COMPLETED)
        self.stage.publisher.publish([ended])
        self.stage.run_pending()
        self.assertEqual(pool.credit.freed, 0)
        self.stage.announce([ended])
        self.assertEqual(pool.credit.freed, 1)

    def test_another_server_gets_the_changes(self) -> None:
        hub, moved = Hub(), []
        reader = WatchReader(hub)
        reader.watch.open([])
        other = Subscriber(
            self.stage.broker,
            hub,
            "other",
            lambda changes: moved.append(1),
            lambda: None,
            lambda routes: None,
            lambda: None,
        )
        other.start(self.stage.store.installation)
        self.stage.publisher.publish([task(1), task(2)])
        self.stage.run_pending()
        self.assertEqual((reader.seen(), moved), ([(1, 1), (2, 1)], [1]))

    def test_large_event_batches_are_split(self) -> None:
        tasks = [task(n, text="x" * 4000) for n in range(1, 301)]
        self.stage.publisher.publish(tasks)
        batches = self.stage.broker.event_batches
        self.assertLess(max(map(len, batches)), MAX_BATCH_BYTES + 10_000)
        self.assertEqual([c.task_id for body in batches for c in decode_batch(body).changes], list(range(1, 301)))

    def test_invalid_event_batches_are_ignored(self) -> None:
        reader = WatchReader(self.stage.hub)
        reader.watch.open([])
        for body in (
            b"",
            b"\xff",
            b"[]",
            b'["me",[[1,2]]]',
            encode(EventBatch(self.stage.store.installation, "other", changes(task()))),
        ):
            self.stage.broker.announce(body)
        self.stage.run_pending()
        self.assertEqual(reader.seen(), [(1, 1)])

    def test_batches_of_another_installation_are_refused(self) -> None:
        """One line says so, and nobody hears of them."""
        hub, moved = Hub(), []
        reader = WatchReader(hub)
        reader.watch.open([])
        other = Subscriber(
            self.stage.broker,
            hub,
            "other",
            lambda changes: moved.append(1),
            lambda: moved.append(2),
            lambda routes: moved.append(3),
            lambda: None,
        )
        other.start(self.stage.store.installation)
        outputs = [log_event(task(), 1, ["secret"], NOON)]
        with capturedLogs() as events:
            for _ in range(2):
                self.stage.broker.announce(
                    encode(
                        EventBatch("elsewhere", "worker", changes(task()), outputs, workers=True, routes=[("q", "k")])
                    )
                )
                self.stage.run_pending()
        self.assertEqual((reader.seen(), moved), ([], []))
        lines = [str(formatEvent(event)) for event in events]
        # the stage has a subscriber of its own
        self.assertEqual(len(lines), 2)
        self.assertIn("installation elsewhere", lines[0])

    def test_much_output_is_sent_in_several_batches(self) -> None:
        outputs = [log_event(task(n), 1, ["x" * 16_000], NOON) for n in range(1, 101)]
        before = len(self.stage.broker.event_batches)
        self.stage.publisher.publish_outputs(outputs)
        bodies = self.stage.broker.event_batches[before:]
        self.assertLess(max(map(len, bodies)), 2 * MAX_BATCH_BYTES)
        sent = [output.task_id for body in bodies for output in decode_batch(body).outputs]
        self.assertEqual(sent, list(range(1, 101)))

    def test_batches_of_workers_or_outputs_bring_no_changes(self) -> None:
        moved, came = [], []
        other = Subscriber(
            self.stage.broker,
            Hub(),
            "other",
            lambda changes: moved.append(1),
            lambda: came.append(1),
            lambda routes: came.append(2),
            lambda: None,
        )
        other.start(self.stage.store.installation)
        self.stage.announce_workers()
        self.assertEqual((moved, came), ([], [1]))
        [one] = self.stage.create()
        self.stage.begin(one)
        moved.clear()
        self.stage.report(one, "a line")
        self.assertEqual((moved, came), ([], [1]))

    def test_lost_events_are_told_to_everyone(self) -> None:
        told: list[str] = []
        subscribed: list[Any] = []
        self.stage.broker.subscribe = lambda *callbacks: subscribed.append(callbacks)  # type: ignore[method-assign]
        hub = Hub()
        hub.listen(1, lambda: told.append("listener"))
        Subscriber(
            self.stage.broker,
            hub,
            "other",
            lambda changes: None,
            lambda: None,
            lambda routes: None,
            lambda: told.append("server"),
        ).start("here")
        [(_, on_gap)] = subscribed
        on_gap()
        self.assertEqual(told, ["server", "listener"])
