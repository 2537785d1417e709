"""taskd.scheduling.dispatcher: the window is refilled in fair order, and nobody is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred

from taskd.model.states import State
from taskd.model.tasks import Route, Task
from taskd.ports.scheduling import Dispatched
from taskd.scheduling.dispatcher import BATCH, Dispatcher
from taskd.scheduling.window import Window
from tests.unit.stage import Stage, StageCase


class Dispatching(StageCase):
    window = 10

    def setUp(self) -> None:
        super().setUp()
        self.dispatcher = self.stage.routes.dispatchers[Route("tasks", "simulate")]
        self.place = self.stage.window()

    def waiting(self, name: str, count: int = 1) -> list[Task]:
        """Tasks of a user that wait, which the window knows."""
        tasks = self.stage.create(name, count, State.WAITING)
        self.place.mark_backlogged(self.stage.user_id(name))
        return tasks

    def tick(self) -> None:
        self.dispatcher.tick()
        self.stage.run_pending()

    def published(self) -> list[str]:
        """Whose tasks were handed over, in order."""
        names = {self.stage.user_id(name): name for name in ("ana", "eva", "leo")}
        tasks = self.stage.tasks(*(message.task_id for message in self.stage.broker.published))
        self.stage.broker.published.clear()
        return [names[task.user_id] for task in tasks]

    def test_what_waits_is_handed_over_and_its_outbox_row_goes(self) -> None:
        tasks = self.waiting("ana", 3)
        self.tick()
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 3)
        self.assertEqual([m.task_id for m in self.stage.broker.published], [task.id for task in tasks])
        self.assertEqual(self.place.room, 7)
        self.assertFalse(self.place.has_backlog)
        self.stage.run_maintenance()
        self.assertEqual(self.stage.outbox_rows(), 0)

    def test_no_more_than_there_is_room_for(self) -> None:
        self.waiting("ana", 25)
        self.tick()
        self.assertEqual(len(self.stage.broker.published), 10)
        self.assertTrue(self.place.has_backlog)
        self.tick()
        self.assertEqual(len(self.stage.broker.published), 10)
        self.place.take(-4)
        self.tick()
        self.assertEqual(len(self.stage.broker.published), 14)

    def test_users_take_turns(self) -> None:
        self.waiting("ana", 20)
        self.waiting("eva", 2)
        self.waiting("leo", 1)
        self.tick()
        first = self.published()
        self.assertEqual(first[:5], ["ana", "eva", "leo", "ana", "eva"])
        self.assertEqual(first.count("ana"), 7)

    def test_a_round_of_users_goes_on_where_room_ended_it(self) -> None:
        for name in ("ana", "eva", "leo"):
            self.waiting(name, 5)
        for room in (1, 1, 2, 1, 4):
            self.place.correct(10 - room)
            self.tick()
        self.assertEqual(self.published(), ["ana", "eva", "leo"] * 3)

    def test_changes_are_announced_before_the_messages_go_out(self) -> None:
        self.waiting("ana", 2)
        self.tick()
        self.assertEqual(self.stage.broker.sent, ["events", "messages"])

    def test_wake_waits_until_a_turn_is_worth_its_while(self) -> None:
        self.waiting("ana", 30)
        self.tick()
        self.place.take(-1)
        self.dispatcher.wake()
        self.stage.run_pending()
        self.assertEqual(len(self.stage.broker.published), 10)
        self.place.take(-1)
        self.dispatcher.wake()
        self.dispatcher.wake()
        self.stage.run_pending()
        self.assertEqual(len(self.stage.broker.published), 12)

    def test_wake_does_nothing_without_a_backlog(self) -> None:
        self.stage.create("ana", 1, State.WAITING)
        calls = self.stage.runner.calls
        self.dispatcher.wake()
        self.stage.run_pending()
        self.assertEqual(self.stage.runner.calls, calls)

    def test_a_tick_finds_what_nobody_told_of(self) -> None:
        tasks = self.stage.create("ana", 1, State.WAITING)
        self.tick()
        self.assertEqual(self.stage.states(*tasks), ["queued"])

    def test_nothing_while_the_broker_is_away_and_all_when_it_is_back(self) -> None:
        tasks = self.waiting("ana", 3)
        self.stage.broker.ready = False
        self.tick()
        self.assertEqual(self.stage.states(*tasks), ["waiting"] * 3)
        self.stage.broker.ready = True
        self.tick()
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 3)

    def test_the_store_is_away_and_the_window_stays_right(self) -> None:
        self.waiting("ana", 3)
        self.stage.runner.away = True
        self.tick()
        self.assertEqual(self.place.room, 10)
        self.assertTrue(self.place.has_backlog)
        self.stage.runner.away = False
        self.tick()
        self.assertEqual(self.place.room, 7)

    def test_a_defect_of_a_turn_is_logged_and_the_next_turn_goes_on(self) -> None:
        self.waiting("ana", 3)
        self.stage.runner.broken = True
        self.tick()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.stage.runner.broken = False
        self.tick()
        self.assertEqual(len(self.stage.broker.published), 3)

    def test_one_turn_at_a_time(self) -> None:
        self.waiting("ana", 3)
        self.stage.runner.slow = True
        for _ in range(3):
            self.tick()
        self.assertEqual(self.stage.runner.waiting, 1)

    def test_what_comes_during_a_turn_gets_another(self) -> None:
        self.waiting("ana", 3)
        self.stage.runner.slow = True
        self.tick()
        self.stage.runner.slow = False
        tasks = self.waiting("eva", 2)
        self.dispatcher.wake()
        self.stage.run_pending()
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 2)

    def test_stop_ends_with_the_turn_under_way(self) -> None:
        self.waiting("ana", 30)
        self.stage.runner.slow = True
        self.tick()
        self.dispatcher.wake()
        stopped = self.dispatcher.stop()
        self.assertNoResult(stopped)
        self.stage.runner.run_waiting()
        self.successResultOf(stopped)
        self.tick()
        self.dispatcher.wake()
        self.stage.run_pending()
        self.assertEqual(self.stage.runner.waiting, 0)
        self.successResultOf(self.dispatcher.stop())


class Turns:
    """A store that knows turns only: it notes how they are asked for and answers as it was told."""

    def __init__(self, *answers: Dispatched) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, int | None]] = []
        self.meanwhile: Any = lambda: None
        self.slow = False
        self.pending: list[Deferred[Dispatched]] = []

    def dispatch(self, batch: str, route: Route, limit: int, after_user: int | None) -> Deferred[Dispatched]:
        self.asked.append((limit, after_user))
        self.meanwhile()
        answer: Deferred[Dispatched] = Deferred()
        self.pending.append(answer)
        if not self.slow:
            self.answer()
        return answer

    def answer(self) -> None:
        """The turn has ended."""
        self.pending.pop(0).callback(self.answers.pop(0) if self.answers else Dispatched((), None, False))


class Rounds(StageCase):
    """What full turns and complete rounds mean, with turns that are told."""

    def dispatcher(self, store: Turns, window: Window) -> Dispatcher:
        return Dispatcher(
            self.stage.clock,
            store,  # type: ignore[arg-type]
            self.stage.broker,
            self.stage.outbox,
            self.stage.publisher,
            self.stage.new_id,
            Route("tasks", "simulate"),
            window,
        )

    def run_turns(self, *answers: Dispatched, room: int = 5000) -> tuple[Turns, Window]:
        stage, store, window = self.stage, Turns(*answers), Window(room)
        dispatcher = self.dispatcher(store, window)
        window.mark_backlogged(1)
        store.meanwhile = lambda: window.mark_backlogged(2)
        dispatcher.tick()
        stage.run_pending()
        return store, window

    def tasks(self, count: int) -> Sequence[Task]:
        return self.stage.create(count=count)

    def test_a_clean_round_of_one_turn_ends_the_turns(self) -> None:
        store, window = self.run_turns(Dispatched((), None, False))
        self.assertEqual(store.asked, [(BATCH, None)])
        self.assertTrue(window.admit(1))
        self.assertFalse(window.admit(2), "suspected while it went round")

    def test_a_clean_round_of_several_turns(self) -> None:
        store, window = self.run_turns(Dispatched((), 7, False), Dispatched((), 9, False), Dispatched((), None, False))
        self.assertEqual([after for _, after in store.asked], [None, 7, 9])
        self.assertTrue(window.admit(1))

    def test_a_round_with_a_full_turn_begins_anew(self) -> None:
        store, window = self.run_turns(
            Dispatched(self.tasks(BATCH), 7, True), Dispatched((), None, False), Dispatched((), None, False)
        )
        self.assertEqual([after for _, after in store.asked], [None, 7, None])
        self.assertTrue(window.admit(1))

    def test_a_full_turn_that_completes_the_round_does_not_end_it_clean(self) -> None:
        store, window = self.run_turns(Dispatched(self.tasks(BATCH), None, True), Dispatched((), None, False))
        self.assertEqual([after for _, after in store.asked], [None, None])
        self.assertTrue(window.admit(1))

    def test_without_room_the_round_waits_where_it_is_and_clears_nobody(self) -> None:
        store, window = self.run_turns(Dispatched(self.tasks(3), 7, True), Dispatched((), None, False), room=3)
        self.assertEqual(store.asked, [(3, None)])
        window.take(-1)
        self.assertFalse(window.admit(1))

    def test_who_wakes_it_during_a_turn_gets_another_one(self) -> None:
        """That one may have looked too early."""
        store, window = Turns(), Window(5000)
        store.slow = True
        dispatcher = self.dispatcher(store, window)
        dispatcher.tick()
        window.mark_backlogged(1)
        dispatcher.wake()
        self.stage.run_pending()
        self.assertEqual(len(store.asked), 1)
        store.answer()
        self.stage.run_pending()
        self.assertEqual(len(store.asked), 2)
        store.answer()
        self.stage.run_pending()
        self.assertEqual(len(store.asked), 2)

    def test_a_large_backlog_is_handed_over_in_as_many_turns_as_it_takes(self) -> None:
        stage = Stage(window=3000).learn_backlog()
        stage.create("ana", 1200, State.WAITING)
        stage.create("eva", 10, State.WAITING)
        stage.routes.tick()
        stage.run_pending()
        self.assertEqual(len(stage.broker.published), 1210)
        self.assertFalse(stage.window().has_backlog)
