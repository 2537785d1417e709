"""The action explain: the reason for a task's state, and what the user can do."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from taskd.model.spans import about
from taskd.model.states import State
from taskd.ports.workers import Mean
from taskd.store import overview
from taskd.store.rows import encode
from tests.unit.test_actions import ActionCase

NOON_TEXT = "2025-03-01T12:00:00Z"


class ExplainCase(ActionCase):
    def explain(self, task_id: int) -> dict[str, Any]:
        """The reply, without the fields that every reply has."""
        reply = self.client.ask("explain", task_id=task_id)
        self.assertEqual((reply.pop("ok"), reply.pop("status"), reply.pop("task_id")), (True, "success", task_id))
        self.assertRegex(reply["message"], r"^[A-Z].*\.$")
        self.assertNotIn("None", reply["message"])
        del reply["id"]
        return reply


class Explaining(ExplainCase):
    def test_a_completed_task(self) -> None:
        task_id = self.add()
        self.stage.run(task_id)
        reply = self.explain(task_id)
        self.assertIn("get_task", reply.pop("message"))
        self.assertEqual(
            reply,
            {
                "state": "completed",
                "code": "completed",
                "kind": "simulate",
                "queue": "tasks",
                "attempt": 1,
                "max_attempts": 3,
                "losses": 0,
                "returns": 0,
                "finished_at": "2025-03-01T12:00:00Z",
            },
        )

    def test_failed_and_cancelled_tasks_name_retry_task(self) -> None:
        failed, cancelled = self.add(), self.add()
        self.stage.run(failed, state=State.FAILED, error="ValueError: no.")
        self.client.ask("cancel_task", task_id=cancelled)
        reply = self.explain(failed)
        self.assertEqual((reply["code"], reply["error"]), ("failed", "ValueError: no."))
        self.assertIn("ValueError: no. get_task", reply["message"])
        for task_id, code in ((failed, "failed"), (cancelled, "cancelled")):
            reply = self.explain(task_id)
            self.assertEqual((reply["code"], reply["state"]), (code, code))
            self.assertIn("retry_task", reply["message"])

    def test_a_running_task(self) -> None:
        task_id = self.add()
        self.stage.begin(task_id)
        reply = self.explain(task_id)
        self.assertEqual((reply["code"], reply["since"], reply["attempt"]), ("running", "2025-03-01T12:00:00Z", 1))
        self.assertIn("attempt 1 of 3 since 2025-03-01 12:00:00 UTC", reply["message"])

    def test_a_queued_task(self) -> None:
        self.stage.add_worker(slots=7)
        reply = self.explain(self.add())
        self.assertEqual((reply["code"], reply["workers"], reply["slots"]), ("queued", 1, 7))
        self.assertEqual((reply["attempt"], reply["max_attempts"]), (0, 3))

    BLOCK = "render of task 12 at lab.py:7"

    def test_a_running_task_whose_worker_is_blocked(self) -> None:
        self.stage.add_worker()
        task_id, [other] = self.add(), self.stage.create()
        self.stage.begin(task_id)
        self.stage.begin(other, worker="w2")
        self.stage.change_worker(stalled=self.BLOCK)
        reply = self.explain(task_id)
        self.assertEqual((reply["code"], reply["blocked_by"], reply["since"]), ("stalled", self.BLOCK, NOON_TEXT))
        self.assertIn(f"this worker is blocked: {self.BLOCK}.", reply["message"])
        self.assertEqual(self.explain(other.id)["code"], "running")

    def test_a_task_whose_workers_are_all_blocked(self) -> None:
        self.stage.add_worker()
        self.stage.add_worker(name="w2")
        held, [waiting] = self.stage.create(worker="w"), self.stage.create()
        self.stage.change_worker("w2", stalled="another")
        reply = self.explain(held[0].id)
        self.assertEqual((reply["code"], reply["workers"], reply["stalled"]), ("queued", 2, 1))
        self.assertEqual(self.explain(waiting.id)["code"], "waiting")
        self.stage.change_worker(stalled=self.BLOCK)
        reply = self.explain(waiting.id)
        self.assertEqual((reply["code"], reply["blocked_by"], reply["stalled"]), ("stalled", self.BLOCK, 2))
        self.assertIn(f"Every worker that serves it is blocked: {self.BLOCK}. It waits", reply["message"])

    def test_a_task_that_a_blocked_worker_holds(self) -> None:
        self.stage.add_worker()
        self.stage.add_worker(name="w2")
        [held] = self.stage.create(worker="w")
        self.stage.change_worker(stalled=self.BLOCK)
        reply = self.explain(held.id)
        self.assertEqual((reply["code"], reply["state"], reply["blocked_by"]), ("stalled", "queued", self.BLOCK))

    def test_a_task_whose_slots_are_all_hung(self) -> None:
        self.stage.add_worker(slots=2)
        task_id = self.add()
        self.stage.change_worker(hung='{"async":1,"thread":2}')
        reply = self.explain(task_id)
        self.assertEqual((reply["code"], reply["slots"], reply["hung"]), ("queued", 1, 1))
        self.stage.change_worker(hung='{"async":2}')
        reply = self.explain(task_id)
        self.assertEqual((reply["code"], reply["slots"], reply["hung"]), ("hung", 0, 2))
        self.assertIn("All 2 slots", reply["message"])

    def test_all_wait_for_a_worker_after_a_failover(self) -> None:
        self.stage.add_worker()
        queued = self.add()
        [waiting] = self.stage.create()
        self.stage.liveness.waits_for = "host:7:ab"
        reply = self.explain(waiting.id)
        self.assertEqual((reply["code"], reply["waits_for"], reply["workers"]), ("failover", "host:7:ab", 1))
        self.assertIn("worker host:7:ab has not yet", reply["message"])
        self.assertEqual(self.explain(queued)["code"], "queued")

    def test_a_suspect_that_waits(self) -> None:
        self.stage.add_worker()
        queued = self.add()
        [waiting] = self.stage.create()
        self.stage.sql("UPDATE tasks SET losses = 2")
        reply = self.explain(queued)
        self.assertEqual((reply["code"], reply["losses"]), ("suspect", 2))
        self.assertIn("Its worker died 2 times while it ran", reply["message"])
        # who is next does not depend on losses
        reply = self.explain(waiting.id)
        self.assertEqual((reply["code"], reply["losses"]), ("waiting", 2))

    def test_a_task_that_was_given_back(self) -> None:
        self.stage.add_worker()
        task_id = self.add()
        self.stage.sql("UPDATE tasks SET returns = 1")
        reply = self.explain(task_id)
        self.assertEqual((reply["code"], reply["returns"]), ("queued", 1))
        self.assertIn("have given it back once.", reply["message"])
        self.stage.run(task_id)
        self.assertNotIn("given", self.explain(task_id)["message"])

    def test_a_task_without_a_worker(self) -> None:
        reply = self.explain(self.add())
        self.assertEqual((reply["code"], reply["state"], reply["workers"]), ("no_worker", "waiting", 0))
        self.assertIn("start a taskworker", reply["message"])
        self.assertNotIn("--handlers", reply["message"])

    def test_a_task_of_a_kind_that_no_worker_serves(self) -> None:
        self.stage.add_worker()
        reply = self.explain(self.add(kind="sculpt"))
        self.assertEqual((reply["code"], reply["kind"], reply["queue"]), ("no_worker", "sculpt", "tasks"))
        self.assertEqual((reply["workers"], reply["max_attempts"]), (0, None))
        for word in ("'sculpt'", "'tasks'", "--handlers"):
            self.assertIn(word, reply["message"])

    def test_a_task_of_a_program_that_no_worker_serves(self) -> None:
        self.stage.add_worker()
        reply = self.explain(self.add(kind="command:convert"))
        self.assertEqual((reply["code"], reply["kind"]), ("no_worker", "command:convert"))
        self.assertIn("--programs", reply["message"])
        self.assertNotIn("--handlers", reply["message"])

    def test_a_task_of_a_kind_that_is_served_only_in_another_queue(self) -> None:
        self.stage.add_worker("sculpt", queues=("slow",))
        self.assertEqual(self.explain(self.add(kind="sculpt"))["code"], "no_worker")
        self.assertEqual(self.explain(self.add(kind="sculpt", queue="slow"))["code"], "queued")

    def test_a_scheduled_task(self) -> None:
        self.stage.add_worker()
        task_id = self.add(delay=3600)
        reply = self.explain(task_id)
        self.assertEqual((reply["code"], reply["state"]), ("scheduled", "scheduled"))
        self.assertEqual((reply["run_at"], reply["workers"]), ("2025-03-01T13:00:00Z", 1))
        self.assertNotIn("worker", reply["message"])
        self.stage.remove_worker()
        reply = self.explain(task_id)
        self.assertEqual((reply["code"], reply["workers"]), ("scheduled", 0))
        self.assertIn("start a taskworker", reply["message"])

    def test_a_task_that_waits_for_its_next_attempt(self) -> None:
        self.stage.add_worker()
        task_id = self.add()
        self.stage.begin(task_id)
        self.stage.finish(task_id, state=State.WAITING, error="KeyError: 'x'", delay=60)
        reply = self.explain(task_id)
        self.assertEqual((reply["code"], reply["state"], reply["attempt"]), ("retrying", "retrying", 1))
        self.assertEqual((reply["error"], reply["run_at"]), ("KeyError: 'x'", "2025-03-01T12:01:00Z"))
        self.assertIn("Attempt 1 of 3 has failed: KeyError: 'x'. The next attempt is at", reply["message"])

    def test_rabbitmq_is_away(self) -> None:
        """It is only a note: work goes on."""
        self.stage.add_worker()
        queued = self.add()
        [waiting] = self.stage.create()
        note = "RabbitMQ cannot be reached"
        self.assertNotIn(note, self.explain(queued)["message"])
        self.stage.broker.ready = False
        for task_id, code in ((queued, "queued"), (waiting.id, "waiting")):
            reply = self.explain(task_id)
            self.assertEqual((reply["code"], reply["state"]), (code, code))
            self.assertIn(note, reply["message"])
        self.assertNotIn(note, self.explain(self.add(kind="sculpt"))["message"])

    def test_all_slots_are_taken(self) -> None:
        self.stage.add_worker(slots=3)
        numbers = [self.add() for _ in range(4)]
        self.stage.pass_time(0.1)
        reply = self.explain(numbers[-1])
        self.assertEqual((reply["code"], reply["slots"], reply["workers"]), ("waiting", 3, 1))
        self.assertIn("waits for a free slot: 3 run tasks of its kind", reply["message"])

    def test_a_waiting_task_with_free_slots(self) -> None:
        self.stage.add_worker()
        [task] = self.stage.create()
        reply = self.explain(task.id)
        self.assertEqual(reply["code"], "waiting")
        self.assertIn("just being assigned", reply["message"])

    def test_a_queue_that_another_server_dispatches(self) -> None:
        self.stage.add_worker(queues=("elsewhere",))
        [task] = self.stage.create(queue="elsewhere")
        reply = self.explain(task.id)
        self.assertEqual((reply["code"], reply["queue"]), ("waiting", "elsewhere"))
        self.assertIn("only tasks, slow", reply["message"])

    def test_the_store_is_away(self) -> None:
        self.stage.add_worker()
        task_id = self.add()
        self.stage.runner.away = True
        reply = self.client.ask("explain", task_id=task_id)
        self.assertRefused(reply, "unavailable")
        self.assertEqual(reply["message"], "the database cannot be used now; try again")


class WaitingForSlots(ExplainCase):
    """The answer for a task that waits for a slot. The pool has four slots, and a turn has found no room."""

    def setUp(self) -> None:
        super().setUp()
        self.ben = self.stage.client("ben")
        self.mine = self.stage.create(count=3, kind="count", worker="w")
        [held] = self.stage.create("ben", worker="w")
        self.stage.add_worker("simulate", "count")
        self.theirs = self.add(self.ben)
        self.stage.pass_time(0.2)
        self.assertEqual(self.stage.states(*self.mine, held, self.theirs), ["queued"] * 4 + ["waiting"])

    def told(self, task_id: int) -> dict[str, Any]:
        """What the reply says about the line."""
        reply = self.explain(task_id)
        self.assertEqual((reply["code"], reply["slots"]), ("waiting", 4))
        names = ("held", "held_by_you", "before_you", "before_you_more", "estimate", "basis", "message")
        return {name: reply[name] for name in names}

    def measure(self, *means: Mean) -> None:
        """Workers have measured these times."""
        self.stage.change_worker(means=encode(means))

    def test_nothing_is_measured(self) -> None:
        first, second = self.add(), self.add(kind="count")
        nothing = "Nothing has been measured yet that an estimate could rest on."
        start = "The task waits for a free slot: 4 run tasks of its kind, 4 tasks hold them (3 of yours)"
        unknown: dict[str, Any] = {
            "held": 4,
            "held_by_you": 3,
            "estimate": None,
            "basis": None,
            "before_you_more": False,
        }
        text = f"{start}, and none of your tasks are before it. {nothing}"
        self.assertEqual(self.told(first), {**unknown, "before_you": 0, "message": text})
        text = f"{start}, and 1 of your tasks is before it. {nothing}"
        self.assertEqual(self.told(second), {**unknown, "before_you": 1, "message": text})

    def end(self, name: str, count: int, **spec: Any) -> None:
        """Tasks of a user end that were held beyond the slots, so that nobody takes their place."""
        self.stage.finish(*self.stage.create(name, count, **{"worker": "w", **spec}))

    def test_the_estimate_is_by_the_ends_of_the_owners_tasks(self) -> None:
        """While some waited; not by those of others, nor in other pools."""
        self.stage.add_worker("sculpt", name="w2")
        self.measure(Mean(1, "simulate", 1000.0))
        self.end("ana", 50)
        self.stage.pass_time(30)
        self.add()
        self.stage.pass_time(9)
        last = self.add()
        self.assertEqual(self.told(last)["basis"], "measured_times")
        self.stage.pass_time(6)
        self.end("ana", 2)
        self.end("ana", 1, kind="count")
        self.end("ben", 70)
        self.end("ana", 90, kind="sculpt", worker="w2")
        self.stage.pass_time(10)
        told = self.told(last)
        self.assertEqual((told["before_you"], told["basis"], told["before_you_more"]), (1, "ended_lately", False))
        # in the whole steps of the 25 seconds that the older one has waited, three have ended; two must
        self.assertAlmostEqual(told["estimate"], 2 * 15.2 / 3, 0)
        self.assertIn("in about 10 seconds, as fast as your tasks have ended lately.", told["message"])

    def test_the_estimate_is_by_measured_times(self) -> None:
        self.add(kind="count")
        last = self.add()
        # ana and ben share four slots, but ana has three
        self.measure(Mean(1, "count", 30.0), Mean(1, "simulate", 60.0), Mean(2, "simulate", 9000.0))
        told = self.told(last)
        self.assertEqual((told["estimate"], told["basis"]), (30.0, "measured_times"))
        self.assertIn("begins in about 30 seconds, by the times that workers have measured.", told["message"])
        self.measure(Mean(1, "count", 30.0))
        self.assertEqual(self.told(last)["basis"], None)
        # of other users: better than nothing
        self.measure(Mean(1, "count", 30.0), Mean(2, "simulate", 360.0))
        told = self.told(last)
        self.assertEqual(told["estimate"], 130.0)
        self.assertIn("about 2 minutes", told["message"])

    def test_the_slots_that_the_owner_can_expect(self) -> None:
        theirs = self.add(self.ben)
        self.measure(Mean(2, "simulate", 60.0))
        [ben] = self.stage.sql("SELECT id FROM users WHERE username = 'ben'")
        self.assertEqual(ben, (2,))

        def estimate() -> float | None:
            reply = self.ben.ask("explain", task_id=theirs)
            return float(reply["estimate"])

        # one is before it; ben has one slot, and two of four as his share
        self.assertEqual(estimate(), 60.0)
        self.stage.sql("UPDATE users SET weight = 3 WHERE id = 2")
        self.assertEqual(estimate(), 40.0)
        # now ana waits, too, and nobody counts how many others
        self.add()
        self.assertEqual(estimate(), 40.0)
        with patch.object(overview, "_LINE_USERS", 0):
            self.assertEqual(estimate(), 120.0)

    def test_more_tasks_than_are_counted(self) -> None:
        self.stage.create(count=5)
        self.stage.pass_time(0.1)
        last = self.add()
        with patch.object(overview, "COUNTED", 4):
            told = self.told(last)
            self.assertEqual((told["before_you"], told["before_you_more"], told["estimate"]), (4, True, None))
            self.assertIn("and more than 4 of your tasks are before it.", told["message"])
            self.measure(Mean(1, "simulate", 3600.0))
            told = self.told(last)
            self.assertEqual((told["before_you_more"], told["estimate"]), (True, 6000.0))
            self.assertIn("It probably begins in about 2 hours at the earliest, by", told["message"])

    def test_more_is_held_than_there_are_slots(self) -> None:
        self.stage.create(count=3, worker="w")
        told = self.told(self.add())
        self.assertEqual((told["held"], told["held_by_you"]), (7, 6))
        self.assertIn("4 run tasks of its kind, 7 tasks hold them or are next (6 of yours), and", told["message"])

    def test_a_slot_is_free_and_others_wait(self) -> None:
        self.stage.finish(self.mine[0])
        told = self.told(self.stage.create()[0].id)
        self.assertEqual((told["held"], told["before_you"]), (3, 0))
        self.assertIn("or is just being assigned to a worker: none of your tasks are before it.", told["message"])

    def test_a_slot_is_free_and_nothing_is_before_it(self) -> None:
        self.ben.ask("cancel_task", task_id=self.theirs)
        self.stage.finish(self.mine[0])
        told = self.told(self.stage.create()[0].id)
        self.assertEqual((told["estimate"], told["basis"], told["before_you_more"]), (0.0, "free_slots", False))
        text = "The task is just being assigned to a worker: a slot is free, and nothing is before it."
        self.assertEqual(told["message"], text)

    def test_the_pool_in_which_it_begins_first(self) -> None:
        """The other one has more slots, and more before it."""
        self.add(kind="count")
        last = self.add()
        self.stage.create(count=2, worker="w2")
        self.stage.add_worker(name="w2", slots=2)
        self.stage.pass_time(0.2)
        self.measure(Mean(1, "simulate", 40.0), Mean(1, "count", 40.0))
        self.stage.change_worker("w2", means=encode([Mean(1, "simulate", 40.0)]))
        reply = self.explain(last)
        self.assertEqual((reply["slots"], reply["before_you"], reply["held"], reply["estimate"]), (2, 0, 2, 20.0))
        self.stage.change_worker("w2", hung='{"async": 2}')
        reply = self.explain(last)
        self.assertEqual((reply["slots"], reply["before_you"], reply["held"]), (4, 1, 4))

    def test_no_worker_can_take_a_task_now(self) -> None:
        """One is blocked, and the slots of the other are hung."""
        self.stage.add_worker("simulate", "count", name="w2")
        self.stage.change_worker("w2", stalled="another")
        self.stage.change_worker(hung='{"async": 4}')
        reply = self.explain(self.add())
        self.assertEqual((reply["code"], reply["slots"], reply["estimate"]), ("waiting", 0, None))
        self.assertIn("no worker that serves it can take a task now", reply["message"])


class Spans(SynchronousTestCase):
    def test_they_are_rounded(self) -> None:
        for seconds, expected in (
            (0, (1, "seconds")),
            (0.4, (1, "seconds")),
            (19.6, (20, "seconds")),
            (23.0, (25, "seconds")),
            (87.0, (85, "seconds")),
            (89.0, (1, "minutes")),
            (150.0, (2, "minutes")),
            (5000.0, (85, "minutes")),
            (7000.0, (2, "hours")),
            (100_000.0, (30, "hours")),
            (150_000.0, (2, "days")),
            (1e9, (11_575, "days")),
        ):
            self.assertEqual(about(seconds), expected)
