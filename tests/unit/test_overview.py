"""The action overview, and the rates in it."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taskd.events import end_rates
from taskd.events.end_rates import MAX_COUNTS, STEP, WINDOW, EndRates
from taskd.events.publisher import changes_of
from taskd.model.states import State
from taskd.model.tasks import Task
from tests.unit.stage import NOON, Client, StageCase

ROUTE = ("tasks", "simulate")


class Rates(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1234.5)
        self.rates = EndRates(self.clock)

    def end(self, count: int = 1, user: int = 1, state: State = State.COMPLETED, kind: str = "simulate") -> None:
        tasks = [Task(n, user, "t", kind, "tasks", state, NOON, NOON) for n in range(count)]
        self.rates.note(changes_of(tasks, NOON))

    def rate(self, user: int | None = None) -> float:
        return round(self.rates.by_minute(user).get(ROUTE, 0.0), 6)

    def test_ends_a_minute_since_it_began_to_count(self) -> None:
        self.assertEqual(self.rates.by_minute(None), {})
        self.end(5)
        # in the first second nothing can be said
        self.assertEqual((self.rate(), self.rates.seconds), (300, 1))
        self.clock.advance(30)
        self.assertEqual((self.rate(), self.rates.seconds), (10, 30))
        self.end(10)
        self.assertEqual(self.rate(), 30)

    def test_ends_are_counted_by_user_and_route(self) -> None:
        self.clock.advance(60)
        self.end(2, user=1)
        self.end(3, user=2)
        self.end(4, user=2, kind="other")
        self.assertEqual(self.rates.by_minute(None), {ROUTE: 5, ("tasks", "other"): 4})
        self.assertEqual(self.rates.by_minute(1), {ROUTE: 2})
        self.assertEqual(self.rates.by_minute(2), {ROUTE: 3, ("tasks", "other"): 4})
        self.assertEqual(self.rates.by_minute(3), {})

    def test_only_what_workers_have_ended_counts(self) -> None:
        self.clock.advance(60)
        for state in State:
            self.end(state=state)
        self.assertEqual(self.rate(), 2)

    def test_a_steady_rate_stays_what_it_is(self) -> None:
        self.clock.advance(WINDOW)
        for _ in range(300):
            self.clock.advance(1)
            self.end(2)
        self.assertTrue(118 < self.rate() < 122, self.rate())
        self.assertTrue(WINDOW - STEP <= self.rates.seconds <= WINDOW)

    def test_what_was_long_ago_is_forgotten(self) -> None:
        self.end(100)
        self.clock.advance(WINDOW - STEP - 5)
        self.assertGreater(self.rate(), 0)
        self.clock.advance(2 * STEP)
        self.assertEqual(self.rates.by_minute(None), {})
        self.assertEqual(len(self.rates._steps), 0)

    def test_the_last_seconds_are_counted_in_whole_steps(self) -> None:
        def lately(seconds: float, user: int = 1) -> float:
            return round(self.rates.by_minute_in(user, seconds).get(ROUTE, 0.0), 6)

        self.end(100)
        self.clock.advance(WINDOW + 5.5)
        self.end(30)
        self.clock.advance(14)
        self.end(6, user=2)
        self.end(3)
        self.clock.advance(6)
        # it is 1380 now; 30 ended at 1360, three at 1374
        self.assertEqual([lately(seconds) for seconds in (9.9, 10, 19.9, 20, 29)], [0, 18, 18, 99, 99])
        self.assertEqual(lately(10, 2), 36)
        # never more than the window, nor than it has counted
        self.assertEqual(lately(1e6), lately(WINDOW - STEP))
        self.rates = EndRates(self.clock)
        self.clock.advance(15)
        self.end(5)
        self.assertEqual(lately(1e6), 20)

    def test_its_memory_is_bounded(self) -> None:
        self.patch(end_rates, "MAX_COUNTS", 3)
        self.assertGreater(MAX_COUNTS, 3)
        self.clock.advance(60)
        for user in range(1, 6):
            self.end(2, user=user)
        self.assertEqual([self.rate(user) for user in range(1, 6)], [2, 2, 2, 0, 0])
        self.assertEqual(self.rate(), 10)


class Overview(StageCase):
    queues = ("tasks", "slow")

    def setUp(self) -> None:
        super().setUp()
        self.ana = self.stage.client("ana")

    def routes(self, client: Client) -> dict[tuple[str, str], dict[str, Any]]:
        reply = client.ask("overview")
        self.assertTrue(reply["ok"], reply)
        return {(route["queue"], route["kind"]): route for route in reply["routes"]}

    def work(self) -> None:
        """Tasks of two users in all states."""
        self.stage.add_worker("simulate", "count", slots=4)
        self.stage.change_worker(hung='{"async": 1}')
        for name in ("ana", "ben"):
            waiting = self.stage.create(name, 6)
            self.stage.create(name, kind="nobody", queue="slow")
            self.stage.create(name, delay=100)
            self.stage.hold(*waiting[:2])
            self.stage.run(waiting[2])
        self.stage.begin(waiting[0])
        self.stage.clock.advance(20)

    def test_a_user_sees_the_own_tasks(self) -> None:
        self.work()
        reply = self.ana.ask("overview")
        self.assertEqual((reply["status"], reply["scope"], reply["more"]), ("success", "own", False))
        self.assertEqual(reply["rate_seconds"], 20)
        served = {"slots": 3, "hung": 1}
        nothing = {"delayed": 0, "queued": 0, "running": 0}
        none = {"slots": 0, "hung": 0, "rate": 0, "more": []}
        self.assertEqual(
            reply["routes"],
            [
                {"queue": "slow", "kind": "nobody", "waiting": 1, **nothing, **none, "oldest": 20},
                {"queue": "tasks", "kind": "count", "waiting": 0, **nothing, **none, **served, "oldest": None},
                {
                    **{"queue": "tasks", "kind": "simulate", "waiting": 3, "delayed": 1, "queued": 2, "running": 0},
                    **{**served, "rate": 3, "oldest": 20, "more": []},
                },
            ],
        )

    def test_an_admin_sees_the_tasks_of_all(self) -> None:
        self.work()
        admin = self.stage.admin()
        self.assertEqual(admin.ask("overview")["scope"], "all")
        route = self.routes(admin)[ROUTE]
        self.assertEqual([route[name] for name in ("waiting", "delayed", "queued", "running")], [6, 2, 3, 1])
        self.assertEqual((route["rate"], route["slots"], route["hung"]), (6, 3, 1))
        self.assertEqual(self.routes(admin)["slow", "nobody"]["waiting"], 2)

    def test_a_worker_that_drains_or_has_gone_has_no_slots(self) -> None:
        self.work()
        self.stage.remove_worker()
        self.stage.clock.advance(1)
        self.assertEqual(self.routes(self.ana)[ROUTE]["slots"], 0)
        self.assertNotIn(("tasks", "count"), self.routes(self.ana))

    def test_counts_are_kept_for_a_second(self) -> None:
        ben = self.stage.client("ben")
        self.stage.create("ana", 2)
        self.assertEqual(self.routes(self.ana)[ROUTE]["waiting"], 2)
        self.stage.create("ana")
        self.stage.create("ben")
        calls = self.stage.runner.calls
        for _ in range(5):
            self.assertEqual(self.routes(self.ana)[ROUTE]["waiting"], 2)
        self.assertEqual(self.stage.runner.calls, calls)
        # of each user for itself
        self.assertEqual(self.routes(ben)[ROUTE]["waiting"], 1)
        self.assertEqual(self.routes(self.stage.admin())[ROUTE]["waiting"], 4)
        self.stage.clock.advance(1)
        self.assertEqual(self.routes(self.ana)[ROUTE]["waiting"], 3)

    def test_with_the_store_away_it_says_so(self) -> None:
        self.stage.runner.away = True
        self.assertRefused(self.ana.ask("overview"), "unavailable")
        self.stage.runner.away = False
        self.assertEqual(self.routes(self.ana), {})
