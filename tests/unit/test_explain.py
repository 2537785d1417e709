"""The action explain: the reason for a task's state, and what the user can do."""

from __future__ import annotations

from typing import Any

from taskd.model.states import State
from tests.unit.test_actions import ActionCase

NOON_TEXT = "2025-03-01T12:00:00Z"


class Explaining(ActionCase):
    def explain(self, task_id: int) -> dict[str, Any]:
        """The reply, without the fields that every reply has."""
        reply = self.client.ask("explain", task_id=task_id)
        self.assertEqual((reply.pop("ok"), reply.pop("status"), reply.pop("task_id")), (True, "success", task_id))
        self.assertRegex(reply["message"], r"^[A-Z].*\.$")
        self.assertNotIn("None", reply["message"])
        del reply["id"]
        return reply

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

    def test_a_suspect_that_waits(self) -> None:
        self.stage.add_worker()
        queued = self.add()
        [waiting] = self.stage.create()
        self.stage.sql("UPDATE tasks SET losses = 2")
        for task_id in (queued, waiting.id):
            reply = self.explain(task_id)
            self.assertEqual((reply["code"], reply["losses"]), ("suspect", 2))
            self.assertIn("Its worker died 2 times while it ran", reply["message"])

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
