"""taskd.scheduling.dispatcher: the window is refilled in fair order, and no user is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

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
        self.route_window = self.stage.window()

    def create_waiting(self, name: str, count: int = 1) -> list[Task]:
        """Create waiting tasks of a user, and mark the user as backlogged in the window."""
        tasks = self.stage.create(name, count, State.WAITING)
        self.route_window.mark_backlogged(self.stage.user_id(name))
        return tasks

    def tick(self) -> None:
        self.dispatcher.tick()
        self.stage.run_pending()

    def published(self) -> list[str]:
        """The users of the published tasks, in order. Clears the list of published messages."""
        names = {self.stage.user_id(name): name for name in ("ana", "eva", "leo")}
        tasks = self.stage.tasks(*(message.task_id for message in self.stage.broker.published))
        self.stage.broker.published.clear()
        return [names[task.user_id] for task in tasks]

    def test_waiting_tasks_are_published_and_their_outbox_row_is_deleted(self) -> None:
        tasks = self.create_waiting("ana", 3)
        self.tick()
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 3)
        self.assertEqual([m.task_id for m in self.stage.broker.published], [task.id for task in tasks])
        self.assertEqual(self.route_window.room, 7)
        self.assertFalse(self.route_window.has_backlog)
        self.stage.run_maintenance()
        self.assertEqual(self.stage.outbox_rows(), 0)

    def test_no_more_tasks_are_published_than_there_is_room_for(self) -> None:
        self.create_waiting("ana", 25)
        self.tick()
        self.assertEqual(len(self.stage.broker.published), 10)
        self.assertTrue(self.route_window.has_backlog)
        self.tick()
        self.assertEqual(len(self.stage.broker.published), 10)
        self.route_window.take(-4)
        self.tick()
        self.assertEqual(len(self.stage.broker.published), 14)

    def test_the_backlog_is_dispatched_round_robin_over_its_users(self) -> None:
        self.create_waiting("ana", 20)
        self.create_waiting("eva", 2)
        self.create_waiting("leo", 1)
        self.tick()
        first = self.published()
        self.assertEqual(first[:5], ["ana", "eva", "leo", "ana", "eva"])
        self.assertEqual(first.count("ana"), 7)

    def test_a_round_over_the_users_continues_where_the_room_ended(self) -> None:
        for name in ("ana", "eva", "leo"):
            self.create_waiting(name, 5)
        for room in (1, 1, 2, 1, 4):
            self.route_window.correct(10 - room)
            self.tick()
        self.assertEqual(self.published(), ["ana", "eva", "leo"] * 3)

    def test_changes_are_announced_before_the_messages_go_out(self) -> None:
        self.create_waiting("ana", 2)
        self.tick()
        self.assertEqual(self.stage.broker.sent, ["events", "messages"])

    def test_wake_waits_until_there_is_room_for_a_worthwhile_batch(self) -> None:
        self.create_waiting("ana", 30)
        self.tick()
        self.route_window.take(-1)
        self.dispatcher.wake()
        self.stage.run_pending()
        self.assertEqual(len(self.stage.broker.published), 10)
        self.route_window.take(-1)
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

    def test_a_tick_finds_tasks_that_were_not_announced(self) -> None:
        tasks = self.stage.create("ana", 1, State.WAITING)
        self.tick()
        self.assertEqual(self.stage.states(*tasks), ["queued"])

    def test_nothing_is_dispatched_while_the_broker_is_away(self) -> None:
        tasks = self.create_waiting("ana", 3)
        self.stage.broker.ready = False
        self.tick()
        self.assertEqual(self.stage.states(*tasks), ["waiting"] * 3)
        self.stage.broker.ready = True
        self.tick()
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 3)

    def test_a_dispatch_that_failed_with_the_store_away_takes_no_room(self) -> None:
        self.create_waiting("ana", 3)
        self.stage.runner.away = True
        self.tick()
        self.assertEqual(self.route_window.room, 10)
        self.assertTrue(self.route_window.has_backlog)
        self.stage.runner.away = False
        self.tick()
        self.assertEqual(self.route_window.room, 7)

    def test_a_defect_is_logged_and_the_next_tick_dispatches(self) -> None:
        self.create_waiting("ana", 3)
        self.stage.runner.broken = True
        self.tick()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.stage.runner.broken = False
        self.tick()
        self.assertEqual(len(self.stage.broker.published), 3)

    def test_only_one_dispatch_statement_runs_at_a_time(self) -> None:
        self.create_waiting("ana", 3)
        self.stage.runner.slow = True
        for _ in range(3):
            self.tick()
        self.assertEqual(self.stage.runner.waiting, 1)

    def test_a_wake_during_a_statement_starts_another(self) -> None:
        self.create_waiting("ana", 3)
        self.stage.runner.slow = True
        self.tick()
        self.stage.runner.slow = False
        tasks = self.create_waiting("eva", 2)
        self.dispatcher.wake()
        self.stage.run_pending()
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 2)

    def test_stop_waits_for_the_running_statement(self) -> None:
        self.create_waiting("ana", 30)
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


def _nothing() -> None:
    """The default of FakeStore.on_call."""


class FakeStore:
    """A store with dispatch() only: it records the calls and gives the prepared answers."""

    def __init__(self, *answers: Dispatched) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[int, int | None]] = []
        self.on_call: Callable[[], object] = _nothing
        self.slow = False
        self.pending: list[Deferred[Dispatched]] = []

    def dispatch(self, batch: str, route: Route, limit: int, after_user: int | None) -> Deferred[Dispatched]:
        self.calls.append((limit, after_user))
        self.on_call()
        answer: Deferred[Dispatched] = Deferred()
        self.pending.append(answer)
        if not self.slow:
            self.answer()
        return answer

    def answer(self) -> None:
        """Answer the oldest call with the next prepared answer, or with no tasks."""
        self.pending.pop(0).callback(self.answers.pop(0) if self.answers else Dispatched((), None, False))


class Rounds(StageCase):
    """When a round over the users ends the dispatch, with a fake store."""

    def dispatcher(self, store: FakeStore, window: Window) -> Dispatcher:
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

    def dispatch_answers(self, *answers: Dispatched, room: int = 5000) -> tuple[FakeStore, Window]:
        stage, store, window = self.stage, FakeStore(*answers), Window(room)
        dispatcher = self.dispatcher(store, window)
        window.mark_backlogged(1)
        store.on_call = partial(window.mark_backlogged, 2)
        dispatcher.tick()
        stage.run_pending()
        return store, window

    def tasks(self, count: int) -> Sequence[Task]:
        return self.stage.create(count=count)

    def test_a_round_of_one_batch_that_left_nothing_ends_the_dispatch(self) -> None:
        store, window = self.dispatch_answers(Dispatched((), None, False))
        self.assertEqual(store.calls, [(BATCH, None)])
        self.assertTrue(window.admit(1))
        self.assertFalse(window.admit(2), "marked during the round")

    def test_a_round_of_several_batches_that_left_nothing_ends_the_dispatch(self) -> None:
        store, window = self.dispatch_answers(
            Dispatched((), 7, False), Dispatched((), 9, False), Dispatched((), None, False)
        )
        self.assertEqual([after for _, after in store.calls], [None, 7, 9])
        self.assertTrue(window.admit(1))

    def test_a_full_batch_within_a_round_starts_another_round(self) -> None:
        store, window = self.dispatch_answers(
            Dispatched(self.tasks(BATCH), 7, True), Dispatched((), None, False), Dispatched((), None, False)
        )
        self.assertEqual([after for _, after in store.calls], [None, 7, None])
        self.assertTrue(window.admit(1))

    def test_a_full_batch_at_the_end_of_a_round_starts_another_round(self) -> None:
        store, window = self.dispatch_answers(Dispatched(self.tasks(BATCH), None, True), Dispatched((), None, False))
        self.assertEqual([after for _, after in store.calls], [None, None])
        self.assertTrue(window.admit(1))

    def test_a_round_that_ends_for_lack_of_room_clears_no_user(self) -> None:
        store, window = self.dispatch_answers(Dispatched(self.tasks(3), 7, True), Dispatched((), None, False), room=3)
        self.assertEqual(store.calls, [(3, None)])
        window.take(-1)
        self.assertFalse(window.admit(1))

    def test_a_wake_during_a_statement_starts_exactly_one_more(self) -> None:
        """The running statement may have read the backlog too early."""
        store, window = FakeStore(), Window(5000)
        store.slow = True
        dispatcher = self.dispatcher(store, window)
        dispatcher.tick()
        window.mark_backlogged(1)
        dispatcher.wake()
        self.stage.run_pending()
        self.assertEqual(len(store.calls), 1)
        store.answer()
        self.stage.run_pending()
        self.assertEqual(len(store.calls), 2)
        store.answer()
        self.stage.run_pending()
        self.assertEqual(len(store.calls), 2)

    def test_a_large_backlog_is_dispatched_in_several_batches(self) -> None:
        stage = Stage(window=3000).learn_backlog()
        self.addCleanup(stage.close)
        stage.create("ana", 1200, State.WAITING)
        stage.create("eva", 10, State.WAITING)
        stage.routes.tick()
        stage.run_pending()
        self.assertEqual(len(stage.broker.published), 1210)
        self.assertFalse(stage.window().has_backlog)
