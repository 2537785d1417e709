"""taskd.events.hub and publisher: who hears of what, once and in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taskd.events.hub import MAX_EARLY, MAX_SEEN, PIECE, Hub, Watch
from taskd.events.publisher import MAX_BATCH_BYTES, changes_of
from taskd.events.records import EventBatch, TaskChange, decode_batch, log_event, progress_event
from taskd.events.subscriber import Subscriber
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.protocol.messages import encode
from tests.unit.stage import NOON, StageCase


def task(task_id: int = 1, version: int = 1, state: State = State.QUEUED, user_id: int = 1, text: str = "t") -> Task:
    return Task(task_id, user_id, text, "simulate", "tasks", state, NOON, NOON, version=version)


def changes(*tasks: Task) -> list[TaskChange]:
    return changes_of(tasks, NOON)


class Reader:
    """What a watch has sent."""

    def __init__(self, hub: Hub, user_id: int = 1) -> None:
        self.pieces: list[bytes] = []
        self.watch = hub.watch(user_id, self._send)

    def _send(self, events: Sequence[bytes]) -> None:
        self.pieces.append(b"".join(event + b"\n" for event in events))

    def seen(self) -> list[Any]:
        """(task, version) of each event, the event's name of others."""
        lines = [json.loads(line) for line in b"".join(self.pieces).splitlines()]
        self.pieces.clear()
        return [(x["task"]["id"], x["task"]["version"]) if x["event"] == "task" else x["event"] for x in lines]


class WatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.hub = Hub()

    def opened(self, *snapshot: Task) -> Reader:
        reader = Reader(self.hub)
        reader.watch.open(snapshot)
        return reader

    def test_every_change_of_ones_own_tasks_and_no_others(self) -> None:
        reader, other = self.opened(), Reader(self.hub, 2)
        other.watch.open([])
        self.hub.deliver(changes(task(1), task(2, user_id=2), task(3)))
        self.assertEqual(reader.seen(), [(1, 1), (3, 1)])
        self.assertEqual(other.seen(), [(2, 1)])

    def test_all_watches_of_a_user_hear_the_same(self) -> None:
        readers = [self.opened() for _ in range(3)]
        self.hub.deliver(changes(task()))
        self.assertEqual([reader.seen() for reader in readers], [[(1, 1)]] * 3)

    def test_what_comes_before_the_snapshot_follows_it(self) -> None:
        reader = Reader(self.hub)
        self.hub.deliver(changes(task(1, 2), task(2, 1)))
        self.hub.deliver(changes(task(3, 5)))
        self.assertEqual(reader.seen(), [])
        reader.watch.open([task(1, 2), task(3, 4)])
        self.assertEqual(reader.seen(), [(2, 1), (3, 5)])

    def test_each_version_once_and_never_an_older_one(self) -> None:
        reader = self.opened(task(1, 3))
        for version in (3, 2, 4, 4, 3, 6, 5):
            self.hub.deliver(changes(task(1, version)))
        self.assertEqual(reader.seen(), [(1, 4), (1, 6)])

    def test_what_is_remembered_is_bounded_and_the_youngest_is_kept(self) -> None:
        reader = self.opened(task(1, 1))
        self.hub.deliver(changes(*(task(n) for n in range(2, MAX_SEEN + 1))))
        self.hub.deliver(changes(task(1, 5), task(MAX_SEEN + 1)))
        reader.seen()
        self.hub.deliver(changes(task(1, 4), task(2, 1)))
        self.assertEqual(reader.seen(), [(2, 1)], "1 has changed lately, 2 is forgotten")

    def test_a_closed_watch_hears_nothing(self) -> None:
        reader = self.opened()
        reader.watch.close()
        reader.watch.close()
        self.hub.deliver(changes(task()))
        self.hub.gap()
        self.assertEqual(reader.pieces, [])

    def test_one_that_is_closed_before_its_snapshot_never_speaks(self) -> None:
        reader = Reader(self.hub)
        self.hub.deliver(changes(task()))
        reader.watch.close()
        reader.watch.open([])
        self.assertEqual(reader.pieces, [])

    def test_one_that_another_closes_while_both_are_told(self) -> None:
        watches: list[Watch] = []
        heard: list[Sequence[bytes]] = []

        def send(events: Sequence[bytes]) -> None:
            heard.append(events)
            for watch in watches:
                watch.close()

        watches += [self.hub.watch(1, send) for _ in range(2)]
        for watch in watches:
            watch.open([])
        self.hub.deliver(changes(task()))
        self.assertEqual(len(heard), 1)

    def test_a_gap_ends_it(self) -> None:
        reader = self.opened()
        self.hub.gap()
        self.hub.gap()
        self.hub.deliver(changes(task()))
        self.assertEqual(reader.seen(), ["gap"])
        self.assertTrue(reader.watch.closed)

    def test_a_gap_before_the_snapshot_comes_behind_it(self) -> None:
        reader = Reader(self.hub)
        self.hub.deliver(changes(task()))
        self.hub.gap()
        self.assertEqual(reader.pieces, [])
        reader.watch.open([])
        self.assertEqual(reader.seen(), ["gap"])

    def test_too_much_before_the_snapshot_is_a_gap(self) -> None:
        reader = Reader(self.hub)
        for n in range(1, MAX_EARLY // 4000 + 10):
            self.hub.deliver(changes(task(n, text="x" * 4000)))
        reader.watch.open([])
        self.assertEqual(reader.seen(), ["gap"])

    def test_large_events_come_in_pieces_and_a_watch_closed_between_them_stops(self) -> None:
        reader = self.opened()
        self.hub.deliver(changes(*(task(n, text="x" * 4000) for n in range(1, 101))))
        self.assertLess(max(map(len, reader.pieces)), PIECE + 5000)
        self.assertEqual(reader.seen(), [(n, 1) for n in range(1, 101)])
        heard: list[Sequence[bytes]] = []

        def send(events: Sequence[bytes]) -> None:
            heard.append(events)
            watch.close()

        watch = self.hub.watch(1, send)
        watch.open([])
        self.hub.deliver(changes(*(task(n, text="x" * 4000) for n in range(1, 101))))
        self.assertEqual(len(heard), 1)

    def test_what_running_tasks_say_is_passed_on_in_pieces(self) -> None:
        reader, other, early = self.opened(), self.opened(), Reader(self.hub)
        other.watch.close()
        said = [log_event(task(n), 1, ["x" * 4000], NOON) for n in range(1, 101)]
        self.hub.deliver_outputs(said)
        self.assertLess(max(map(len, reader.pieces)), PIECE + 5000)
        self.assertEqual(b"".join(reader.pieces), b"".join(bytes(each.event) + b"\n" for each in said))
        self.assertEqual((other.pieces, early.pieces), ([], []))
        early.watch.open([])
        self.assertEqual(early.seen(), [])

    def test_a_watch_closed_between_two_pieces_hears_no_more(self) -> None:
        heard: list[Sequence[bytes]] = []

        def send(events: Sequence[bytes]) -> None:
            heard.append(events)
            watch.close()

        watch = self.hub.watch(1, send)
        watch.open([])
        self.hub.deliver_outputs([log_event(task(n), 1, ["x" * 4000], NOON) for n in range(1, 101)])
        self.assertEqual(len(heard), 1)


class ListenerTests(SynchronousTestCase):
    def test_changes_words_and_gaps_are_news(self) -> None:
        hub, heard = Hub(), []

        def listener() -> None:
            heard.append(1)

        hub.listen(1, listener)
        for news in (
            lambda: hub.deliver(changes(task(1, state=State.RUNNING), task(2))),
            lambda: hub.deliver_outputs([progress_event(task(1), 0.5, None), progress_event(task(2), 0.5, None)]),
            hub.gap,
        ):
            news()
            self.assertEqual(len(heard), 1)
            heard.clear()
        hub.forget_listener(1, listener)
        hub.forget_listener(1, listener)
        hub.deliver(changes(task(1)))
        self.assertEqual((heard, hub._listeners), ([], {}))


class WaitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.hub = Hub()

    def test_it_fires_when_the_last_has_ended(self) -> None:
        wait = self.hub.wait([1, 2, 3])
        self.hub.deliver(changes(task(1, state=State.COMPLETED), task(2, state=State.RUNNING), task(9)))
        self.hub.deliver(changes(task(2, state=State.FAILED)))
        self.assertNoResult(wait.changed)
        self.assertEqual((wait.remaining, wait.size), ({3}, 3))
        self.hub.deliver(changes(task(3, state=State.CANCELLED)))
        self.successResultOf(wait.changed)

    def test_many_may_wait_for_the_same_task(self) -> None:
        waits = [self.hub.wait([1]) for _ in range(3)]
        waits[1].close()
        self.hub.deliver(changes(task(1, state=State.COMPLETED)))
        self.successResultOf(waits[0].changed)
        self.assertNoResult(waits[1].changed)
        self.successResultOf(waits[2].changed)

    def test_a_gap_wakes_all_as_nobody_knows(self) -> None:
        wait = self.hub.wait([1])
        self.hub.gap()
        self.successResultOf(wait.changed)
        wait.rearm()
        self.assertNoResult(wait.changed)
        self.hub.gap()
        self.successResultOf(wait.changed)

    def test_what_has_ended_can_be_said_again(self) -> None:
        wait = self.hub.wait([1])
        for _ in range(2):
            wait.ended([1, 2])
            wait.wake()
        self.successResultOf(wait.changed)

    def test_nothing_is_left_of_those_that_are_over(self) -> None:
        wait = self.hub.wait([1, 2])
        self.hub.deliver(changes(task(1, state=State.COMPLETED)))
        wait.close()
        self.assertEqual(self.hub._waits, {})


class AnnouncerTests(StageCase):
    def test_the_others_are_told_at_once_and_our_own_readers_a_moment_later(self) -> None:
        """So that the reply to who asked for a change comes first."""
        stage = self.stage
        reader = Reader(stage.hub)
        reader.watch.open([])
        stage.publisher.publish([task(1)])
        stage.publisher.publish([task(2), task(1, 2)])
        self.assertEqual([len(decode_batch(body).changes) for body in stage.broker.event_batches], [1, 2])
        self.assertEqual(reader.pieces, [])
        stage.run_pending()
        self.assertEqual(reader.seen(), [(1, 1), (2, 1), (1, 2)])

    def test_nothing_is_nothing(self) -> None:
        self.stage.publisher.publish([])
        self.assertEqual(self.stage.broker.event_batches, [])

    def test_ones_own_news_are_passed_over_when_they_come_back(self) -> None:
        window = self.stage.window()
        self.stage.publisher.publish([task()])
        self.stage.run_pending()
        self.assertEqual(window.room, 2000)
        self.stage.announce([task()])
        self.assertEqual(window.room, 1999)

    def test_a_second_server_hears_of_it(self) -> None:
        hub, moved = Hub(), []
        reader = Reader(hub)
        reader.watch.open([])
        other = Subscriber(self.stage.broker, hub, "other", lambda changes: moved.append(1), lambda: None)
        other.start()
        self.stage.publisher.publish([task(1), task(2)])
        self.stage.run_pending()
        self.assertEqual((reader.seen(), moved), ([(1, 1), (2, 1)], [1]))

    def test_large_news_travel_in_pieces(self) -> None:
        tasks = [task(n, text="x" * 4000) for n in range(1, 301)]
        self.stage.publisher.publish(tasks)
        news = self.stage.broker.event_batches
        self.assertLess(max(map(len, news)), MAX_BATCH_BYTES + 10_000)
        self.assertEqual([c.task_id for body in news for c in decode_batch(body).changes], list(range(1, 301)))

    def test_news_that_cannot_be_read_are_passed_over(self) -> None:
        reader = Reader(self.stage.hub)
        reader.watch.open([])
        for body in (b"", b"\xff", b"[]", b'["me",[[1,2]]]', encode(EventBatch("other", changes(task())))):
            self.stage.broker.announce(body)
        self.stage.run_pending()
        self.assertEqual(reader.seen(), [(1, 1)])

    def test_news_of_workers_and_words_move_no_window(self) -> None:
        moved, came = [], []
        other = Subscriber(self.stage.broker, Hub(), "other", lambda changes: moved.append(1), lambda: came.append(1))
        other.start()
        self.stage.announce_workers()
        self.assertEqual((moved, came), ([], [1]))
        [one] = self.stage.create()
        self.stage.claim(one)
        moved.clear()
        self.stage.report(one, "a line")
        self.assertEqual((moved, came), ([], [1]))

    def test_an_order_to_stop_is_no_news_of_a_change(self) -> None:
        self.stage.publisher.publish_cancel_order([3, 4])
        self.assertEqual((self.stage.broker.cancel_orders, self.stage.broker.event_batches), ([[3, 4]], []))
