"""taskd.scheduling.dispatcher: when a server takes turns, and that it takes none without need."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from taskd.events.records import EventBatch
from taskd.model.errors import Unavailable
from taskd.model.states import State
from taskd.model.tasks import NewTask, Task
from taskd.ports.attempts import Held
from taskd.ports.scheduling import Pool, Turn, TurnTooSlow
from taskd.ports.workers import KindInfo
from taskd.protocol.messages import encode
from taskd.scheduling.dispatcher import CHECK, FULL, MOST_FOLLOWED, PATIENT, ROOM_LEFT, Assignment
from taskd.scheduling.pools import LIMIT
from taskd.scheduling.turns import GATHER
from tests.unit.stage import StageCase, now

STEP = 0.01


class DispatchCase(StageCase):
    """Counts the turns of a server. The test says what they find with ``answer``; else the store assigns."""

    def setUp(self) -> None:
        super().setUp()
        self.turns: list[tuple[float, Pool]] = []
        self.answer: Any = None
        self.began = self.stage.clock.seconds()
        assign = self.stage.store.assign

        def counted(pool: Pool, limit: int, after_user: int, patient: bool = False) -> Any:
            self.turns.append((self.stage.clock.seconds() - self.began, pool))
            self.assertEqual(limit, LIMIT)
            return assign(pool, limit, after_user, patient) if self.answer is None else self.answer()

        self.stage.store.assign = counted  # type: ignore[method-assign]

    def pass_time(self, seconds: float) -> None:
        self.stage.pass_time(seconds, STEP)

    def start_anew(self) -> None:
        """Count from now on."""
        self.turns.clear()
        self.began = self.stage.clock.seconds()

    def times(self) -> list[float]:
        """When turns began."""
        return [round(at, 2) for at, _ in self.turns]

    def answer_with(self, backlog: bool, room: float, *tasks: Task, after_user: int = 0) -> None:
        self.answer = lambda: succeed(Turn(tasks, {"w": room}, backlog, after_user))

    def announce_new(self, *tasks: Task) -> None:
        """Another server announces what it has created."""
        self.stage.announce(tasks)


class Assigning(DispatchCase):
    def test_a_worker_that_comes_gets_what_waits(self) -> None:
        tasks = self.stage.create(count=3)
        self.stage.add_worker()
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 3)
        self.assertEqual({task.worker for task in self.stage.tasks(*tasks)}, {"w"})
        self.assertEqual(self.stage.broker.hinted, ["w"])

    def test_changes_are_announced_before_the_hints(self) -> None:
        self.stage.create(count=2)
        self.stage.broker.sent.clear()
        self.stage.add_worker()
        self.assertEqual(self.stage.broker.sent, ["events", "events", "hints"], "of the worker, of the tasks")

    def test_no_more_are_assigned_than_there_are_slots(self) -> None:
        tasks = self.stage.create(count=10)
        self.stage.add_worker(slots=4)
        self.pass_time(3)
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 4 + ["waiting"] * 6)

    def test_a_user_with_one_task_does_not_wait_behind_those_of_another(self) -> None:
        self.stage.add_worker(slots=2)
        self.stage.create("ana", 3000)
        self.stage.dispatcher.gap()
        self.pass_time(1)
        [single] = self.stage.create("eva")
        self.announce_new(single)
        held = [task for task in self.stage.tasks() if task.state is State.QUEUED]
        self.stage.finish(held[0])
        self.pass_time(GATHER + STEP)
        self.assertEqual(self.stage.states(single), ["queued"])

    def test_a_large_backlog_is_assigned_in_turns_that_follow_at_once(self) -> None:
        tasks = self.stage.create(count=2 * LIMIT + 10)
        self.stage.add_worker(slots=5000)
        self.assertEqual(len(self.turns), 3)
        self.assertEqual(set(self.stage.states(*tasks)), {"queued"})

    def test_routes_in_which_there_is_something_to_do(self) -> None:
        """Others say so: tasks have become due, or a cancelled task has left its slot."""
        self.stage.add_worker()
        self.answer_with(False, 0.0)
        self.pass_time(2)
        for _ in range(2):
            self.start_anew()
            self.stage.announce_routes(("tasks", "simulate"), ("elsewhere", "simulate"))
            self.pass_time(0.2)
            self.assertEqual(len(self.turns), 1)

    def test_room_that_another_server_takes_is_counted_within_a_second(self) -> None:
        self.stage.add_worker()
        self.answer_with(False, 4.0)
        self.pass_time(5)
        self.start_anew()
        [task] = self.stage.create(worker="w")
        self.assertIs(task.state, State.QUEUED)
        self.announce_new(task)
        self.pass_time(3)
        [at] = self.times()
        self.assertLess(abs(at - 1.0), 0.1)

    def test_a_pool_that_was_full_is_looked_at_when_a_task_comes(self) -> None:
        """Its worker holds less by now, and nobody has heard of the end."""
        self.stage.add_worker()
        self.stage.change_worker(holds=4)
        self.answer_with(False, 0.0)
        self.pass_time(5)
        self.stage.change_worker(holds=3)
        self.start_anew()
        self.announce_new(*self.stage.create())
        self.pass_time(0.1)
        self.assertEqual(len(self.turns), 1)

    def test_a_turn_that_takes_too_long_is_taken_for_fewer_tasks(self) -> None:
        asked: list[tuple[int, bool]] = []

        def assign(pool: Pool, limit: int, after_user: int, patient: bool = False) -> Any:
            asked.append((limit, patient))
            return fail(TurnTooSlow("it took long")) if len(asked) <= 6 else succeed(Turn((), {"w": 1.0}, True, 0))

        self.stage.store.assign = assign  # type: ignore[method-assign]
        self.stage.add_worker()
        self.pass_time(2.5)
        limits = [limit for limit, _ in asked]
        self.assertEqual(limits[:10], [500, 250, 125, 62, 31, 20, 20, 40, 80, 160])
        self.assertEqual([patient for _, patient in asked[:10]], [limit <= PATIENT for limit in limits[:10]])

    def test_the_next_turn_begins_after_the_user_that_the_last_one_said(self) -> None:
        asked = []

        def assign(pool: Pool, limit: int, after_user: int, patient: bool = False) -> Any:
            asked.append(after_user)
            return succeed(Turn((), {"w": 1.0}, True, after_user + 7))

        self.stage.store.assign = assign  # type: ignore[method-assign]
        self.stage.add_worker()
        self.pass_time(2.5 * ROOM_LEFT)
        self.assertEqual(asked, [0, 7, 14])

    def test_it_goes_on_without_the_broker(self) -> None:
        tasks = self.stage.create(count=2)
        self.stage.broker.ready = False
        self.stage.add_worker(announced=False)
        self.stage.liveness.on_event()
        self.stage.run_pending()
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 2)


class Wishes(DispatchCase):
    def setUp(self) -> None:
        super().setUp()
        self.stage.add_worker()
        self.pass_time(1)
        self.start_anew()

    def full(self) -> None:
        """There is a backlog and no room."""
        self.answer_with(True, 0.0)
        self.pass_time(0.1)
        self.start_anew()
        self.stage.dispatcher.gap()
        self.pass_time(0.5)
        self.assertEqual(len(self.turns), 1)
        self.start_anew()

    def test_an_idle_server_takes_no_turns(self) -> None:
        self.pass_time(60)
        self.assertEqual(self.turns, [])

    def test_an_idle_server_looks_at_one_pool_every_few_seconds(self) -> None:
        self.stage.add_worker("render", name="v")
        self.pass_time(1)
        self.start_anew()
        self.stage.dispatcher.start()
        self.pass_time(4 * CHECK + STEP)
        self.assertEqual(len(self.turns), 4)
        looked_at = [pool.served[0].kind for _, pool in self.turns]
        self.assertEqual(sorted(looked_at[:2]), ["render", "simulate"])
        self.assertEqual(looked_at[2:], looked_at[:2])
        now(self.stage.dispatcher.stop())

    def test_what_a_dead_server_left_is_found(self) -> None:
        self.stage.dispatcher.start()
        tasks = self.stage.create()
        self.pass_time(CHECK + STEP)
        self.assertEqual(self.stage.states(*tasks), ["queued"])
        now(self.stage.dispatcher.stop())

    def test_a_task_of_another_server_makes_a_turn_at_once(self) -> None:
        [task] = self.stage.create()
        self.announce_new(task)
        self.assertEqual((self.times(), self.stage.states(task)), ([0], ["queued"]))

    def test_a_task_that_is_not_due_makes_none(self) -> None:
        [task] = self.stage.create(delay=60.0)
        self.announce_new(task)
        self.pass_time(1)
        self.assertEqual(self.turns, [])

    def test_a_task_of_a_route_that_nobody_serves_makes_none(self) -> None:
        [task] = self.stage.create(kind="sculpt")
        self.announce_new(task)
        self.stage.finish(*self.stage.begin(task))
        self.pass_time(1)
        self.assertEqual(self.turns, [])

    def test_what_others_assign_and_begin_makes_none(self) -> None:
        [task] = self.stage.create(worker="w")
        self.announce_new(task)
        self.stage.begin(task)
        self.pass_time(1)
        self.assertEqual(self.turns, [])

    def test_an_end_makes_none_without_a_backlog(self) -> None:
        self.stage.finish(*self.stage.create(worker="w"))
        self.pass_time(2)
        self.assertEqual(self.turns, [])

    def test_a_backlog_with_room_is_looked_at_often(self) -> None:
        self.answer_with(True, 1.0)
        self.stage.dispatcher.came(("tasks", "simulate"))
        self.pass_time(1)
        self.assertEqual(len(self.turns), 1 + round(1 / ROOM_LEFT) - 1)

    def test_a_full_pool_with_a_backlog_is_looked_at_seldom(self) -> None:
        self.full()
        self.pass_time(3 * FULL)
        self.assertEqual(len(self.turns), 3)

    def test_at_each_poll_while_no_end_is_heard_of(self) -> None:
        self.full()
        self.stage.broker.ready = False
        for _ in range(10):
            self.stage.sql("UPDATE workers SET beat = beat + 1")
            self.stage.liveness.on_event()
            self.pass_time(0.5)
        self.assertEqual(len(self.turns), 10)

    def test_when_a_beat_says_that_its_worker_holds_less(self) -> None:
        """The events of the ends may be lost."""
        self.full()
        for holds, turns in ((4, 0), (4, 0), (3, 1), (4, 1), (2, 2)):
            self.stage.change_worker(beat=10 - holds, holds=holds)
            self.pass_time(0.5)
            self.assertEqual(len(self.turns), turns)

    def test_new_tasks_do_not_make_turns_in_a_full_pool(self) -> None:
        self.full()
        for _ in range(20):
            self.stage.dispatcher.came(("tasks", "simulate"))
            self.pass_time(0.02)
        self.assertEqual(self.turns, [])

    def test_an_end_makes_a_turn_in_a_full_pool(self) -> None:
        self.full()
        self.stage.finish(*self.stage.create(worker="w"))
        self.pass_time(GATHER)
        self.assertEqual(len(self.turns), 1)

    def test_so_does_a_task_that_comes_after_an_end_that_nobody_needed(self) -> None:
        """The last turn found no room, and what ended since was assigned by another server."""
        held = self.stage.create(worker="w", count=4)
        self.stage.dispatcher.gap()
        self.pass_time(1)
        self.assertFalse(self.stage.pool().credit.room_left)
        self.stage.finish(held[0])
        self.pass_time(1)
        self.start_anew()
        [task] = self.stage.create()
        self.announce_new(task)
        self.assertEqual((self.times(), self.stage.states(task)), ([0], ["queued"]))

    def test_ends_of_its_own_assignments_make_turns_sooner_than_those_of_others(self) -> None:
        self.stage.add_worker(slots=100)
        mine, theirs = self.stage.create(count=2, worker="w")
        self.full()
        self.stage.dispatcher.assigned(mine.id, Assignment(self.stage.pool(), "w", 1.0))
        self.stage.finish(theirs)
        self.pass_time(2 * STEP)
        self.assertEqual(self.times(), [])
        self.stage.finish(mine)
        self.assertEqual(self.times(), [2 * STEP])

    def test_when_much_has_ended_the_next_turn_does_not_wait(self) -> None:
        """Even if the last one has just begun."""
        held = self.stage.create(worker="w", count=2)
        self.full()
        self.stage.dispatcher.gap()
        self.stage.run_pending()
        self.pass_time(STEP)
        self.stage.finish(held[0])
        self.assertEqual(self.times(), [0])
        self.stage.finish(held[1])
        self.assertEqual(self.times(), [0, STEP])

    def test_a_give_back_is_assigned_again(self) -> None:
        [task] = self.stage.create(worker="w")
        self.stage.release(task)
        self.pass_time(GATHER)
        self.assertEqual([(t.state, t.dispatch) for t in self.stage.tasks(task)], [(State.QUEUED, 2)])

    def test_a_task_that_waits_again_while_it_is_held_costs_a_second_without_events(self) -> None:
        """The event that its worker has let go may be lost."""
        [task] = self.stage.create(worker="w")
        now(self.stage.other_store.cancel(task.user_id, task.id))
        self.stage.dispatcher.changed([now(self.stage.other_store.retry(task.user_id, task.id))])
        self.pass_time(3)
        self.assertFalse(self.stage.pool().backlog, "new tasks do not wait behind it")
        now(self.stage.other_store.release("w", [Held(task.id, 1)]))
        self.pass_time(1 + STEP)
        self.assertEqual([(t.state, t.dispatch) for t in self.stage.tasks(task)], [(State.QUEUED, 2)])
        self.pass_time(1)
        self.start_anew()
        self.pass_time(5)
        self.assertEqual(self.times(), [], "nothing is held that waits")

    def test_lost_events_make_a_turn_in_every_pool(self) -> None:
        self.stage.add_worker("render", name="v")
        self.pass_time(1)
        self.start_anew()
        self.stage.dispatcher.gap()
        self.pass_time(1)
        self.assertEqual(len(self.turns), 2)

    def test_a_worker_that_changes_makes_a_turn(self) -> None:
        self.stage.change_worker(hung='{"async":1}')
        self.assertEqual(self.times(), [0])
        self.stage.change_worker(beat=17, means='[[1,"simulate",0.1]]')
        self.pass_time(1)
        self.assertEqual(len(self.turns), 1)

    def test_no_turn_is_taken_in_a_pool_without_slots(self) -> None:
        self.stage.change_worker(stalled="x")
        tasks = self.stage.create()
        self.announce_new(*tasks)
        self.pass_time(5)
        self.assertEqual(self.turns, [])
        self.stage.change_worker(stalled=None)
        self.assertEqual(self.stage.states(*tasks), ["queued"])

    def test_only_pools_that_serve_the_route_take_turns(self) -> None:
        self.stage.add_worker("render", KindInfo("simulate", "thread"), name="v")
        self.pass_time(1)
        self.start_anew()
        self.stage.dispatcher.came(("tasks", "render"))
        self.pass_time(1)
        self.assertEqual([[s.kind for s in pool.served] for _, pool in self.turns], [["render"]])
        self.stage.dispatcher.came(("tasks", "simulate"))
        self.pass_time(1)
        self.assertEqual(len(self.turns), 2, "both executors serve the same route: one pool")


class Trouble(DispatchCase):
    def setUp(self) -> None:
        super().setUp()
        self.stage.add_worker()
        self.pass_time(1)
        self.start_anew()

    def test_a_wish_stays_while_the_store_is_away(self) -> None:
        tasks = self.stage.create()
        self.stage.runner.away = True
        self.announce_new(*tasks)
        self.pass_time(3)
        self.stage.runner.away = False
        self.pass_time(0.3)
        self.assertEqual(self.stage.states(*tasks), ["queued"])

    def test_a_defect_is_logged_once_and_the_wish_stays(self) -> None:
        tasks = self.stage.create()
        self.stage.runner.broken = True
        self.announce_new(*tasks)
        self.pass_time(5)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.stage.runner.broken = False
        self.pass_time(1.1)
        self.assertEqual(self.stage.states(*tasks), ["queued"])

    def test_after_a_turn_that_failed_there_is_no_credit(self) -> None:
        self.answer = lambda: fail(Unavailable("another server has the turn"))
        self.stage.dispatcher.gap()
        self.pass_time(0.1)
        self.assertEqual(self.stage.pool().credit.best(1.0)[0], "")
        self.assertTrue(self.stage.pool().backlog)

    def test_what_comes_during_a_turn_is_not_taken_for_done(self) -> None:
        answer: Deferred[Turn] = Deferred()
        self.answer = lambda: answer
        self.stage.dispatcher.gap()
        self.pass_time(0.1)
        self.stage.dispatcher.came(("tasks", "simulate"))
        answer.callback(Turn((), {"w": 4.0}, False, 0))
        self.assertTrue(self.stage.pool().backlog)
        self.answer = None
        self.pass_time(0.1)
        self.assertEqual(len(self.turns), 2)
        self.assertFalse(self.stage.pool().backlog)

    def test_stop_waits_for_the_turns_under_way(self) -> None:
        tasks = self.stage.create()
        self.stage.runner.slow = True
        self.announce_new(*tasks)
        self.stage.dispatcher.start()
        stopped = Deferred.fromCoroutine(self.stage.dispatcher.stop())
        self.assertNoResult(stopped)
        self.stage.runner.run_waiting()
        self.successResultOf(stopped)
        self.assertEqual(self.stage.states(*tasks), ["queued"])
        self.stage.dispatcher.gap()
        self.pass_time(2 * CHECK)
        self.assertEqual(len(self.turns), 1)
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_a_turn_that_runs_when_its_pool_ends_is_completed(self) -> None:
        tasks = self.stage.create()
        self.stage.runner.slow = True
        self.announce_new(*tasks)
        self.stage.runner.slow = False
        self.stage.add_worker("render")
        self.assertNotIn(("tasks", "simulate"), self.stage.pools.by_route)
        stopped = Deferred.fromCoroutine(self.stage.dispatcher.stop())
        self.assertNoResult(stopped)
        self.stage.runner.run_waiting()
        self.successResultOf(stopped)
        self.assertEqual(self.stage.states(*tasks), ["queued"])

    def test_assignments_whose_ends_are_never_heard_of_are_forgotten(self) -> None:
        pool = self.stage.pool()
        for n in range(MOST_FOLLOWED + 10):
            self.stage.dispatcher.assigned(n, Assignment(pool, "w", 1.0))
        self.assertEqual(len(self.stage.dispatcher._mine), MOST_FOLLOWED)
        self.assertNotIn(9, self.stage.dispatcher._mine)

    def test_a_batch_without_changes_is_no_trouble(self) -> None:
        self.stage.broker.announce(encode(EventBatch(self.stage.store.installation, "another")))
        self.stage.run_pending()


class TwoServers(DispatchCase):
    """Another server assigns as well: this one follows its turns by what is in flight."""

    def test_what_others_hold_takes_room(self) -> None:
        self.stage.create(count=3, worker="w")
        self.stage.add_worker(slots=4)
        tasks = self.stage.create(count=3)
        self.announce_new(*tasks)
        self.pass_time(0.1)
        self.assertEqual(self.stage.states(*tasks), ["queued", "waiting", "waiting"])

    def test_its_fast_path_and_that_of_another_fill_the_slots_once(self) -> None:
        self.stage.add_worker(slots=4)
        user = self.stage.user_id()
        done = self.stage.submitter.submit([NewTask(user, "t", queue="tasks") for _ in range(4)])
        self.stage.run_pending()
        self.pass_time(0.1)
        created = [c.task_id for c in self.successResultOf(done)]
        self.assertEqual(self.stage.states(*created), ["queued"] * 4)
        [one] = self.stage.create()
        self.announce_new(one)
        self.pass_time(0.1)
        self.assertEqual(self.stage.states(one), ["waiting"])
