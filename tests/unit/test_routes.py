"""taskd.scheduling.routes: a route is open while workers serve it, and its backlog is dispatched only then."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from taskd.model.states import State
from taskd.model.tasks import Route
from taskd.ports.workers import KindInfo, WorkerInfo
from taskd.scheduling.maintenance.relay_outbox import RELAY_AFTER
from taskd.scheduling.maintenance.requeue_lost import LOST_AFTER
from taskd.scheduling.served_kinds import ServedKind, Serving
from tests.unit.stage import LEASE, StageCase, now

TASKS, SLOW = Route("tasks", "simulate"), Route("slow", "simulate")
RENDER = Route("tasks", "render")


class RouteCase(StageCase):
    queues = ("tasks", "slow")
    window = 10

    def open_routes(self) -> set[Route]:
        """The routes that have a window. Asserts that each has a dispatcher as well."""
        self.assertEqual(self.stage.windows.by_route.keys(), self.stage.routes.dispatchers.keys())
        return set(self.stage.windows.by_route)


class OpenAndClose(RouteCase):
    def test_routes_of_the_default_kind_are_always_open(self) -> None:
        self.assertEqual(self.open_routes(), {TASKS, SLOW})
        self.stage.add_worker()
        self.stage.remove_worker()
        self.assertEqual(self.open_routes(), {TASKS, SLOW})

    def test_a_route_is_open_while_a_worker_serves_it(self) -> None:
        self.stage.add_worker("simulate", "render")
        self.stage.add_worker("render", name="w2")
        self.assertEqual(self.open_routes(), {TASKS, SLOW, RENDER})
        self.stage.remove_worker()
        self.assertEqual(self.open_routes(), {TASKS, SLOW, RENDER})
        self.stage.remove_worker("w2")
        self.assertEqual(self.open_routes(), {TASKS, SLOW})

    def test_queues_of_other_servers_open_no_routes(self) -> None:
        self.stage.add_worker("render", queues=("tasks", "elsewhere"))
        self.assertEqual(self.open_routes(), {TASKS, SLOW, RENDER})

    def test_a_worker_that_was_not_announced_is_found_by_the_next_round(self) -> None:
        self.stage.broker.ready = False
        self.stage.add_worker("render")
        self.assertEqual(self.open_routes(), {TASKS, SLOW})
        self.stage.run_maintenance()
        self.assertEqual(self.open_routes(), {TASKS, SLOW, RENDER})

    def test_a_silent_worker_is_dead_after_a_lease(self) -> None:
        self.stage.add_worker("render")
        for _ in range(int(LEASE) - 1):
            self.stage.clock.advance(1)
            self.stage.liveness.on_event()
        self.assertIn(RENDER, self.open_routes())
        self.stage.clock.advance(1)
        self.stage.liveness.on_event()
        self.assertNotIn(RENDER, self.open_routes())

    def test_a_draining_worker_serves_nothing_new(self) -> None:
        self.stage.add_worker("render")
        now(self.stage.other_store.worker_draining("w"))
        self.stage.announce_workers()
        self.assertNotIn(RENDER, self.open_routes())

    def test_while_the_store_is_away_the_last_known_workers_count(self) -> None:
        self.stage.add_worker("render")
        self.stage.runner.away = True
        self.stage.announce_workers()
        self.stage.clock.advance(10 * LEASE)
        self.stage.run_maintenance()
        self.assertEqual(self.stage.routes.serving(RENDER), Serving(1, 4, 0, 0, "", 3))
        self.assertIn(RENDER, self.open_routes())

    def test_a_defect_is_logged_and_the_next_refresh_works(self) -> None:
        self.stage.add_worker("render")
        self.stage.runner.broken = True
        self.stage.announce_workers()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.stage.runner.broken = False
        self.stage.remove_worker()
        self.assertNotIn(RENDER, self.open_routes())

    def test_many_announcements_at_once_cause_two_refreshes(self) -> None:
        self.stage.runner.slow = True
        for _ in range(50):
            self.stage.announce_workers()
        self.assertEqual(self.stage.runner.waiting, 1)
        self.stage.runner.run_waiting()
        self.assertEqual(self.stage.runner.waiting, 2)  # one refresh more, and a search for orphans
        self.stage.runner.run_waiting()
        self.assertEqual(self.stage.runner.waiting, 0)


class Backlogs(RouteCase):
    def create_waiting(self, count: int = 1, kind: str = "render") -> list[int]:
        """Create tasks through the protocol, which must wait. Returns their ids."""
        client = self.stage.client()
        specs = [{"task": "x", "kind": kind}] * count
        ids: list[int] = client.ask("new_tasks", tasks=specs)["task_ids"]
        self.assertEqual(self.stage.states(*ids), ["waiting"] * count)
        return ids

    def test_waiting_tasks_are_dispatched_when_a_worker_starts(self) -> None:
        ids = self.create_waiting(3)
        taken = self.stage.consume("tasks#render")
        self.stage.add_worker("render")
        self.assertEqual(self.stage.states(*ids), ["queued"] * 3)
        self.assertEqual([delivery.task_id for delivery in taken], ids)

    def test_new_tasks_of_an_open_route_are_published_at_once(self) -> None:
        self.stage.add_worker("render")
        taken = self.stage.consume("tasks#render")
        task_id = self.stage.client().ask("new_task", task="x", kind="render")["task_id"]
        self.stage.run_pending()
        self.assertEqual((self.stage.states(task_id), len(taken)), (["queued"], 1))

    def test_each_route_has_a_window_of_its_own(self) -> None:
        self.stage.add_worker("render")
        client = self.stage.client()
        for kind in ("render", "simulate"):
            client.ask("new_tasks", tasks=[{"task": "x", "kind": kind}] * 12)
        states = self.stage.states()
        self.assertEqual((states.count("queued"), states.count("waiting")), (20, 4))

    def test_tasks_wait_in_the_store_after_the_last_worker_stopped(self) -> None:
        self.stage.add_worker("render")
        self.stage.remove_worker()
        [task_id] = self.create_waiting()
        self.stage.run_maintenance()
        self.assertEqual(self.stage.states(task_id), ["waiting"])

    def test_queued_tasks_of_a_closed_route_stay_queued_until_their_messages_are_lost(self) -> None:
        """The broker keeps their messages. If it loses them, the tasks wait in the store."""
        self.stage.add_worker("render")
        client = self.stage.client()
        [task_id] = client.ask("new_tasks", tasks=[{"task": "x", "kind": "render"}])["task_ids"]
        self.stage.remove_worker()
        self.stage.clock.advance(max(LOST_AFTER, LEASE / 2))
        self.stage.run_maintenance()
        self.assertEqual(self.stage.states(task_id), ["queued"])
        self.stage.lose_messages("tasks#render")
        self.stage.run_maintenance()
        self.assertEqual(self.stage.states(task_id), ["waiting"])
        self.stage.add_worker("render")
        self.assertEqual(self.stage.states(task_id), ["queued"])

    def test_an_orphaned_batch_of_a_closed_route_is_published(self) -> None:
        self.stage.create(kind="render", published=False)
        self.stage.clock.advance(RELAY_AFTER)
        self.stage.run_maintenance()
        self.assertIn("tasks#render", self.stage.broker.queue_names)

    def test_the_next_attempt_of_a_task_is_dispatched(self) -> None:
        self.stage.add_worker("render")
        taken = self.stage.consume("tasks#render")
        task_id = self.stage.client().ask("new_task", task="x", kind="render")["task_id"]
        self.stage.claim(task_id)
        self.stage.finish(task_id, state=State.WAITING, error="no")
        self.stage.run_maintenance()
        self.stage.run_pending()
        self.assertEqual([(d.task_id, d.dispatch) for d in taken], [(task_id, 1), (task_id, 2)])

    def test_a_dispatch_that_runs_when_its_route_is_closed_is_completed(self) -> None:
        ids = self.create_waiting(2)
        self.stage.add_worker("render")
        self.stage.run(*ids)
        more = [task.id for task in self.stage.create(count=2, state=State.WAITING, kind="render")]
        self.stage.runner.slow = True
        self.stage.routes.dispatchers[RENDER].tick()
        self.stage.runner.slow = False
        self.stage.remove_worker()
        self.assertNotIn(RENDER, self.open_routes())
        stopped = Deferred.fromCoroutine(self.stage.routes.stop())
        self.assertNoResult(stopped)
        self.stage.runner.run_waiting()
        self.stage.run_pending()
        self.successResultOf(stopped)
        self.assertEqual(self.stage.states(*more), ["queued"] * 2)

    def test_no_route_is_opened_after_a_stop(self) -> None:
        now(self.stage.routes.stop())
        self.stage.add_worker("render")
        self.stage.liveness.on_event()
        self.assertEqual(self.open_routes(), {TASKS, SLOW})


class Kinds(RouteCase):
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
        shown = {kind.kind: (kind.slots, kind.hung, kind.stalled) for kind in self.stage.routes.kinds()}
        self.assertEqual(shown, {"a": (100, 0, 1), "t": (3, 1, 1), "p": (3, 0, 1), "x": (0, 0, 1)})
        serving = self.stage.routes.serving(Route("tasks", "t"))
        self.assertEqual(serving, Serving(1, 3, 1, 1, "a of task 3", 3))

    def test_where_workers_differ_the_most_permissive_counts(self) -> None:
        self.stage.add_worker(KindInfo("render", "thread", 60.0, 5), name="a", queues=("slow", "tasks"), slots=2)
        self.stage.add_worker(KindInfo("render", "process", 90.0, 2, "Draw."), name="b", slots=3)
        [kind] = self.stage.routes.kinds()
        self.assertEqual(kind, ServedKind("render", ["tasks", "slow"], "thread", 90.0, 5, "Draw.", 2, 5, 0, 0))
        self.stage.add_worker(KindInfo("render", "process", None, 2), name="c", queues=("slow",), slots=1)
        [kind] = self.stage.routes.kinds()
        self.assertEqual((kind.timeout, kind.workers, kind.slots), (None, 3, 6))
        self.assertEqual(self.stage.routes.serving(RENDER), Serving(2, 5, 0, 0, "", 5))
        self.assertEqual(self.stage.routes.serving(Route("slow", "render")), Serving(2, 3, 0, 0, "", 5))

    def test_only_kinds_of_this_servers_queues_are_listed(self) -> None:
        self.stage.add_worker("render", queues=("elsewhere",))
        self.stage.add_worker("sculpt", queues=("elsewhere", "slow"), name="w2")
        self.assertEqual([(k.kind, k.queues) for k in self.stage.routes.kinds()], [("sculpt", ["slow"])])
