"""taskd.scheduling.pools and served_kinds: who can run the same tasks, with how many slots, and what is served."""

from __future__ import annotations

from typing import Any

from taskd.model.errors import Unavailable
from taskd.model.states import State
from taskd.model.tasks import Route
from taskd.ports.scheduling import Place, Pool, Served, Turn
from taskd.ports.workers import KindInfo, Mean, WorkerInfo, WorkerState, WorkerStatus
from taskd.scheduling.pools import Pools, WorkerPool
from taskd.scheduling.served_kinds import ServedKind, Serving
from tests.unit.stage import LEASE, StageCase, now

TASKS, SLOW = Route("tasks", "simulate"), Route("slow", "simulate")
RENDER = Route("tasks", "render")
A, B = KindInfo("a", "async"), KindInfo("b", "async", max_attempts=5)
T = KindInfo("t", "thread")


def status(name: str, *kinds: KindInfo, queues: tuple[str, ...] = ("tasks",), **fields: Any) -> WorkerStatus:
    """A living worker with 10 async slots and 2 threads."""
    info = WorkerInfo(name, queues, kinds, {"async": 10, "thread": 2})
    return WorkerStatus(info, **{"state": WorkerState.SERVING, "beat": 1, "connected": True, "hung": {}, **fields})


class Forming:
    """One test's pools for the queues ``tasks`` and ``slow``."""

    def __init__(self, *workers: WorkerStatus) -> None:
        self.pools = Pools(("tasks", "slow"))
        self.changed = self.pools.serve(workers)

    def shown(self) -> list[tuple[list[str], dict[str, int]]]:
        """The routes and the places of each pool, sorted."""
        pools = self.pools.all.values()
        return sorted((sorted(route.name for route in pool.routes), dict(pool.picture().places)) for pool in pools)

    def has_backlog(self, backlog: bool) -> None:
        """A turn has found this in each pool."""
        for pool in self.pools.all.values():
            pool.turn_begins()
            pool.turn_ended(Turn((), {}, backlog, 0))

    def only(self) -> WorkerPool:
        [pool] = self.pools.all.values()
        return pool


class TestForming:
    """Executors that serve the same routes are one pool."""

    def test_workers_that_serve_the_same_form_a_pool(self) -> None:
        forming = Forming(status("v", A, B), status("w", B, A))
        assert forming.shown() == [(["tasks#a", "tasks#b"], {"v": 10, "w": 10})]
        assert list(forming.changed) == [forming.only()]
        assert forming.only().slots == 20

    def test_each_executor_of_a_worker_is_in_a_pool_of_its_own(self) -> None:
        forming = Forming(status("w", A, T))
        assert forming.shown() == [(["tasks#a"], {"w": 10}), (["tasks#t"], {"w": 2})]

    def test_pools_that_share_routes_take_turns_one_after_the_other(self) -> None:
        forming = Forming(status("u", T), status("v", A), status("w", A, B), status("x", B))
        groups = {min(routes).name: pool.picture().group for routes, pool in forming.pools.all.items()}
        assert groups == {"tasks#a": "tasks#a", "tasks#b": "tasks#a", "tasks#t": "tasks#t"}
        # the worker that ties them together has gone
        forming.pools.serve([status("v", A), status("x", B)])
        assert [pool.picture().group for pool in forming.pools.all.values()] == ["tasks#a", "tasks#b"]

    def test_groups_are_the_same_for_servers_of_other_queues(self) -> None:
        workers = [status("v", A, queues=("slow", "far")), status("w", A, queues=("far", "tasks"))]
        here, there = Forming(*workers), Pools(("slow",))
        there.serve(workers)
        found = [pool.picture().group for pools in (here.pools, there) for pool in pools.all.values()]
        assert found == ["far#a"] * 3

    def test_workers_that_serve_more_or_less_form_others(self) -> None:
        forming = Forming(status("v", A), status("w", A, B), status("x", A, queues=("slow", "tasks")))
        assert [places for _, places in forming.shown()] == [{"x": 10}, {"v": 10}, {"w": 10}]
        pools = forming.pools.by_route["tasks", "a"]
        assert len(pools) == 3

    def test_queues_of_other_servers_count_for_nothing(self) -> None:
        forming = Forming(status("v", A), status("w", A, queues=("tasks", "elsewhere")), status("x", queues=("no",)))
        assert forming.shown() == [(["tasks#a"], {"v": 10, "w": 10})]

    def test_a_pool_says_what_it_serves(self) -> None:
        pool = Forming(status("v", A, B), status("w", A, KindInfo("b", "async", max_attempts=9))).only()
        assert pool.picture().served == [Served("tasks", "a", 3), Served("tasks", "b", 9)]
        assert pool.max_attempts("b") == 9

    def test_hung_slots_are_no_slots(self) -> None:
        forming = Forming(status("w", A, hung={"async": 3, "thread": 1}), status("v", A, hung={"async": 12}))
        assert forming.only().picture().places == [Place("w", 7), Place("v", 0)]

    def test_who_drains_or_is_blocked_gets_nothing_but_still_counts(self) -> None:
        forming = Forming(status("v", A, state=WorkerState.DRAINING), status("w", A, stalled="x"), status("x", A))
        assert forming.shown() == [(["tasks#a"], {"v": 0, "w": 0, "x": 10})]
        assert forming.only().open_workers == {"x"}

    def test_the_costs_are_those_that_its_workers_have_measured_for_its_kinds(self) -> None:
        means = [Mean(1, "a", 0.1), Mean(1, "t", 0.1)]
        pool = Forming(status("w", A, means=means)).only()
        assert {(c.user_id, c.kind, c.cost) for c in pool.picture().costs} == {(0, "a", 0.5), (1, "a", 0.5)}


class TestChanging:
    """What is known of a pool survives as long as anybody serves its routes."""

    def test_only_pools_with_other_slots_have_changed(self) -> None:
        forming = Forming(status("v", A), status("w", B))
        forming.has_backlog(False)
        serve = forming.pools.serve
        assert serve([status("v", A), status("w", B)]) == ()
        assert list(serve([status("v", A, beat=2), status("w", B, means=[Mean(1, "b", 0.1)])])) == []
        [changed] = serve([status("v", A, hung={"async": 1}), status("w", B)])
        assert changed.routes == {Route("tasks", "a")}
        [changed] = serve([status("v", A, hung={"async": 1}), status("w", B), status("x", B)])
        assert changed.routes == {Route("tasks", "b")}

    def test_a_backlog_may_get_what_costs_less_now_or_is_held_no_longer(self) -> None:
        for backlog in (True, False):
            forming = Forming(status("w", A, holds=4))
            forming.has_backlog(backlog)
            for fields, eases in (
                ({"holds": 5}, False),
                ({"holds": 4}, True),
                ({"holds": 4, "means": [Mean(1, "a", 0.1)]}, True),
                ({"holds": 4, "means": [Mean(1, "a", 0.1), Mean(1, "b", 0.1)]}, False),
            ):
                assert bool(forming.pools.serve([status("w", A, **fields)])) is (backlog and eases), fields

    def test_new_means_change_the_costs(self) -> None:
        forming = Forming(status("w", A))
        pool = forming.only()
        before = pool.costs.of(1, "a")
        forming.pools.serve([status("w", A, means=[Mean(1, "a", 0.1)])])
        assert (before, pool.costs.of(1, "a")) == (1.0, 0.5)

    def test_a_worker_that_stops_has_no_credit_any_more(self) -> None:
        forming = Forming(status("v", A), status("w", A))
        pool = forming.only()
        pool.credit.turn_ended({"v": 4.0, "w": 8.0}, pool.open_workers)
        forming.pools.serve([status("v", A), status("w", A, state=WorkerState.DRAINING)])
        assert forming.only() is pool
        assert pool.credit.best(1.0) == ("v", 2.0)

    def test_a_pool_without_workers_is_forgotten(self) -> None:
        forming = Forming(status("v", A))
        first = forming.only()
        forming.pools.serve([])
        assert (forming.pools.all, forming.pools.by_route) == ({}, {})
        forming.pools.serve([status("v", A)])
        assert forming.only() is not first
        assert forming.only().backlog


class Living(StageCase):
    queues = ("tasks", "slow")

    def served(self) -> set[Any]:
        return set(self.stage.pools.by_route)

    def test_a_route_is_served_while_a_worker_serves_it(self) -> None:
        self.stage.add_worker("simulate", "render")
        self.stage.add_worker("render", name="w2")
        self.assertEqual(self.served(), {TASKS, RENDER})
        self.stage.remove_worker()
        self.assertEqual(self.served(), {RENDER})
        self.stage.remove_worker("w2")
        self.assertEqual(self.served(), set())

    def test_a_worker_that_was_not_announced_is_found_by_the_next_poll(self) -> None:
        self.stage.broker.ready = False
        self.stage.add_worker("render")
        self.assertEqual(self.served(), set())
        self.stage.run_maintenance()
        self.assertEqual(self.served(), {RENDER})

    def test_a_silent_worker_is_dead_after_a_lease(self) -> None:
        self.stage.add_worker("render")
        for _ in range(int(LEASE) - 1):
            self.stage.clock.advance(1)
            self.stage.liveness.on_event()
        self.assertEqual(self.served(), {RENDER})
        self.stage.clock.advance(1)
        self.stage.liveness.on_event()
        self.assertEqual(self.served(), set())

    def test_a_draining_worker_serves_nothing_new(self) -> None:
        self.stage.add_worker("render")
        now(self.stage.other_store.worker_draining("w"))
        self.stage.announce_workers()
        self.assertIsNone(self.stage.pools.serving(RENDER))
        self.assertEqual((self.stage.pools.kinds(), self.stage.pool("tasks", "render").slots), ([], 0))

    def test_while_the_store_is_away_the_last_known_workers_count(self) -> None:
        self.stage.add_worker("render")
        self.stage.runner.away = True
        self.stage.announce_workers()
        self.stage.clock.advance(10 * LEASE)
        self.stage.run_maintenance()
        self.assertEqual(self.stage.pools.serving(RENDER), Serving(1, 4, 0, 0, "", 3))
        self.assertEqual(self.served(), {RENDER})

    def test_a_defect_is_logged_and_the_next_poll_works(self) -> None:
        self.stage.add_worker("render")
        self.stage.runner.broken = True
        self.stage.announce_workers()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.stage.runner.broken = False
        self.stage.remove_worker()
        self.assertEqual(self.served(), set())

    def test_many_announcements_at_once_cause_two_polls(self) -> None:
        self.stage.runner.slow = True
        for _ in range(50):
            self.stage.announce_workers()
        self.assertEqual(self.stage.runner.waiting, 1)
        self.stage.runner.run_waiting()
        self.assertEqual(self.stage.runner.waiting, 2)  # one poll more, and a search for orphans
        self.stage.runner.run_waiting()
        self.assertEqual(self.stage.runner.waiting, 0)

    def test_tasks_wait_in_the_store_after_the_last_worker_stopped(self) -> None:
        self.stage.add_worker("render")
        self.stage.remove_worker()
        client = self.stage.client()
        task_id = client.ask("new_task", task="x", kind="render")["task_id"]
        self.stage.run_maintenance()
        self.stage.pass_time(10)
        self.assertEqual(self.stage.states(task_id), ["waiting"])
        self.stage.add_worker("render")
        self.assertEqual(self.stage.states(task_id), ["queued"])

    def test_the_next_attempt_of_a_task_is_assigned(self) -> None:
        self.stage.add_worker("render")
        task_id = self.stage.client().ask("new_task", task="x", kind="render")["task_id"]
        self.stage.finish(task_id, state=State.WAITING, error="no", delay=5)
        self.stage.pass_time(4)
        self.stage.run_maintenance()
        self.assertEqual(self.stage.states(task_id), ["waiting"])
        self.stage.pass_time(1)
        self.stage.run_maintenance()
        self.assertEqual([(t.state.value, t.dispatch) for t in self.stage.tasks(task_id)], [("queued", 2)])

    def test_no_turn_is_taken_for_workers_that_come_after_a_stop(self) -> None:
        tasks = self.stage.create(kind="render")
        now(self.stage.dispatcher.stop())
        self.stage.add_worker("render")
        self.stage.pass_time(10)
        self.assertEqual(self.stage.states(*tasks), ["waiting"])

    def test_a_failed_turn_of_a_new_pool_is_taken_again(self) -> None:
        tasks = self.stage.create(kind="render")
        assign = self.stage.store.assign

        async def away(pool: Pool, limit: int, after_user: int, patient: bool = False) -> Turn:
            raise Unavailable("for a moment")

        self.stage.store.assign = away  # type: ignore[method-assign]
        self.stage.add_worker("render")
        self.stage.store.assign = assign  # type: ignore[method-assign]
        self.stage.pass_time(0.3)
        self.assertEqual(self.stage.states(*tasks), ["queued"])


class Kinds(StageCase):
    queues = ("tasks", "slow")

    def test_without_workers_there_are_no_kinds(self) -> None:
        self.assertEqual(self.stage.client().ask("kinds")["kinds"], [])

    def test_the_kinds_of_one_worker_are_listed(self) -> None:
        self.stage.add_worker(KindInfo("thumbnail", "process", 60.0, 5, "Make it small."), "simulate", slots=8)
        reply = self.stage.client().ask("kinds")
        self.assertEqual([kind["kind"] for kind in reply["kinds"]], ["simulate", "thumbnail"])
        self.assertEqual(
            reply["kinds"][1],
            {
                "kind": "thumbnail",
                "queues": ["tasks"],
                "isolation": "process",
                "timeout": 60,
                "max_attempts": 5,
                "summary": "Make it small.",
                "workers": 1,
                "slots": 8,
                "hung": 0,
                "stalled": 0,
            },
        )

    def test_slots_are_those_of_the_executor_less_the_hung_ones(self) -> None:
        """100 async slots, 4 threads and 3 child processes cannot run 107 tasks of one kind."""
        slots = {"async": 100, "thread": 4, "process": 3}
        kinds = [KindInfo("a", "async"), KindInfo("t", "thread"), KindInfo("p", "process"), KindInfo("x", "program")]
        now(self.stage.other_store.register(WorkerInfo("w", ["tasks"], kinds, slots)))
        self.stage.change_worker(hung='{"thread":1}', stalled="a of task 3")
        shown = {kind.kind: (kind.slots, kind.hung, kind.stalled) for kind in self.stage.pools.kinds()}
        self.assertEqual(shown, {"a": (100, 0, 1), "t": (3, 1, 1), "p": (3, 0, 1), "x": (0, 0, 1)})
        serving = self.stage.pools.serving(Route("tasks", "t"))
        self.assertEqual(serving, Serving(1, 3, 1, 1, "a of task 3", 3))

    def test_where_workers_differ_the_most_permissive_counts(self) -> None:
        self.stage.add_worker(KindInfo("render", "thread", 60.0, 5), name="a", queues=("slow", "tasks"), slots=2)
        self.stage.add_worker(KindInfo("render", "process", 90.0, 2, "Draw."), name="b", slots=3)
        [kind] = self.stage.pools.kinds()
        self.assertEqual(kind, ServedKind("render", ["tasks", "slow"], "thread", 90.0, 5, "Draw.", 2, 5, 0, 0))
        self.stage.add_worker(KindInfo("render", "process", None, 2), name="c", queues=("slow",), slots=1)
        [kind] = self.stage.pools.kinds()
        self.assertEqual((kind.timeout, kind.workers, kind.slots), (None, 3, 6))
        self.assertEqual(self.stage.pools.serving(RENDER), Serving(2, 5, 0, 0, "", 5))
        self.assertEqual(self.stage.pools.serving(Route("slow", "render")), Serving(2, 3, 0, 0, "", 5))

    def test_only_kinds_of_this_servers_queues_are_listed(self) -> None:
        self.stage.add_worker("render", queues=("elsewhere",))
        self.stage.add_worker("sculpt", queues=("elsewhere", "slow"), name="w2")
        self.assertEqual([(k.kind, k.queues) for k in self.stage.pools.kinds()], [("sculpt", ["slow"])])
