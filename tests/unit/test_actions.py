"""taskd.api.actions: what each action does, through the protocol; accounts and live actions have their own tests."""

from __future__ import annotations

import base64
from typing import Any

from taskd.model.states import State
from taskd.ports.workers import KindInfo
from taskd.protocol.actions import ACTIONS, Access
from tests.unit.stage import Client, StageCase

MINIMAL: dict[str, dict[str, Any]] = {
    "new_task": {"task": "x"},
    "new_tasks": {"tasks": [{"task": "x"}]},
    "get_task": {"task_id": 1},
    **{name: {"task_id": 1} for name in ("cancel_task", "retry_task", "explain", "get_log")},
    "change_password": {"password": "p", "new_password": "q"},
    **{name: {"password": "p"} for name in ("delete_account", "totp_begin")},
    "totp_confirm": {"code": "000000"},
    "totp_off": {"password": "p", "code": "000000"},
    "end_session": {"session_id": 1},
    "new_token": {"name": "n"},
    "set_weight": {"username": "ana", "weight": 1},
    "set_role": {"username": "ana", "role": "user"},
    "set_disabled": {"username": "ana", "disabled": True},
    **{name: {"username": "ana"} for name in ("reset_password", "reset_totp", "end_user_sessions")},
    "end_invitation": {"invitation_id": 1},
    "set_quota": {"username": "ana", "open": 1},
    "wait": {"task_ids": [1]},
}


def ids(reply: dict[str, Any]) -> list[int]:
    """The tasks of a reply."""
    return [task["id"] for task in reply["tasks"]]


class ActionCase(StageCase):
    queues = ("tasks", "slow")

    def setUp(self) -> None:
        super().setUp()
        self.client = self.stage.client()

    def add(self, client: Client | None = None, **fields: Any) -> int:
        """Create a task through the protocol. Returns its id."""
        reply = (client or self.client).ask("new_task", **{"task": "x", **fields})
        self.assertEqual(reply["status"], "task_created", reply)
        return int(reply["task_id"])


class Basics(ActionCase):
    def test_hello(self) -> None:
        reply = self.stage.connect().ask("hello")
        self.assertEqual((reply["server"], reply["protocol"]), ("taskd", 1))
        self.assertEqual((reply["queues"], reply["actions"]), (["tasks", "slow"], list(ACTIONS)))
        self.assertEqual(reply["limits"]["line_bytes"], 65536)
        self.assertEqual((reply["limits"]["batch"], reply["limits"]["log_lines"]), (1000, 1000))

    def test_hello_names_the_process_to_users_only_and_without_host_and_process_id(self) -> None:
        self.assertNotIn("node", self.stage.connect().ask("hello"))
        self.assertEqual(self.client.ask("hello")["node"], "9ec0ebeb")

    def test_ping(self) -> None:
        self.assertEqual(self.stage.connect().ask("ping"), {"id": 1, "ok": True, "status": "success"})

    def test_whoami(self) -> None:
        reply = self.client.ask("whoami")
        self.assertEqual((reply["status"], reply["username"], reply["user_id"]), ("success", "ana", 1))

    def test_all_other_actions_require_a_login(self) -> None:
        client = self.stage.connect()
        for name, action in ACTIONS.items():
            if action.access in (Access.USER, Access.OPERATOR, Access.ADMIN):
                reply = client.ask(name, **MINIMAL.get(name, {}))
                self.assertRefused(reply, "auth_required")
                self.assertIn("log in", reply["message"])
        self.assertEqual(
            {name for name, action in ACTIONS.items() if action.access is Access.ANYONE},
            {"hello", "ping", "register", "login", "set_password"},
        )

    def test_fields_are_checked_before_the_login(self) -> None:
        self.assertRefused(self.stage.connect().ask("get_task"), "bad_request", "task_id")

    def test_another_users_task_and_a_missing_one_get_the_same_reply(self) -> None:
        task_id = self.add()
        eva = self.stage.client("eva")
        for action in ("get_task", "cancel_task", "retry_task", "explain", "get_log", "wait"):
            replies = []
            field = "task_ids" if action == "wait" else "task_id"
            for wanted in (task_id, 2**63 - 1):
                fields = {"task_ids": [wanted]} if action == "wait" else {"task_id": wanted}
                reply = eva.ask(action, **fields)
                self.assertRefused(reply, "not_found", field)
                replies.append({**reply, "id": 0, "message": reply["message"].replace(str(wanted), "N")})
            self.assertEqual(*replies)
        self.assertEqual(self.stage.states(task_id), ["waiting"])
        self.assertEqual(eva.ask("get_tasks")["status"], "no_tasks")


class NewTask(ActionCase):
    def test_a_task_with_only_a_text_gets_defaults(self) -> None:
        reply = self.client.ask("new_task", task=" ñ\n🦀 ")
        self.assertEqual(reply, {"id": reply["id"], "ok": True, "status": "task_created", "task_id": 1})
        [task] = self.stage.tasks(1)
        self.assertEqual((task.task, task.kind, task.queue), (" ñ\n🦀 ", "simulate", "tasks"))
        self.assertEqual((task.payload, task.max_attempts, task.state), ("{}", 3, State.WAITING))

    def test_all_fields_are_stored(self) -> None:
        payload = {"n": 2**100, "text": "ñ", "list": [1.5, None, True], "": {}}
        task_id = self.add(kind="render.4k", queue="slow", payload=payload, max_attempts=7)
        task = self.client.ask("get_task", task_id=task_id)["task"]
        self.assertEqual((task["kind"], task["queue"], task["max_attempts"]), ("render.4k", "slow", 7))
        self.assertEqual(task["payload"], payload)

    def test_a_payload_keeps_its_bytes(self) -> None:
        payloads = (
            b'{ "a" : 1.10,"b":1e-400 }',
            b'{"n":0.1000000000000000055511151231257827,"e":1E2,"u":"\\u00f1"}',
            b'{"a":1,"a":2}',
            b"{}",
            b"{\t}",
        )
        for payload in payloads:
            self.client.send(b'{"action":"new_task","id":1,"task":"x","payload":%s}' % payload)
            task_id = self.client.reply(1)["task_id"]
            self.client.send({"action": "get_task", "id": 2, "task_id": task_id})
            [line] = self.client.raw_lines()
            self.assertIn(b'"payload":' + payload + b",", line)
            self.assertEqual([task.payload.encode() for task in self.stage.tasks(task_id)], [payload])

    def test_a_carriage_return_between_tokens_becomes_a_space(self) -> None:
        """Some clients read a carriage return as the end of a line."""
        self.client.send(b'{"action":"new_task","id":1,"task":"x","payload":{\r"a":1}}\r')
        task_id = self.client.reply(1)["task_id"]
        self.assertEqual([task.payload for task in self.stage.tasks(task_id)], ['{ "a":1}'])

    def test_a_key_compares_payloads_by_value(self) -> None:
        asked = b'{"action":"new_task","id":%d,"task":"x","key":"k","payload":%s}'
        self.client.send(asked % (1, b'{"a":1.10,"b":[2]}'))
        task_id = self.client.reply(1)["task_id"]
        self.client.send(asked % (2, b'{ "b" : [2], "a" : 11e-1 }'))
        reply = {"id": 2, "ok": True, "status": "task_created", "task_id": task_id, "duplicate": True}
        self.assertEqual(self.client.reply(2), reply)
        self.client.send(asked % (3, b'{"a":1.10,"b":[3]}'))
        self.assertRefused(self.client.reply(3), "conflict", "key")

    def test_invalid_fields_are_refused(self) -> None:
        nested: Any = 1
        for _ in range(101):
            nested = [nested]
        cases: dict[str, tuple[Any, ...]] = {
            "task": ("", " \n", "\u200b", "\u2800 \u3164", "a\0b", 5, None),
            "kind": ("", "a b", "x" * 65, "ñ", None),
            "queue": ("other", "", "tasks ", 5),
            "payload": ([], "x", 5, {"a": nested}),
            "max_attempts": (0, 101, "3", 1.5),
            "timeout": (0, -1, "5", 30 * 86_400 + 1),
            "delay": (-1, "5m", 4e8),
            "run_at": ("", "noon", "2025-03-01T13:00:00", 1740834000, "2036-03-01T12:00:00Z"),
        }
        for field, values in cases.items():
            for value in values:
                fields = {"task": "x", field: value}
                self.assertRefused(self.client.ask("new_task", **fields), "bad_request", field)
        self.assertRefused(self.client.ask("new_task", task="x" * 4097), "too_large", "task")
        self.assertEqual(self.stage.tasks(), [])

    def test_max_attempts_comes_from_the_request_or_the_kind(self) -> None:
        """If neither gives one, it is None until the task is assigned to a worker."""
        self.stage.add_worker(
            KindInfo("render", "process", max_attempts=7), KindInfo("simulate", "async", max_attempts=9)
        )
        for fields, known in (
            ({}, 3),
            ({"kind": "render"}, 7),
            ({"kind": "render", "max_attempts": 2}, 2),
            ({"kind": "render", "queue": "slow"}, None),
            ({"kind": "sculpt"}, None),
            ({"kind": "sculpt", "max_attempts": 100}, 100),
        ):
            task = self.client.ask("get_task", task_id=self.add(**fields))["task"]
            self.assertEqual(task["max_attempts"], known, fields)

    def test_the_timeout_is_stored(self) -> None:
        for timeout in (None, 0.5, 30 * 86_400):
            task = self.client.ask("get_task", task_id=self.add(timeout=timeout))["task"]
            self.assertEqual(task["timeout"], timeout)

    def test_a_task_with_a_delay_or_run_at_is_scheduled(self) -> None:
        for fields in (
            {"delay": 3600},
            {"run_at": "2025-03-01T13:00:00Z"},
            {"run_at": "2025-03-01T08:00:00-05:00"},
        ):
            task = self.client.ask("get_task", task_id=self.add(**fields))["task"]
            self.assertEqual((task["state"], task["status"]), ("scheduled", "Procesando"))
            self.assertEqual(task["run_at"], "2025-03-01T13:00:00Z")
        self.assertEqual(self.stage.broker.hinted, [])

    def test_a_run_at_in_the_past_means_now(self) -> None:
        for fields in ({"delay": 0}, {"run_at": "2025-03-01T12:00:00Z"}, {"run_at": "0001-01-01T00:00:00+23:59"}):
            task = self.client.ask("get_task", task_id=self.add(**fields))["task"]
            self.assertEqual((task["state"], task["run_at"]), ("waiting", "2025-03-01T12:00:00Z"))

    def test_delay_and_run_at_exclude_each_other(self) -> None:
        reply = self.client.ask("new_task", task="x", delay=1, run_at="2025-03-01T13:00:00Z")
        self.assertRefused(reply, "bad_request", "delay")

    def test_tasks_of_kinds_that_nobody_serves_wait_and_cost_no_memory(self) -> None:
        specs = [{"task": "x", "kind": f"kind{n}", "queue": ("tasks", "slow")[n % 2]} for n in range(1000)]
        numbers = self.client.ask("new_tasks", tasks=specs)["task_ids"]
        self.stage.run_maintenance()
        self.assertEqual(set(self.stage.states(*numbers)), {"waiting"})
        self.assertEqual((self.stage.pools.all, self.stage.pools.by_route, self.stage.dispatcher._mine), ({}, {}, {}))

    def test_the_error_for_an_unknown_queue_names_the_known_ones_and_is_short(self) -> None:
        message = self.client.ask("new_task", task="x", queue="\U000e0001" * 10_000)["message"]
        self.assertIn("tasks, slow", message)
        self.assertLess(len(message), 1000)

    def test_the_reply_comes_before_the_events_of_the_task(self) -> None:
        self.client.ask("watch")
        request = self.client.start("new_task", task="x")
        lines = self.client.lines()
        self.assertEqual([line.get("id", line.get("event")) for line in lines], [request, "task"])
        self.assertEqual(lines[0]["task_id"], lines[1]["task"]["id"])

    def test_pipelined_requests_are_stored_together(self) -> None:
        self.stage.draw_ids()
        calls = self.stage.runner.calls
        self.client.send(*({"action": "new_task", "id": f"t{n}", "task": f"text {n}"} for n in range(50)))
        replies = self.client.lines()
        self.assertEqual(self.stage.runner.calls - calls, 1)
        texts = {task.id: task.task for task in self.stage.tasks()}
        for reply in replies:
            self.assertEqual(texts[reply["task_id"]], f"text {reply['id'][1:]}")


class NewTasks(ActionCase):
    def test_tasks_are_created_in_the_order_of_the_request(self) -> None:
        specs = [{"task": "a"}, {"task": "b", "queue": "slow"}, {"task": "c", "kind": "k"}]
        reply = self.client.ask("new_tasks", tasks=specs)
        self.assertEqual((reply["status"], reply["task_ids"]), ("task_created", [1, 2, 3]))
        self.assertEqual([t.task for t in self.stage.tasks(1, 2, 3)], ["a", "b", "c"])

    def test_one_invalid_task_refuses_the_whole_batch(self) -> None:
        for bad, field in (
            ({"task": ""}, "task"),
            ({}, "task"),
            ({"task": "x", "kind": "a b"}, "kind"),
            ({"task": "x", "queue": "other"}, "queue"),
            ({"task": "x", "max_attempts": 0}, "max_attempts"),
            ({"task": "x", "payload": 5}, "payload"),
        ):
            specs = [{"task": "x"}] * 3 + [bad] + [{"task": "x"}] * 3
            reply = self.client.ask("new_tasks", tasks=specs)
            self.assertRefused(reply, "bad_request", f"tasks[3].{field}")
            self.assertIn("tasks[3]", reply["message"])
        specs = [{"task": "x"}, {"task": "x" * 5000}]
        self.assertRefused(self.client.ask("new_tasks", tasks=specs), "too_large", "tasks[1].task")
        self.assertEqual(self.stage.tasks(), [])

    def test_one_to_a_thousand(self) -> None:
        self.assertRefused(self.client.ask("new_tasks", tasks=[]), "bad_request", "tasks")
        self.assertRefused(self.client.ask("new_tasks", tasks=[{"task": "x"}] * 1001), "too_large", "tasks")
        self.assertEqual(len(self.client.ask("new_tasks", tasks=[{"task": "x"}] * 1000)["task_ids"]), 1000)


class Keys(ActionCase):
    """Idempotency keys: a request with a key can be repeated safely."""

    def test_the_same_key_gives_the_same_task(self) -> None:
        first = self.client.ask("new_task", task="t", key="k", payload={"a": 1, "b": 2})
        again = self.client.ask("new_task", task="t", key="k", payload={"b": 2, "a": 1})
        self.assertEqual(again, {**first, "id": again["id"], "duplicate": True})
        self.assertNotIn("duplicate", first)
        self.assertEqual(len(self.client.ask("get_tasks")["tasks"]), 1)

    def test_a_key_holds_after_the_task_has_ended_and_on_another_connection(self) -> None:
        first = self.client.ask("new_task", task="t", key="k")
        self.stage.run(first["task_id"])
        again = self.stage.client().ask("new_task", task="t", key="k")
        self.assertEqual((again["task_id"], again["duplicate"]), (first["task_id"], True))

    def test_a_key_with_another_body_is_a_conflict_and_stores_nothing(self) -> None:
        self.client.ask("new_task", task="t", key="k")
        others: list[dict[str, Any]] = [
            {"task": "u"},
            {"task": "t", "kind": "x"},
            {"task": "t", "payload": {"a": 1}},
            {"task": "t", "max_attempts": 2},
            {"task": "t", "timeout": 5},
            {"task": "t", "delay": 60},
            {"task": "t", "run_at": "2025-03-02T12:00:00Z"},
        ]
        for other in others:
            self.assertRefused(self.client.ask("new_task", key="k", **other), "conflict", "key")
        self.assertEqual(len(self.client.ask("get_tasks")["tasks"]), 1)

    def test_naming_the_default_queue_does_not_change_the_body(self) -> None:
        first = self.client.ask("new_task", task="t", key="k")
        again = self.client.ask("new_task", task="t", key="k", queue="tasks")
        self.assertEqual(again["task_id"], first["task_id"])

    def test_the_same_delay_later_is_the_same_body(self) -> None:
        first = self.client.ask("new_task", task="t", key="k", delay=60)
        self.stage.clock.advance(5)
        again = self.client.ask("new_task", task="t", key="k", delay=60)
        self.assertEqual((again["task_id"], again["duplicate"]), (first["task_id"], True))

    def test_keys_of_different_users_are_independent(self) -> None:
        mine = self.client.ask("new_task", task="t", key="k")
        theirs = self.stage.client("eva").ask("new_task", task="other", key="k")
        self.assertEqual((theirs["ok"], theirs.get("duplicate")), (True, None))
        self.assertNotEqual(mine["task_id"], theirs["task_id"])

    def test_simultaneous_requests_with_the_same_key_create_one_task(self) -> None:
        other = self.stage.client()
        asked = [(c, c.start("new_task", task="t", key="k")) for c in (self.client, other, self.client, other)]
        self.stage.run_pending()
        replies = [client.reply(number) for client, number in asked]
        self.assertEqual(len({r["task_id"] for r in replies}), 1)
        self.assertEqual(sorted(r.get("duplicate", False) for r in replies), [False, True, True, True])

    def test_a_repeated_batch_creates_only_the_missing_tasks(self) -> None:
        specs = [{"task": f"t{n}", "key": f"k{n}"} for n in range(3)]
        [one] = self.client.ask("new_tasks", tasks=specs[1:2])["task_ids"]
        reply = self.client.ask("new_tasks", tasks=[*specs, {"task": "keyless"}, specs[0]])
        ids = reply["task_ids"]
        self.assertEqual((ids[1], ids[4], len(set(ids))), (one, ids[0], 4))
        self.assertEqual(reply["duplicates"], [one, ids[0]])
        self.assertEqual([t.task for t in self.stage.tasks(*ids[:4])], ["t0", "t1", "t2", "keyless"])

    def test_a_batch_with_a_conflict_creates_nothing(self) -> None:
        self.client.ask("new_task", task="t", key="k")
        reply = self.client.ask("new_tasks", tasks=[{"task": "new"}, {"task": "u", "key": "k"}])
        self.assertRefused(reply, "conflict", "key")
        reply = self.client.ask("new_tasks", tasks=[{"task": "a", "key": "x"}, {"task": "b", "key": "x"}])
        self.assertRefused(reply, "conflict", "key")
        self.assertEqual(len(self.client.ask("get_tasks")["tasks"]), 1)

    def test_invalid_keys_are_refused(self) -> None:
        for key in ("", "x" * 129, "a\nb", "a\0b"):
            self.assertRefused(self.client.ask("new_task", task="t", key=key), "bad_request", "key")
        self.assertTrue(self.client.ask("new_task", task="t", key="ñ \N{SNOWMAN}" * 40)["ok"])


class GetTasks(ActionCase):
    def test_without_tasks_the_list_is_empty(self) -> None:
        self.assertEqual(
            self.client.ask("get_tasks"), {"id": 3, "ok": True, "status": "no_tasks", "tasks": [], "cursor": None}
        )

    def test_only_own_tasks_are_listed_newest_first(self) -> None:
        mine = [self.add(task=text) for text in "ab"]
        self.add(self.stage.client("eva"))
        mine.append(self.add(task="c"))
        reply = self.client.ask("get_tasks")
        self.assertEqual((reply["status"], reply["cursor"]), ("success", None))
        self.assertEqual(ids(reply), mine[::-1])
        self.assertEqual(
            reply["tasks"][0],
            {
                "id": 4,
                "task": "c",
                "kind": "simulate",
                "queue": "tasks",
                "status": "Procesando",
                "state": "waiting",
                "attempt": 0,
                "max_attempts": 3,
                "version": 1,
                "created_at": "2025-03-01T12:00:00Z",
                "run_at": "2025-03-01T12:00:00Z",
                "started_at": None,
                "finished_at": None,
                "result": None,
                "error": None,
                "progress": None,
                "note": None,
                "losses": 0,
                "returns": 0,
            },
        )

    def test_pages(self) -> None:
        self.stage.create(count=7)
        found, cursor = [], None
        for _ in range(3):
            reply = self.client.ask("get_tasks", limit=3, cursor=cursor)
            found.append(ids(reply))
            cursor = reply["cursor"]
        self.assertEqual((found, cursor), ([[7, 6, 5], [4, 3, 2], [1]], None))

    def test_the_page_with_the_last_task_has_no_cursor(self) -> None:
        self.stage.create(count=3)
        self.assertIsNone(self.client.ask("get_tasks", limit=3)["cursor"])

    def test_filters(self) -> None:
        a, b, c, d = self.stage.create(count=4)
        self.stage.run(a)
        self.stage.begin(b)
        self.stage.hold(d)
        [waiting] = self.stage.create(kind="other")
        self.client.ask("cancel_task", task_id=c.id)
        for fields, wanted in (
            ({"status": "Procesando"}, [waiting.id, d.id, b.id]),
            ({"status": "Completada"}, [a.id]),
            ({"status": "Cancelada"}, [c.id]),
            ({"status": "Fallida"}, []),
            ({"state": "running"}, [b.id]),
            ({"state": "queued"}, [d.id]),
            ({"state": "waiting"}, [waiting.id]),
            ({"state": "scheduled"}, []),
            ({"kind": "other"}, [waiting.id]),
            ({"kind": "other", "status": "Completada"}, []),
            ({"kind": "nothing"}, []),
        ):
            reply = self.client.ask("get_tasks", **fields)
            self.assertEqual(ids(reply), wanted, fields)
            self.assertEqual(reply["status"], "success" if wanted else "no_tasks")

    def test_invalid_filters_are_refused(self) -> None:
        cases: dict[str, tuple[Any, ...]] = {
            "status": ("procesando", "", "x" * 5000),
            "state": ("Running", "", "done"),
            "kind": ("", "a\0b", "x" * 65, "ñ"),
            "limit": (0, 501, -1, "5", None),
        }
        for field, values in cases.items():
            for value in values:
                reply = self.client.ask("get_tasks", **{field: value})
                self.assertRefused(reply, "bad_request", field)
                self.assertLess(len(reply["message"]), 300)

    def test_invalid_cursors_are_refused(self) -> None:
        encoded = (b"1", b"b", b"b-1", b"b1.5", b"b 1", b"a1", b"b" + b"9" * 30, b"b%d" % 2**63, b"b\xb2")
        cursors = [base64.urlsafe_b64encode(raw).decode() for raw in encoded]
        for cursor in ("", "x", "!!!", "ñ", "\0", "A" * 60_000, "1", *cursors):
            self.assertRefused(self.client.ask("get_tasks", cursor=cursor), "bad_request", "cursor")

    def test_another_users_cursor_shows_none_of_their_tasks(self) -> None:
        eva = self.stage.client("eva")
        for _ in range(3):
            self.add(eva)
        cursor = eva.ask("get_tasks", limit=1)["cursor"]
        self.assertEqual(ids(self.client.ask("get_tasks", cursor=cursor)), [])

    def test_a_page_of_long_texts_ends_early(self) -> None:
        self.stage.create(count=500, task="x" * 4000)
        found: list[int] = []
        cursor, pages = None, 0
        while cursor is not None or not pages:
            reply = self.client.ask("get_tasks", limit=500, cursor=cursor)
            found += ids(reply)
            cursor, pages = reply["cursor"], pages + 1
        self.assertEqual(found, list(range(500, 0, -1)))
        self.assertEqual(pages, 2)


class GetTask(ActionCase):
    def test_all_fields_of_a_task_are_shown(self) -> None:
        task_id = self.add(payload={"seconds": 2})
        self.stage.run(task_id, result='{"x":"' + "y" * 5000 + '"}')
        task = self.client.ask("get_task", task_id=task_id)["task"]
        self.assertEqual((task["status"], task["state"], task["attempt"]), ("Completada", "completed", 1))
        self.assertEqual((task["payload"], task["result"]), ({"seconds": 2}, {"x": "y" * 5000}))
        self.assertEqual(task["finished_at"], "2025-03-01T12:00:00Z")

    def test_failed_attempts_are_shown(self) -> None:
        task_id = self.add()
        self.assertEqual(self.client.ask("get_task", task_id=task_id)["task"]["attempts"], [])
        self.stage.begin(task_id, worker="host:1")
        self.stage.finish(task_id, state=State.WAITING, error="ValueError: no", trace="File x\n")
        self.stage.clock.advance(2)
        self.stage.run_maintenance()
        self.stage.run(task_id)
        task = self.client.ask("get_task", task_id=task_id)["task"]
        self.assertEqual((task["state"], task["attempt"]), ("completed", 2))
        [attempt] = task["attempts"]
        self.assertEqual((attempt["attempt"], attempt["worker"]), (1, "host:1"))
        self.assertEqual((attempt["error"], attempt["traceback"]), ("ValueError: no", "File x\n"))
        self.assertEqual((attempt["started_at"], attempt["ended_at"]), ("2025-03-01T12:00:00Z",) * 2)

    def test_lists_leave_out_payload_and_a_large_result(self) -> None:
        task_id = self.add(payload={"seconds": 2})
        self.stage.run(task_id, result='"' + "y" * 5000 + '"')
        [task] = self.client.ask("get_tasks")["tasks"]
        self.assertEqual((task["result"], task["result_omitted"]), (None, True))
        self.assertNotIn("payload", task)


class CancelTask(ActionCase):
    def test_a_queued_or_waiting_task_is_cancelled(self) -> None:
        queued, waiting = self.add(), self.add()
        self.stage.hold(queued)
        for task_id in (queued, waiting):
            task = self.client.ask("cancel_task", task_id=task_id)["task"]
            self.assertEqual((task["status"], task["state"]), ("Cancelada", "cancelled"))
        self.stage.begin(queued)
        self.assertEqual(self.stage.states(queued), ["cancelled"])

    def test_cancelling_twice_gives_the_same_reply(self) -> None:
        task_id = self.add()
        replies = [self.client.ask("cancel_task", task_id=task_id)["task"] for _ in range(2)]
        self.assertEqual(*replies)

    def test_cancelling_a_task_that_nobody_holds_orders_nothing(self) -> None:
        self.client.ask("cancel_task", task_id=self.add())
        self.client.ask("cancel_task", task_id=self.add(delay=60))
        given_back = self.add()
        self.stage.hold(given_back)
        self.stage.release(given_back)
        self.client.ask("cancel_task", task_id=given_back)
        self.assertEqual(self.stage.broker.ordered, [])

    def test_cancelling_a_task_that_a_worker_holds_orders_it_to_drop_it(self) -> None:
        running, queued = self.add(), self.add()
        self.stage.begin(running)
        self.stage.hold(queued, worker="w2")
        for task_id in (running, queued):
            task = self.client.ask("cancel_task", task_id=task_id)["task"]
            self.assertEqual((task["status"], task["state"]), ("Cancelada", "cancelled"))
        self.assertEqual(self.stage.broker.ordered, ["w", "w2"])

    def test_cancelling_an_ended_task_is_a_conflict(self) -> None:
        ended = self.add()
        self.stage.run(ended)
        reply = self.client.ask("cancel_task", task_id=ended)
        self.assertRefused(reply, "conflict", "task_id")
        self.assertIn("completed", reply["message"])

    def test_the_reply_comes_before_the_event(self) -> None:
        task_id = self.add()
        self.client.ask("watch")
        request = self.client.start("cancel_task", task_id=task_id)
        lines = self.client.lines()
        self.assertEqual([line.get("id", line.get("event")) for line in lines], [request, "task"])

    def test_a_repeated_cancel_sends_no_event(self) -> None:
        task_id = self.add()
        self.client.ask("cancel_task", task_id=task_id)
        self.client.ask("watch")
        self.client.ask("cancel_task", task_id=task_id)
        self.assertEqual(self.client.events(), [])


class RetryTask(ActionCase):
    def test_failed_and_cancelled_tasks_run_again(self) -> None:
        failed, cancelled = self.add(), self.add()
        self.stage.run(failed, state=State.FAILED, error="no")
        self.client.ask("cancel_task", task_id=cancelled)
        for task_id in (failed, cancelled):
            task = self.client.ask("retry_task", task_id=task_id)["task"]
            self.assertEqual((task["status"], task["state"], task["attempt"]), ("Procesando", "waiting", 0))
        self.stage.add_worker()
        self.stage.pass_time()
        self.assertEqual(self.stage.states(failed, cancelled), ["queued"] * 2)
        self.stage.finish(failed)
        task = self.client.ask("get_task", task_id=failed)["task"]
        self.assertEqual((task["state"], task["attempt"], len(task["attempts"])), ("completed", 1, 1))

    def test_a_retried_task_of_a_kind_that_nobody_serves_waits(self) -> None:
        task_id = self.add(kind="sculpt")
        self.client.ask("cancel_task", task_id=task_id)
        self.assertEqual(self.client.ask("retry_task", task_id=task_id)["task"]["state"], "waiting")

    def test_retrying_any_other_task_is_a_conflict(self) -> None:
        waiting, queued, running, completed = self.add(delay=60), self.add(), self.add(), self.add()
        self.stage.begin(running)
        self.stage.run(completed)
        for task_id in (waiting, queued, running, completed):
            self.assertRefused(self.client.ask("retry_task", task_id=task_id), "conflict", "task_id")

    def test_the_reply_comes_before_the_events(self) -> None:
        task_id = self.add()
        self.client.ask("cancel_task", task_id=task_id)
        self.client.ask("watch")
        request = self.client.start("retry_task", task_id=task_id)
        lines = self.client.lines()
        self.assertEqual([line.get("id", line.get("event")) for line in lines], [request, "task"])
        self.assertEqual([line["task"]["state"] for line in lines], ["waiting", "waiting"])
