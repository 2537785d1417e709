"""What open connections may still do after a session has ended, a user was disabled, or a role has changed."""

from __future__ import annotations

from typing import Any

from taskd.api.rights import FRESH, LATEST, SWEEP
from taskd.events.records import EventBatch
from taskd.model.users import Role
from taskd.ports.accounts import Entry
from taskd.protocol.messages import encode
from tests.unit.stage import ADMIN, PASSWORD, SESSION, StageCase, now

IDLE = 7 * 86_400


class RightsCase(StageCase):
    def setUp(self) -> None:
        super().setUp()
        self.client = self.stage.client()
        self.stage.server.rights.start()
        self.addCleanup(self.stage.server.rights.stop)
        self.ana = self.stage.user_id()

    def elsewhere(self, announced: bool = False) -> None:
        """Another process ends all sessions of ana."""
        now(self.stage.other_store.end_sessions(self.ana, None))
        if announced:
            self.stage.broker.announce(encode(EventBatch(self.stage.store.installation, "other", rights=[self.ana])))
            self.stage.run_pending()


class Requests(RightsCase):
    def test_a_session_that_ends_elsewhere_ends_here_at_once(self) -> None:
        self.elsewhere(announced=True)
        self.assertRefused(self.client.ask("whoami"), "auth_required")
        self.assertRefused(self.client.ask("new_task", task="x"), "auth_required")
        self.assertTrue(self.client.ask("login", username="ana", password=PASSWORD)["ok"])
        self.assertTrue(self.client.ask("whoami")["ok"])

    def test_without_news_it_ends_within_ten_seconds(self) -> None:
        self.elsewhere()
        self.stage.pass_time(FRESH, step=0.5)
        self.assertRefused(self.client.ask("new_task", task="x"), "auth_required")

    def test_an_answer_of_the_store_holds_for_some_seconds(self) -> None:
        self.assertTrue(self.client.ask("whoami")["ok"])
        calls = self.stage.runner.calls
        for _ in range(10):
            self.client.ask("whoami")
        self.assertEqual(self.stage.runner.calls, calls)
        self.stage.pass_time(FRESH, step=0.5)
        for _ in range(10):
            self.client.ask("whoami")
        self.assertEqual(self.stage.runner.calls, calls + 1)

    def test_requests_that_wait_for_the_answer_keep_their_order(self) -> None:
        self.stage.pass_time(FRESH, step=0.5)
        self.stage.runner.slow = True
        self.client.start("watch")
        self.client.start("watch")
        self.stage.runner.run_waiting()
        self.client.start("unwatch")
        self.stage.runner.slow = False
        while self.stage.runner.waiting:
            self.stage.runner.run_waiting()
            self.stage.run_pending()
        self.client.lines()
        self.stage.announce(self.stage.create())
        self.assertEqual(self.client.events(), [])

    def test_many_connections_are_asked_about_together(self) -> None:
        clients = [self.stage.client(f"u{n}") for n in range(20)]
        self.stage.pass_time(FRESH, step=0.5)
        calls = self.stage.runner.calls
        for client in clients:
            client.connection.dataReceived(b'{"action":"whoami"}\n')
        self.stage.run_pending()
        self.assertEqual([client.line()["ok"] for client in clients], [True] * 20)
        self.assertEqual(self.stage.runner.calls, calls + 1)

    def test_while_the_store_is_away_the_last_answer_holds_for_a_minute(self) -> None:
        self.stage.runner.away = True
        self.stage.pass_time(LATEST - 1, step=0.5)
        self.assertTrue(self.client.ask("whoami")["ok"])
        self.stage.pass_time(1, step=0.5)
        self.assertRefused(self.client.ask("whoami"), "unavailable")
        self.stage.runner.away = False
        self.assertTrue(self.client.ask("whoami")["ok"])

    def test_a_session_expires_while_its_connection_is_open(self) -> None:
        self.stage.clock.advance(SESSION - 1)
        self.assertTrue(self.client.ask("whoami")["ok"])
        self.stage.clock.advance(1)
        self.assertRefused(self.client.ask("whoami"), "auth_required")

    def test_a_session_that_nobody_uses_ends(self) -> None:
        accounts = self.stage.accounts
        accounts.session_seconds = 30 * 86_400
        token = self.stage.client("eva").ask("login", username="eva", password=PASSWORD)["token"]
        for days in (6, 6):
            self.stage.clock.advance(days * 86_400)
            self.assertTrue(self.stage.connect().ask("login", token=token)["ok"])
        self.stage.clock.advance(IDLE)
        self.assertRefused(self.stage.connect().ask("login", token=token), "auth_required", "token")

    def test_a_disabled_user_is_out_at_once(self) -> None:
        admin = self.stage.admin()
        self.assertTrue(admin.ask("set_disabled", username="ana", disabled=True)["disabled"])
        self.assertRefused(self.client.ask("new_task", task="x"), "auth_required")
        reply = self.client.ask("login", username="ana", password=PASSWORD)
        self.assertRefused(reply, "forbidden", "username")
        self.assertIn("disabled", reply["message"])
        self.assertFalse(admin.ask("set_disabled", username="ana", disabled=False)["disabled"])
        self.assertTrue(self.client.ask("login", username="ana", password=PASSWORD)["ok"])

    def test_a_new_role_counts_at_once(self) -> None:
        eva = self.stage.client("eva")
        task = eva.ask("new_task", task="x")["task_id"]
        admin = self.stage.admin()
        self.assertRefused(self.client.ask("get_task", task_id=task), "not_found", "task_id")
        self.assertEqual(admin.ask("set_role", username="ana", role="operator")["role"], "operator")
        self.assertEqual(self.client.ask("get_task", task_id=task)["task"]["id"], task)
        self.assertEqual(self.client.ask("whoami")["role"], "operator")
        self.assertEqual([t["id"] for t in self.client.ask("get_tasks", username="eva")["tasks"]], [task])
        self.assertRefused(self.client.ask("cancel_task", task_id=task), "not_found", "task_id")
        admin.ask("set_role", username="ana", role="user")
        self.assertRefused(self.client.ask("get_task", task_id=task), "not_found", "task_id")
        self.assertRefused(self.client.ask("get_tasks", username="eva"), "forbidden", "username")

    def test_the_last_admin_stays_one(self) -> None:
        admin = self.stage.admin()
        now(self.stage.other_store.set_role("ana", Role.ADMIN))
        for action, fields in (("set_role", {"role": "user"}), ("set_disabled", {"disabled": True})):
            self.assertRefused(admin.ask(action, username="ana", **fields), "conflict", "username")
        now(self.stage.other_store.set_role(ADMIN, Role.ADMIN))
        self.assertTrue(admin.ask("set_role", username="ana", role="user")["ok"])

    def test_a_login_ends_the_session_that_the_connection_had(self) -> None:
        first = self.client.ask("login", username="ana", password=PASSWORD)["token"]
        self.client.ask("login", username="ana", password=PASSWORD)
        self.assertRefused(self.stage.connect().ask("login", token=first), "auth_required", "token")
        self.assertEqual(len(self.client.ask("sessions")["sessions"]), 1)


class Live(RightsCase):
    """Watches, waits and followed logs."""

    def setUp(self) -> None:
        super().setUp()
        self.task = self.client.ask("new_task", task="x")["task_id"]

    def ended(self) -> list[Any]:
        return [event["event"] for event in self.client.events()]

    def test_a_watch_ends_with_its_session(self) -> None:
        for announced in (True, False):
            self.client.ask("login", username="ana", password=PASSWORD)
            self.client.ask("watch")
            self.elsewhere(announced)
            if not announced:
                self.stage.pass_time(FRESH, step=0.5)
            self.assertEqual(self.ended(), ["session_ended"])
            self.stage.announce(self.stage.tasks(self.task))
            self.assertEqual(self.ended(), [])

    def test_a_wait_is_answered_when_its_session_ends(self) -> None:
        wait = self.client.start("wait", task_ids=[self.task], timeout=600)
        self.elsewhere(announced=True)
        self.assertRefused(self.client.reply(wait), "auth_required")

    def test_a_wait_goes_on_when_the_role_changes(self) -> None:
        """It is for own tasks only, so it does not depend on the role."""
        admin = self.stage.admin()
        admin.ask("set_role", username="ana", role="operator")
        task = self.client.ask("new_task", task="x")["task_id"]
        waiting = self.client.start("wait", task_ids=[task])
        admin.ask("set_role", username="ana", role="user")
        self.stage.run(task)
        self.stage.pass_time(1.0)
        self.assertTrue(self.client.reply(waiting)["done"])

    def test_a_followed_log_ends_with_its_session(self) -> None:
        self.client.ask("get_log", task_id=self.task, follow=True)
        self.elsewhere(announced=True)
        self.assertEqual(self.ended(), ["session_ended"])
        self.stage.begin(self.task)
        self.stage.report(self.task, "a secret")
        self.stage.pass_time(2)
        self.assertEqual(self.ended(), [])

    def test_who_is_no_operator_any_more_follows_no_logs_of_others(self) -> None:
        eva = self.stage.client("eva")
        task = eva.ask("new_task", task="x")["task_id"]
        admin = self.stage.admin()
        admin.ask("set_role", username="ana", role="operator")
        for each in (task, self.task):
            self.assertTrue(self.client.ask("get_log", task_id=each, follow=True)["ok"])
        admin.ask("set_role", username="ana", role="user")
        self.stage.pass_time(1)
        self.assertEqual(self.client.events(), [{"event": "log_end", "task_id": task, "state": None}])
        self.stage.begin(task, self.task)
        self.stage.report(task, "a secret")
        self.stage.report(self.task, "mine")
        self.stage.pass_time(2)
        self.assertEqual([event["task_id"] for event in self.client.events()], [self.task])

    def test_a_watch_ends_when_the_session_expires(self) -> None:
        self.client.ask("watch")
        self.stage.clock.advance(SESSION - SWEEP)
        self.assertEqual(self.ended(), [])
        self.stage.clock.advance(SWEEP)
        self.assertEqual(self.ended(), ["session_ended"])

    def test_a_watch_ends_with_a_gap_when_the_store_is_away_for_long(self) -> None:
        self.client.ask("watch")
        self.stage.runner.away = True
        self.stage.pass_time(LATEST - SWEEP, step=0.5)
        self.assertEqual(self.ended(), [])
        self.stage.pass_time(2 * SWEEP, step=0.5)
        self.assertEqual(self.ended(), ["gap"])

    def test_those_who_get_no_events_are_not_asked_about(self) -> None:
        self.stage.pass_time(2)
        calls = self.stage.runner.calls
        self.stage.pass_time(5 * FRESH, step=0.5)
        self.assertEqual(self.stage.runner.calls, calls)

    def test_a_closed_connection_is_forgotten(self) -> None:
        rights = self.stage.server.rights
        self.assertEqual(rights.connections(self.ana), 1)
        self.client.lose_connection()
        self.assertEqual(rights.connections(self.ana), 0)
        self.assertEqual((rights._live, rights._of_user, rights._session_of), ({}, {}, {}))


class LostDuringLogin(RightsCase):
    def test_a_connection_that_is_lost_during_its_login_leaves_nothing_behind(self) -> None:
        login = {"action": "login", "username": "ana", "password": PASSWORD}
        token = self.client.ask("login", username="ana", password=PASSWORD)["token"]
        for request in (login, {"action": "login", "token": token}):
            other = self.stage.connect("198.51.100.7")
            self.stage.runner.slow = True
            other.send(request)
            other.lose_connection()
            self.stage.runner.slow = False
            for _ in range(5):
                self.stage.runner.run_waiting()
                self.stage.run_pending()
        rights = self.stage.server.rights
        self.assertEqual(rights.connections(self.ana), 1)
        self.assertEqual(self.stage.sql("SELECT count(*) FROM sessions"), [(1,)])


class Audit(RightsCase):
    def test_what_happened_to_an_account_is_in_the_audit(self) -> None:
        admin = self.stage.admin()
        self.client.ask("change_password", password=PASSWORD, new_password="another horse battery")
        admin.ask("set_weight", username="Ana", weight=2)
        admin.ask("set_role", username="ana", role="operator")
        rows = admin.ask("audit", username="ana")["audit"]
        self.assertEqual(
            [(row["action"], row["actor"], row["subject"], row["details"]) for row in rows],
            [
                ("set_role", ADMIN, "ana", "role operator"),
                ("set_weight", ADMIN, "ana", "weight 2"),
                ("change_password", "ana", "ana", None),
                ("login", "ana", "ana", None),
                ("register", "ana", "ana", None),
            ],
        )
        self.assertEqual({row["address"] for row in rows}, {"192.0.2.1"})
        pages = admin.ask("audit", username="ana", limit=4)
        rest = admin.ask("audit", username="ana", limit=4, cursor=pages["cursor"])
        self.assertEqual(pages["audit"] + rest["audit"], rows)
        self.assertIsNone(rest["cursor"])
        self.assertEqual(
            [row["details"] for row in admin.ask("audit", action_name="set_weight")["audit"]], ["weight 2"]
        )

    def test_what_changes_nothing_is_not_in_the_audit(self) -> None:
        admin = self.stage.admin()
        admin.ask("set_weight", username="ana", weight=1)
        admin.ask("set_role", username="ana", role="user")
        self.assertEqual([row["action"] for row in admin.ask("audit")["audit"]], ["login", "login", "register"])

    def test_hostile_texts_come_back_as_they_were(self) -> None:
        now(self.stage.other_store.audit([Entry("login", subject="\x1b[31m\u202e", outcome="forbidden")]))
        rows = self.stage.admin().ask("audit", limit=1, action_name="login")["audit"]
        self.assertEqual(len(rows), 1)
