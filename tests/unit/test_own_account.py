"""What users do with their own accounts: passwords, sessions, API tokens, invitations, and the end of an account."""

from __future__ import annotations

from typing import Any

from taskd.model.users import Registration
from taskd.ports.accounts import MAX_SESSIONS
from tests.unit.stage import ADMIN, PASSWORD, Client, StageCase

NEW = "another horse battery"


class AccountCase(StageCase):
    def setUp(self) -> None:
        super().setUp()
        self.client = self.stage.client()
        self.hosts = iter(range(1, 255))

    def login(self, password: str = PASSWORD, name: str = "ana") -> dict[str, Any]:
        """A login from an address of its own: after a wrong password, an address has to wait."""
        return self.stage.connect(f"198.51.100.{next(self.hosts)}").ask("login", username=name, password=password)

    def with_token(self, **fields: Any) -> Client:
        """A connection that is logged in with a new API token."""
        token = self.client.ask("new_token", name="n", **fields)["token"]
        client = self.stage.connect()
        self.assertTrue(client.ask("login", token=token)["ok"])
        return client


class Passwords(AccountCase):
    def test_a_new_password_ends_all_other_sessions_and_tokens(self) -> None:
        other, program = self.stage.client(), self.with_token()
        self.assertTrue(self.client.ask("change_password", password=PASSWORD, new_password=NEW)["ok"])
        self.assertTrue(self.client.ask("whoami")["ok"])
        for each in (other, program):
            self.assertRefused(each.ask("whoami"), "auth_required")
        self.assertEqual(self.login()["status"], "wrong_credentials")
        self.assertEqual(self.login(NEW)["status"], "logged_in")

    def test_the_present_password_is_needed(self) -> None:
        reply = self.client.ask("change_password", password="wrong horse", new_password=NEW)
        self.assertRefused(reply, "forbidden", "password")
        self.assertEqual(self.login()["status"], "logged_in")

    def test_a_bad_new_password_is_refused(self) -> None:
        for new in ("short", "x" * 73, "abcd\0efgh"):
            reply = self.client.ask("change_password", password=PASSWORD, new_password=new)
            self.assertRefused(reply, "bad_request", "new_password")

    def test_an_admin_never_chooses_a_password(self) -> None:
        admin = self.stage.admin()
        reply = admin.ask("reset_password", username="Ana")
        code = reply["code"]
        self.assertGreaterEqual(len(code.replace("-", "")), 26)
        self.assertEqual((reply["username"], reply["expires_in"]), ("ana", 86_400))
        self.assertRefused(self.client.ask("whoami"), "auth_required")
        self.assertEqual(self.login()["status"], "wrong_credentials")
        stranger = self.stage.connect()
        wrong = stranger.ask("set_password", username="ana", code="AAAA-" + code[5:], new_password=NEW)
        nobody = stranger.ask("set_password", username="nobody", code=code, new_password=NEW)
        self.assertEqual({**wrong, "id": 0}, {**nobody, "id": 0})
        self.assertRefused(wrong, "forbidden", "code")
        self.stage.pass_time(1.1)
        typed = code.lower().replace("-", " ")
        self.assertTrue(stranger.ask("set_password", username="ANA", code=typed, new_password=NEW)["ok"])
        self.assertEqual(self.login(NEW)["status"], "logged_in")
        again = stranger.ask("set_password", username="ana", code=code, new_password="yet another horse")
        self.assertRefused(again, "forbidden", "code")
        self.assertEqual(self.login(NEW)["status"], "logged_in")

    def test_a_code_expires(self) -> None:
        code = self.stage.admin().ask("reset_password", username="ana")["code"]
        self.stage.clock.advance(86_400)
        reply = self.stage.connect().ask("set_password", username="ana", code=code, new_password=NEW)
        self.assertRefused(reply, "forbidden", "code")


class Sessions(AccountCase):
    def test_sessions_are_listed_and_ended(self) -> None:
        other = self.stage.client()
        [newest, first] = self.client.ask("sessions")["sessions"]
        self.assertEqual((newest["current"], first["current"]), (False, True))
        self.assertEqual((first["name"], first["scopes"], first["address"]), (None, None, "192.0.2.1"))
        self.assertTrue(self.client.ask("end_session", session_id=newest["id"])["ok"])
        self.assertRefused(other.ask("whoami"), "auth_required")
        self.assertRefused(self.client.ask("end_session", session_id=newest["id"]), "not_found", "session_id")
        for number in (0, -1, 2**63, 10**30):
            self.assertRefused(self.client.ask("end_session", session_id=number), "not_found", "session_id")

    def test_all_are_ended(self) -> None:
        other = self.stage.client()
        self.assertEqual(self.client.ask("end_sessions")["ended"], 1)
        self.assertRefused(other.ask("whoami"), "auth_required")
        self.assertEqual(self.client.ask("end_sessions", keep_this=False)["ended"], 1)
        self.assertRefused(self.client.ask("whoami"), "auth_required")

    def test_the_oldest_goes_when_there_are_too_many(self) -> None:
        for _ in range(MAX_SESSIONS):
            self.assertEqual(self.login()["status"], "logged_in")
        self.stage.pass_time(11, step=1)
        self.assertRefused(self.client.ask("whoami"), "auth_required")
        self.assertEqual(self.stage.sql("SELECT count(*) FROM sessions"), [(MAX_SESSIONS,)])


class Tokens(AccountCase):
    def test_a_token_is_shown_once_and_stored_hashed(self) -> None:
        reply = self.client.ask("new_token", name="nightly", days=30)
        token = reply["token"]
        self.assertRegex(token, r"^taskd_[\w-]{43}$")
        [listed, _] = self.client.ask("sessions")["sessions"]
        self.assertEqual(listed["id"], reply["session_id"])
        self.assertEqual((listed["name"], listed["ending"]), ("nightly", token[-8:]))
        self.assertEqual(listed["scopes"], ["tasks:read", "tasks:write"])
        self.assertNotIn(token, str(self.stage.sql("SELECT * FROM sessions")))

    def test_its_scopes(self) -> None:
        task = self.client.ask("new_task", task="x")["task_id"]
        reader = self.with_token(scopes=["tasks:read"])
        self.assertTrue(reader.ask("get_task", task_id=task)["ok"])
        for action, fields in (("new_task", {"task": "x"}), ("cancel_task", {"task_id": task})):
            self.assertRefused(reader.ask(action, **fields), "forbidden")
        writer = self.with_token(scopes=["tasks:write"])
        self.assertTrue(writer.ask("new_task", task="x")["ok"])
        self.assertRefused(writer.ask("get_tasks"), "forbidden")
        submits = self.with_token(scopes=["submit:simulate", "submit:other"])
        self.assertTrue(submits.ask("new_tasks", tasks=[{"task": "x"}, {"task": "y", "kind": "other"}])["ok"])
        for tasks in ([{"task": "x", "kind": "thumbnail"}], [{"task": "x"}, {"task": "y", "kind": "thumbnail"}]):
            reply = submits.ask("new_tasks", tasks=tasks)
            self.assertRefused(reply, "forbidden")
            self.assertIn("submit:thumbnail", reply["message"])
        self.assertRefused(submits.ask("cancel_task", task_id=task), "forbidden")

    def test_no_token_reaches_the_account(self) -> None:
        program = self.with_token()
        for action, fields in (
            ("change_password", {"password": PASSWORD, "new_password": NEW}),
            ("new_token", {"name": "x"}),
            ("sessions", {}),
            ("end_sessions", {}),
            ("delete_account", {"password": PASSWORD}),
        ):
            self.assertRefused(program.ask(action, **fields), "forbidden")

    def test_logout_leaves_the_token_valid(self) -> None:
        token = self.client.ask("new_token", name="n")["token"]
        program = self.stage.connect()
        for _ in range(2):
            self.assertTrue(program.ask("login", token=token)["ok"])
            self.assertTrue(program.ask("logout")["ok"])
        self.assertTrue(self.client.ask("whoami")["ok"])

    def test_it_expires_and_does_not_end_by_idling(self) -> None:
        token = self.client.ask("new_token", name="n", days=20)["token"]
        self.stage.clock.advance(19 * 86_400)
        self.assertTrue(self.stage.connect().ask("login", token=token)["ok"])
        self.stage.clock.advance(86_400)
        self.assertRefused(self.stage.connect().ask("login", token=token), "auth_required", "token")

    def test_bad_tokens_are_refused(self) -> None:
        for fields, field in (
            ({"name": ""}, "name"),
            ({"name": "x" * 65}, "name"),
            ({"name": "a\nb"}, "name"),
            ({"name": "n", "days": 366}, "days"),
            ({"name": "n", "days": 0}, "days"),
            ({"name": "n", "scopes": []}, "scopes"),
            ({"name": "n", "scopes": ["everything"]}, "scopes"),
            ({"name": "n", "scopes": ["submit:"]}, "scopes"),
            ({"name": "n", "scopes": ["submit:a b"]}, "scopes"),
        ):
            self.assertRefused(self.client.ask("new_token", **fields), "bad_request", field)


class Invitations(AccountCase):
    def setUp(self) -> None:
        super().setUp()
        self.admin = self.stage.admin()
        self.stage.accounts.registration = Registration.INVITATION

    def register(self, name: str, **fields: Any) -> dict[str, Any]:
        return self.stage.connect().ask("register", username=name, password=PASSWORD, **fields)

    def test_an_invitation_has_its_uses(self) -> None:
        reply = self.admin.ask("invite", uses=2)
        invitation = reply["invitation"]
        self.assertNotIn(invitation, str(self.stage.sql("SELECT * FROM invitations")))
        self.assertRefused(self.register("eva"), "forbidden", "invitation")
        self.assertRefused(self.register("eva", invitation="wrong"), "forbidden", "invitation")
        self.assertTrue(self.register("eva", invitation=invitation)["ok"])
        self.assertEqual(self.register("eva", invitation=invitation)["status"], "in_use")
        [listed] = self.admin.ask("invitations")["invitations"]
        self.assertEqual((listed["id"], listed["uses_left"]), (reply["invitation_id"], 1))
        self.assertEqual(listed["created_by"], ADMIN)
        self.assertTrue(self.register("ben", invitation=invitation)["ok"])
        self.assertRefused(self.register("cleo", invitation=invitation), "forbidden", "invitation")

    def test_without_one_nobody_learns_which_names_there_are(self) -> None:
        taken, free = self.register("ana", invitation="wrong"), self.register("nobody", invitation="wrong")
        self.assertEqual({**taken, "id": 0}, {**free, "id": 0})

    def test_it_expires_and_can_be_withdrawn(self) -> None:
        first, second = self.admin.ask("invite", days=1), self.admin.ask("invite", days=2)
        self.stage.clock.advance(86_400)
        self.assertRefused(self.register("eva", invitation=first["invitation"]), "forbidden", "invitation")
        admin = self.stage.connect()
        admin.ask("login", username=ADMIN, password=PASSWORD)
        self.assertTrue(admin.ask("end_invitation", invitation_id=second["invitation_id"])["ok"])
        self.assertRefused(self.register("eva", invitation=second["invitation"]), "forbidden", "invitation")

    def test_registration_may_be_closed(self) -> None:
        self.stage.accounts.registration = Registration.CLOSED
        invitation = self.admin.ask("invite")["invitation"]
        self.assertRefused(self.register("eva", invitation=invitation), "forbidden")


class Deleting(AccountCase):
    def test_an_account_is_deleted(self) -> None:
        ana = self.stage.user_id()
        task = self.client.ask("new_task", task="x")["task_id"]
        other = self.stage.client()
        self.assertRefused(self.client.ask("delete_account", password="wrong horse"), "forbidden", "password")
        self.stage.pass_time(1.1)
        self.assertTrue(self.client.ask("delete_account", password=PASSWORD)["ok"])
        for client in (self.client, other):
            self.assertRefused(client.ask("whoami"), "auth_required")
        self.assertEqual(self.login()["status"], "wrong_credentials")
        again = self.stage.client()
        self.assertNotEqual(self.stage.user_id(), ana)
        self.assertRefused(again.ask("get_task", task_id=task), "not_found", "task_id")

    def test_admins_see_users_page_by_page(self) -> None:
        for name in ("eva", "Zoé", "ben"):
            self.stage.client(name)
        admin = self.stage.admin()
        names, cursor = [], None
        while True:
            page = admin.ask("users", limit=2, **({"cursor": cursor} if cursor else {}))
            names += [user["username"] for user in page["users"]]
            cursor = page["cursor"]
            if cursor is None:
                break
        self.assertEqual(names, ["ana", "ben", "eva", ADMIN, "Zoé"])
        [row] = [user for user in admin.ask("users")["users"] if user["username"] == ADMIN]
        self.assertEqual((row["role"], row["disabled"], row["weight"], row["has_code"]), ("admin", False, 1.0, False))
        self.assertRefused(admin.ask("users", cursor="x"), "bad_request", "cursor")
