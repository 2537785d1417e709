"""taskd.scheduling.submission and fast_path: how requests become committed tasks, and which are assigned at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from taskd.model.errors import BadRequest, Conflict, Unavailable
from taskd.model.states import State
from taskd.model.tasks import NewTask, Task
from taskd.ports.tasks import Created
from taskd.ports.workers import KindInfo
from taskd.scheduling.dispatcher import USED
from taskd.scheduling.ids import FRESH, LEAST, Ids
from tests.unit.stage import NOON, StageCase, now


class SubmissionCase(StageCase):
    """A worker with 10 slots: 5 of them are this server's credit."""

    queues = ("tasks", "slow")

    def setUp(self) -> None:
        super().setUp()
        self.ana, self.eva = self.stage.user_id("ana"), self.stage.user_id("eva")
        self.stage.draw_ids()
        self.stage.add_worker(slots=10)
        self.pool = self.stage.pool()
        self.assertEqual(self.pool.backlog, False)

    def submit(self, user_id: int = 0, count: int = 1, **fields: Any) -> Deferred[Any]:
        """Submit tasks of one user in one request."""
        wanted = {"task": "t", "queue": "tasks", **fields}
        return self.stage.submitter.submit([NewTask(user_id or self.ana, **wanted) for _ in range(count)])

    def created_tasks(self, request: Deferred[Any]) -> list[Task]:
        """The present rows of the tasks that an answered request created."""
        return self.stage.tasks(*(created.task_id for created in self.successResultOf(request)))

    def submit_and_wait(self, *args: Any, **options: Any) -> list[Task]:
        """Submit tasks, and return their rows after the request was answered."""
        done = self.submit(*args, **options)
        self.stage.run_pending()
        return self.created_tasks(done)

    def credit(self) -> float:
        return self.pool.credit.best(1.0)[1]


class FastPath(SubmissionCase):
    def test_a_task_of_an_idle_pool_is_assigned_by_its_creation(self) -> None:
        before = self.stage.runner.calls
        [task] = self.submit_and_wait()
        self.assertEqual(self.stage.runner.calls, before + 1)
        self.assertEqual((task.state, task.worker, task.dispatch, task.version), (State.QUEUED, "w", 1, 1))
        self.assertEqual((task.created_at, task.run_at), (NOON, NOON))
        self.assertEqual(self.stage.broker.hinted, ["w"])

    def test_it_is_announced_before_the_hint(self) -> None:
        self.stage.broker.sent.clear()
        self.submit_and_wait()
        self.assertEqual(self.stage.broker.sent, ["events", "hints"])

    def test_what_exceeds_the_credit_waits_for_a_turn(self) -> None:
        done = self.submit(count=12)
        assign, turns = self.stage.store.assign, []
        self.stage.store.assign = lambda *args: turns.append(args) or assign(*args)  # type: ignore
        self.stage.run_pending()
        tasks = self.created_tasks(done)
        self.assertEqual([task.state.value for task in tasks], ["queued"] * 5 + ["waiting"] * 7)
        self.stage.pass_time(0.1)
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 10 + ["waiting"] * 2)
        self.assertEqual(len(turns), 1)

    def test_later_tasks_wait_behind_a_backlog(self) -> None:
        tasks = self.submit_and_wait(count=12)
        self.stage.pass_time(0.1)
        self.stage.finish(tasks[0])
        [late] = self.submit_and_wait(self.eva)
        self.assertEqual(late.state, State.WAITING)

    def test_nobody_overtakes_a_backlog_while_a_turn_is_under_way(self) -> None:
        tasks = self.submit_and_wait(count=12)
        self.stage.runner.slow = True
        self.stage.pass_time(0.1)
        self.stage.finish(*tasks[:5])
        self.assertGreater(self.credit(), 0)
        late = NewTask(self.eva, "t", queue="tasks")
        self.stage.submitter.submit([late])
        self.stage.run_pending()
        self.assertEqual((late.id > 0, late.worker), (True, None))

    def test_ends_give_credit_back(self) -> None:
        tasks = self.submit_and_wait(count=5)
        self.assertEqual(self.credit(), 0)
        self.stage.finish(*tasks[:2])
        self.assertEqual(self.credit(), 2)
        self.assertEqual([task.state for task in self.submit_and_wait(count=2)], [State.QUEUED] * 2)

    def test_the_end_of_somebody_elses_assignment_gives_none(self) -> None:
        [theirs] = self.stage.create(worker="w")
        self.stage.finish(theirs)
        self.assertEqual(self.credit(), 5)

    def test_a_cancelled_task_keeps_its_credit_until_a_turn(self) -> None:
        [task] = self.submit_and_wait()
        self.stage.announce([now(self.stage.other_store.cancel(self.ana, task.id))])
        self.assertEqual(self.credit(), 4)
        self.stage.release(task)
        self.stage.pass_time(USED + 0.1)
        self.assertEqual(self.credit(), 5)

    def test_a_second_after_credit_was_used_a_turn_tells_how_much_there_is(self) -> None:
        self.stage.create(worker="w", count=4)  # another server has assigned them
        self.submit_and_wait()
        self.assertEqual(self.credit(), 4)
        self.stage.pass_time(USED - 0.05)
        before = self.stage.runner.calls
        self.stage.pass_time(0.1)
        # the turn; and what the user has used is stored
        self.assertEqual((self.credit(), self.stage.runner.calls - before), (2.5, 2))
        self.stage.pass_time(10)
        self.assertEqual(self.stage.runner.calls - before, 2, "once")

    def test_a_delayed_task_waits_and_takes_no_credit(self) -> None:
        later = NOON + timedelta(hours=1)
        tasks = self.submit_and_wait(count=20, run_at=later)
        self.assertEqual({(task.state, task.run_at) for task in tasks}, {(State.WAITING, later)})
        tasks = self.submit_and_wait(count=2, delay=60.0)
        for task in tasks:
            self.assertEqual((task.state, task.run_at - task.created_at), (State.WAITING, timedelta(minutes=1)))
        before = self.stage.runner.calls
        self.stage.pass_time(1)
        self.assertEqual((self.stage.runner.calls, self.pool.backlog, self.credit()), (before, False, 5))

    def test_a_run_at_that_the_store_finds_passed_makes_a_turn(self) -> None:
        tasks = self.submit_and_wait(count=2, run_at=NOON - timedelta(hours=1))
        self.stage.pass_time(0.1)
        self.assertEqual([task.run_at for task in tasks], [NOON] * 2)
        self.assertEqual(self.stage.states(*tasks), ["queued"] * 2)

    def test_tasks_of_a_route_that_nobody_serves_are_only_stored(self) -> None:
        tasks = self.submit_and_wait(count=3, kind="sculpt") + self.submit_and_wait(queue="slow")
        self.assertEqual({task.state for task in tasks}, {State.WAITING})
        self.assertEqual((self.pool.backlog, self.credit()), (False, 5))

    def test_each_task_of_a_request_takes_its_own_pool(self) -> None:
        self.stage.add_worker("render", name="v")
        specs = [NewTask(self.ana, "t", queue="tasks", kind=kind) for kind in ("simulate", "render", "sculpt") * 2]
        done: Deferred[Any] = self.stage.submitter.submit(specs)
        self.stage.run_pending()
        tasks = self.created_tasks(done)
        self.assertEqual([task.worker for task in tasks], ["w", "v", None] * 2)
        self.assertEqual(self.stage.broker.hinted, ["v", "w"])

    def test_of_several_pools_the_one_with_the_most_credit_is_chosen(self) -> None:
        self.stage.add_worker("simulate", "render", name="v", slots=14)
        tasks = self.submit_and_wait(count=12)
        workers = [task.worker for task in tasks]
        self.assertEqual((workers[:2], workers.count("v"), workers.count("w")), (["v", "v"], 7, 5))

    def test_the_number_of_attempts_is_that_of_the_kind(self) -> None:
        self.stage.add_worker(KindInfo("render", "async", max_attempts=7), name="v")
        [task] = self.submit_and_wait(kind="render", max_attempts=0)
        self.assertEqual((task.state, task.max_attempts), (State.QUEUED, 7))

    def test_a_worker_that_has_just_stopped_gets_nothing(self) -> None:
        now(self.stage.other_store.worker_draining("w"))
        [task] = self.submit_and_wait()
        self.assertEqual((task.state, task.worker, self.credit()), (State.WAITING, None, 0))

    def test_with_the_broker_away_it_works_as_well(self) -> None:
        self.stage.broker.ready = False
        [task] = self.submit_and_wait()
        self.assertEqual(task.state, State.QUEUED)


class Creating(SubmissionCase):
    def test_simultaneous_requests_share_a_transaction_and_get_their_own_tasks(self) -> None:
        before = self.stage.runner.calls
        requests = [self.submit(count=n, task=f"t{n}") for n in (1, 2, 3)]
        self.stage.run_pending()
        answers = [self.created_tasks(request) for request in requests]
        self.assertEqual(
            [[t.task for t in created_tasks] for created_tasks in answers], [["t1"], ["t2"] * 2, ["t3"] * 3]
        )
        self.assertEqual([t.id for created_tasks in answers for t in created_tasks], [1, 2, 3, 4, 5, 6])
        self.assertEqual(self.stage.runner.calls, before + 1)

    def test_a_request_waits_for_the_commit(self) -> None:
        self.stage.broker.event_batches.clear()
        self.stage.runner.slow = True
        done = self.submit()
        self.stage.run_pending()
        self.assertNoResult(done)
        self.assertEqual((self.stage.broker.hinted, self.stage.broker.event_batches), ([], []))
        self.stage.runner.run_waiting()
        self.successResultOf(done)
        self.assertEqual(self.stage.broker.hinted, ["w"])

    def test_a_request_that_failed_with_the_store_away_leaves_no_credit(self) -> None:
        """Perhaps it was committed all the same. A turn finds out."""
        self.stage.runner.away = True
        done = self.submit(count=3)
        self.stage.run_pending()
        self.failureResultOf(done, Unavailable)
        self.assertEqual((self.credit(), self.stage.broker.hinted), (0, []))
        self.stage.create(worker="w")  # one of them
        self.stage.runner.away = False
        self.stage.pass_time(0.5)
        self.assertEqual(self.credit(), 4.5)
        self.assertEqual(self.submit_and_wait()[0].state, State.QUEUED)

    def test_a_request_that_failed_with_a_backlog_makes_a_turn(self) -> None:
        self.stage.runner.away = True
        done = self.submit(count=20)
        self.stage.run_pending()
        self.failureResultOf(done, Unavailable)
        self.stage.runner.away = False
        self.stage.pass_time(0.5)
        self.assertFalse(self.pool.backlog)

    def test_a_request_that_cannot_be_stored_fails_alone_and_takes_no_credit(self) -> None:
        good, bad, fine = self.submit(), self.submit(task="a\0b"), self.submit()
        self.stage.run_pending()
        self.successResultOf(good)
        self.failureResultOf(bad, BadRequest)
        self.successResultOf(fine)
        self.assertEqual(self.credit(), 3)

    def test_a_request_is_stored_completely_or_not_at_all(self) -> None:
        specs = [NewTask(self.ana, "t", queue="tasks"), NewTask(self.ana, "\0", queue="tasks")]
        done: Deferred[Any] = self.stage.submitter.submit(specs)
        self.stage.run_pending()
        self.failureResultOf(done, BadRequest)
        self.assertEqual(self.stage.tasks(), [])

    def test_drained_fires_after_the_last_request(self) -> None:
        self.stage.runner.slow = True
        self.submit()
        drained = self.stage.submitter.drained()
        self.stage.run_pending()
        self.assertNoResult(drained)
        self.stage.runner.run_waiting()
        self.successResultOf(drained)

    def test_a_transaction_stores_at_most_a_thousand_tasks(self) -> None:
        sizes = []
        create = self.stage.store.create_tasks

        def counted(tasks: Sequence[NewTask], spare: int = 0) -> Any:
            sizes.append(len(tasks))
            return create(tasks, spare)

        self.stage.store.create_tasks = counted  # type: ignore[method-assign]
        requests = [self.submit(count=600) for _ in range(4)]
        for _ in range(5):
            self.stage.clock.advance(0.01)
        self.assertEqual([len(self.successResultOf(request)) for request in requests], [600] * 4)
        self.assertEqual(sizes, [600] * 4)


class SubmittingWithKeys(StageCase):
    """Requests with the same keys that meet in one server."""

    def setUp(self) -> None:
        super().setUp()
        self.ana, self.eva = self.stage.user_id("ana"), self.stage.user_id("eva")

    def submit(self, *keys: str | None, user_id: int = 0, asked: str = "a", task: str = "t") -> Deferred[Any]:
        """One request for a task with each of these keys. ``asked`` is what they ask for."""
        wanted = [NewTask(user_id or self.ana, task, queue="tasks", key=k, fingerprint=k and asked) for k in keys]
        return self.stage.submitter.submit(wanted)

    def pause(self, calls: int = 0) -> None:
        """Let the store answer so many calls, and hold the next ones."""
        self.stage.runner.slow = True
        self.stage.run_pending()
        for _ in range(calls):
            self.stage.runner.run_waiting()
            self.stage.run_pending()

    def finish(self) -> None:
        self.stage.runner.slow = False
        while self.stage.runner.waiting:
            self.stage.runner.run_waiting()
            self.stage.run_pending()
        self.stage.run_pending()

    def created(self, request: Deferred[Any]) -> list[tuple[int, bool]]:
        return [tuple(created) for created in self.successResultOf(request)]

    def assertNothingHeld(self) -> None:
        self.assertEqual(self.stage.submitter._key_turns._holders, {})

    def test_keys_sent_twice_in_one_pipeline_cost_others_nothing(self) -> None:
        for _ in range(2):
            self.stage.draw_ids()
        before = self.stage.runner.calls
        requests = [self.submit(f"k{n}") for n in range(100) for _ in range(2)]
        other = self.submit(None, user_id=self.eva)
        self.stage.run_pending()
        # one look-up, one transaction; and those that waited need neither
        self.assertEqual(self.stage.runner.calls, before + 2)
        self.created(other)
        for first, second in zip(requests[::2], requests[1::2], strict=True):
            [(task_id, duplicate)] = self.created(first)
            self.assertFalse(duplicate)
            self.assertEqual(self.created(second), [(task_id, True)])
        self.assertEqual(len(self.stage.tasks()), 101)
        self.assertNothingHeld()

    def test_a_request_that_waited_gets_a_conflict_if_it_asks_for_something_else(self) -> None:
        first, other, same = self.submit("k"), self.submit("k", asked="b"), self.submit("k")
        self.stage.run_pending()
        [(task_id, _)] = self.created(first)
        self.failureResultOf(other, Conflict)
        self.assertEqual(self.created(same), [(task_id, True)])
        self.assertEqual(len(self.stage.tasks()), 1)
        self.assertNothingHeld()

    def test_a_request_that_contradicts_itself_keeps_nobody_waiting(self) -> None:
        wanted = [NewTask(self.ana, "t", queue="tasks", key="k", fingerprint=asked) for asked in "ab"]
        self.failureResultOf(self.stage.submitter.submit(wanted), Conflict)
        self.assertNothingHeld()

    def test_what_a_refused_request_has_looked_up_answers_those_that_waited(self) -> None:
        self.submit("k")
        self.stage.run_pending()
        before = self.stage.runner.calls
        requests = [self.submit("k", asked="b") for _ in range(50)]
        same = self.submit("k")
        self.stage.run_pending()
        self.assertEqual(self.stage.runner.calls, before + 1)
        for request in requests:
            self.failureResultOf(request, Conflict)
        self.assertEqual(self.created(same), [(1, True)])

    def test_requests_that_share_some_keys_wait_for_each_other_without_a_deadlock(self) -> None:
        requests = [self.submit(*keys) for keys in ("ab", "ba", "bc", "ca", "abc", "d", "dc")]
        self.stage.run_pending()
        tasks = [[n for n, _ in self.created(request)] for request in requests]
        a, b = tasks[0]
        c, d = tasks[2][1], tasks[5][0]
        self.assertEqual(tasks, [[a, b], [b, a], [b, c], [c, a], [a, b, c], [d], [d, c]])
        self.assertEqual(len(self.stage.tasks()), 4)
        self.assertNothingHeld()

    def test_a_request_holds_no_key_while_it_waits_for_another(self) -> None:
        self.pause()
        first = self.submit("a")
        waits = self.submit("b", "a")
        self.stage.run_pending()
        passes = self.submit("b")
        self.finish()
        [(a, _)], [(b, _)] = self.created(first), self.created(passes)
        self.assertEqual(self.created(waits), [(b, True), (a, True)])

    def test_keys_of_other_users_are_other_keys(self) -> None:
        mine, theirs = self.submit("k"), self.submit("k", user_id=self.eva)
        self.stage.run_pending()
        self.assertEqual([d for r in (mine, theirs) for _, d in self.created(r)], [False, False])

    def test_the_first_fails_because_the_store_is_away_and_the_second_tries_itself(self) -> None:
        self.pause(calls=1)
        first, second, third = self.submit("k"), self.submit("k"), self.submit("k")
        self.stage.run_pending()
        self.stage.runner.away = True
        self.stage.runner.run_waiting()
        self.failureResultOf(first, Unavailable)
        self.assertNoResult(second)
        self.stage.runner.away = False
        self.finish()
        [(task_id, duplicate)] = self.created(second)
        self.assertEqual((duplicate, self.created(third)), (False, [(task_id, True)]))
        self.assertEqual(len(self.stage.tasks()), 1)
        self.assertNothingHeld()

    def test_while_the_store_is_away_one_more_try_speaks_for_all_that_wait(self) -> None:
        self.stage.runner.away = True
        before = self.stage.runner.calls
        requests = [self.submit("k") for _ in range(100)]
        self.stage.run_pending()
        for request in requests:
            self.failureResultOf(request, Unavailable)
        self.assertEqual(self.stage.runner.calls, before + 2)
        self.assertNothingHeld()

    def test_the_first_cannot_be_stored_and_the_second_tries_itself(self) -> None:
        bad, good = self.submit("k", None, task="a\0b"), self.submit("k")
        self.stage.run_pending()
        self.failureResultOf(bad, BadRequest)
        self.assertEqual([d for _, d in self.created(good)], [False])
        self.assertNothingHeld()

    def test_a_defect_keeps_nobody_waiting(self) -> None:
        self.stage.runner.broken = True
        requests = [self.submit("k") for _ in range(3)]
        self.stage.run_pending()
        for request in requests:
            self.failureResultOf(request, ZeroDivisionError)
        self.assertNothingHeld()

    def test_a_caller_that_gives_up_still_holds_its_keys_until_their_outcome(self) -> None:
        for calls in (0, 1):
            self.pause()
            first, second, third = (self.submit(f"k{calls}") for _ in range(3))
            self.pause(calls)
            first.cancel()
            second.cancel()
            for given_up in (first, second):
                self.failureResultOf(given_up, CancelledError)
            self.finish()
            [(task_id, duplicate)] = self.created(third)
            self.assertTrue(duplicate)
            self.assertEqual([task.id for task in self.stage.tasks()][-1:], [task_id])
            self.assertNothingHeld()
        self.assertEqual(len(self.stage.tasks()), 2)

    def test_keys_that_another_server_takes_meanwhile_fail_nobody_else(self) -> None:
        self.stage.draw_ids()
        self.pause()
        requests = [self.submit(f"k{n}", None) for n in range(20)]
        self.stage.run_pending()
        self.stage.runner.run_waiting()
        other = self.submit(None, user_id=self.eva)
        self.stage.run_pending()
        for n in range(0, 20, 2):
            self.stage.create(key=f"k{n}", fingerprint="a" if n else "b")
        before = self.stage.runner.calls
        self.finish()
        self.failureResultOf(requests[0], Conflict)
        self.created(other)
        self.assertEqual([self.created(r)[0][1] for r in requests[1:]], [n % 2 == 0 for n in range(1, 20)])
        # refused, looked up, stored without the taken ones; these: looked up, and the rest of their requests stored
        self.assertEqual(self.stage.runner.calls, before + 5)
        self.assertNothingHeld()


class IdTests(StageCase):
    """Ids are known before the creation."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[tuple[list[int], int]] = []
        self.drawn: list[int] = []
        create, draw = self.stage.store.create_tasks, self.stage.store.draw_ids

        def create_tasks(tasks: Sequence[NewTask], spare: int = 0) -> Any:
            self.asked.append(([task.id for task in tasks], spare))
            return create(tasks, spare)

        def draw_ids(count: int) -> Any:
            self.drawn.append(count)
            return draw(count)

        self.stage.store.create_tasks = create_tasks  # type: ignore[method-assign]
        self.stage.store.draw_ids = draw_ids  # type: ignore[method-assign]

    def submit(self, count: int = 1, **fields: Any) -> list[int]:
        specs = [NewTask(self.stage.user_id(), "t", queue="tasks", **fields) for _ in range(count)]
        done: Deferred[Sequence[Created]] = self.stage.submitter.submit(specs)  # type: ignore[assignment]
        self.stage.run_pending()
        return [created.task_id for created in self.successResultOf(done)]  # type: ignore[attr-defined]

    def test_only_the_first_creation_draws_ids_of_its_own(self) -> None:
        self.assertEqual([self.submit() for _ in range(3)], [[1], [2], [3]])
        self.assertEqual(self.drawn, [1])
        self.assertEqual(self.asked, [([1], LEAST), ([2], 1), ([3], 1)])

    def test_a_creation_of_many_draws_for_many(self) -> None:
        self.submit()
        self.submit(count=200)
        self.assertEqual(self.submit(count=400), list(range(202, 602)))
        self.assertEqual(self.drawn, [1, 200 - LEAST])

    def test_later_tasks_have_higher_ids(self) -> None:
        """Also when the second batch begins while the first one waits for its ids."""
        self.submit()
        draw, answers = self.stage.store.draw_ids, list[Deferred[None]]()

        async def draw_late(count: int) -> Any:
            answers.append(Deferred())
            ids = await draw(count)
            await answers[-1]
            return ids

        self.stage.store.draw_ids = draw_late  # type: ignore[method-assign]
        specs = [[NewTask(self.stage.user_id(), "t", queue="tasks") for _ in range(600)] for _ in range(2)]
        requests: list[Any] = [self.stage.submitter.submit(each) for each in specs]
        for _ in range(4):
            self.stage.run_pending()
            self.stage.clock.advance(0.01)
            # the latest answer comes first
            for answer in reversed(answers):
                if not answer.called:
                    answer.callback(None)
                    break
        self.stage.run_pending()
        ids = [[created.task_id for created in self.successResultOf(request)] for request in requests]
        self.assertEqual(ids[0] + ids[1], sorted(ids[0] + ids[1]))

    def test_ids_that_come_too_late_are_not_given_out(self) -> None:
        ids = Ids(self.stage.clock)
        ids.add(range(11, 13))
        self.assertEqual(ids.take(), 11)
        ids.add(range(1, 11))
        ids.add(range(13, 15))
        self.assertEqual([ids.take() for _ in range(3)], [12, 13, 14])
        self.assertEqual(ids.missing(1), 1)

    def test_the_parts_of_a_batch_that_was_refused_keep_their_ids(self) -> None:
        self.stage.draw_ids()
        user = self.stage.user_id()
        texts = ("a", "b\0", "c")
        requests: list[Any] = [self.stage.submitter.submit([NewTask(user, t, queue="tasks")]) for t in texts]
        self.stage.run_pending()
        self.failureResultOf(requests[1], BadRequest)
        self.assertEqual([self.successResultOf(requests[n])[0].task_id for n in (0, 2)], [1, 3])
        self.assertEqual([ids for ids, _ in self.asked], [[1, 2, 3], [1], [2, 3], [2], [3]])

    def test_an_idle_server_does_not_give_out_old_ids_when_others_have_gone_on(self) -> None:
        self.submit()
        self.stage.clock.advance(FRESH + 1)
        theirs = self.stage.create(count=100)
        self.stage.announce(theirs)
        [mine] = self.submit()
        self.assertGreater(mine, theirs[-1].id)
        self.assertEqual(self.drawn, [1, 1])

    def test_a_request_fails_when_ids_cannot_be_drawn(self) -> None:
        self.stage.runner.away = True
        done: Deferred[Any] = self.stage.submitter.submit([NewTask(1, "t", queue="tasks")])
        self.stage.run_pending()
        self.failureResultOf(done, Unavailable)
