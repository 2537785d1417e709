"""The action explain: why a task is where it is, and what to do."""

from __future__ import annotations

from typing import Any

from taskd.model.states import State
from tests.unit.test_actions import ActionCase


class Explaining(ActionCase):
    window = 3

    def why(self, task_id: int) -> dict[str, Any]:
        """The reply, less what every reply has."""
        reply = self.client.ask("explain", task_id=task_id)
        self.assertEqual((reply.pop("ok"), reply.pop("status"), reply.pop("task_id")), (True, "success", task_id))
        self.assertRegex(reply["message"], r"^[A-Z].*\.$")
        self.assertNotIn("None", reply["message"])
        del reply["id"]
        return reply

    def test_a_completed_one(self) -> None:
        task_id = self.add()
        self.stage.run(task_id)
        why = self.why(task_id)
        self.assertIn("get_task", why.pop("message"))
        self.assertEqual(
            why,
            {
                **{"state": "completed", "code": "completed", "kind": "simulate", "queue": "tasks"},
                **{"attempt": 1, "max_attempts": 3, "finished_at": "2025-03-01T12:00:00Z"},
            },
        )

    def test_a_failed_one_and_a_cancelled_one_say_how_to_go_on(self) -> None:
        failed, cancelled = self.add(), self.add()
        self.stage.run(failed, state=State.FAILED, error="ValueError: no.")
        self.client.ask("cancel_task", task_id=cancelled)
        why = self.why(failed)
        self.assertEqual((why["code"], why["error"]), ("failed", "ValueError: no."))
        self.assertIn("ValueError: no. get_task", why["message"])
        for task_id, code in ((failed, "failed"), (cancelled, "cancelled")):
            why = self.why(task_id)
            self.assertEqual((why["code"], why["state"]), (code, code))
            self.assertIn("retry_task", why["message"])

    def test_a_running_one(self) -> None:
        task_id = self.add()
        self.stage.claim(task_id)
        why = self.why(task_id)
        self.assertEqual((why["code"], why["since"], why["attempt"]), ("running", "2025-03-01T12:00:00Z", 1))
        self.assertIn("attempt 1 of 3 since 2025-03-01 12:00:00 UTC", why["message"])

    def test_one_that_is_handed_out(self) -> None:
        self.stage.work(slots=7)
        why = self.why(self.add())
        self.assertEqual((why["code"], why["workers"], why["slots"]), ("queued", 1, 7))

    def test_one_that_is_handed_out_and_nobody_serves_it(self) -> None:
        why = self.why(self.add())
        self.assertEqual((why["code"], why["state"], why["workers"]), ("no_worker", "queued", 0))
        self.assertIn("start a taskworker", why["message"])
        self.assertNotIn("--handlers", why["message"])

    def test_one_whose_kind_nobody_serves(self) -> None:
        self.stage.work()
        why = self.why(self.add(kind="sculpt"))
        self.assertEqual((why["code"], why["kind"], why["queue"]), ("no_worker", "sculpt", "tasks"))
        self.assertEqual((why["workers"], why["max_attempts"]), (0, None))
        for word in ("'sculpt'", "'tasks'", "--handlers"):
            self.assertIn(word, why["message"])

    def test_one_whose_program_nobody_serves(self) -> None:
        self.stage.work()
        why = self.why(self.add(kind="command:convert"))
        self.assertEqual((why["code"], why["kind"]), ("no_worker", "command:convert"))
        self.assertIn("--programs", why["message"])
        self.assertNotIn("--handlers", why["message"])

    def test_one_whose_kind_is_served_in_another_queue_only(self) -> None:
        self.stage.work("sculpt", queues=("slow",))
        self.assertEqual(self.why(self.add(kind="sculpt"))["code"], "no_worker")
        self.assertEqual(self.why(self.add(kind="sculpt", queue="slow"))["code"], "queued")

    def test_a_scheduled_one(self) -> None:
        self.stage.work()
        task_id = self.add(delay=3600)
        why = self.why(task_id)
        self.assertEqual((why["code"], why["state"]), ("scheduled", "scheduled"))
        self.assertEqual((why["run_at"], why["workers"]), ("2025-03-01T13:00:00Z", 1))
        self.assertNotIn("worker", why["message"])
        self.stage.leave()
        why = self.why(task_id)
        self.assertEqual((why["code"], why["workers"]), ("scheduled", 0))
        self.assertIn("start a taskworker", why["message"])

    def test_one_that_is_to_be_tried_again(self) -> None:
        self.stage.work()
        task_id = self.add()
        self.stage.claim(task_id)
        self.stage.finish(task_id, state=State.WAITING, error="KeyError: 'x'", delay=60)
        why = self.why(task_id)
        self.assertEqual((why["code"], why["state"], why["attempt"]), ("retrying", "retrying", 1))
        self.assertEqual((why["error"], why["run_at"]), ("KeyError: 'x'", "2025-03-01T12:01:00Z"))
        self.assertIn("Attempt 1 of 3 has failed: KeyError: 'x'. The next attempt is at", why["message"])

    def test_rabbitmq_is_away(self) -> None:
        self.stage.work()
        queued = self.add()
        self.stage.broker.ready = False
        waiting = self.add()
        for task_id, state in ((queued, "queued"), (waiting, "waiting")):
            why = self.why(task_id)
            self.assertEqual((why["code"], why["state"]), ("broker_down", state))
        self.assertEqual(self.why(self.add(kind="sculpt"))["code"], "no_worker")

    def test_the_window_is_full(self) -> None:
        self.stage.work()
        numbers = [self.add() for _ in range(4)]
        why = self.why(numbers[-1])
        self.assertEqual((why["code"], why["queued"], why["window"]), ("waiting", 3, 3))
        self.assertIn("3 tasks", why["message"])

    def test_it_is_about_to_be_handed_out(self) -> None:
        self.stage.work()
        [task] = self.stage.create(state=State.WAITING)
        self.assertEqual(self.why(task.id)["code"], "waiting")

    def test_a_queue_that_is_another_servers(self) -> None:
        self.stage.work(queues=("elsewhere",))
        [task] = self.stage.create(state=State.WAITING, queue="elsewhere")
        why = self.why(task.id)
        self.assertEqual((why["code"], why["queue"]), ("waiting", "elsewhere"))
        self.assertIn("only tasks, slow", why["message"])
