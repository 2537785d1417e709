"""taskd.api over a transport that is not the line protocol, and what every action of the registry must have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pyotp
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from taskd.api.actions.accounts import AccountActions
from taskd.api.actions.admin import AdminActions
from taskd.api.actions.live import LiveActions
from taskd.api.actions.logs import LogActions
from taskd.api.actions.overview import OverviewActions
from taskd.api.actions.server import ServerActions
from taskd.api.actions.tasks import TaskActions
from taskd.api.principal import Principal
from taskd.api.reply import Reply
from taskd.api.subscriptions import Subscriptions
from taskd.cli.texts import help as help_texts
from taskd.model.errors import TaskdError
from taskd.protocol.actions import ACTIONS, Theme
from taskd.protocol.messages import encode
from tests.unit.stage import ADMIN, PASSWORD, StageCase

ROOT = Path(__file__).resolve().parents[2]

THEMES: dict[Theme, type] = {
    Theme.SERVER: ServerActions,
    Theme.ACCOUNTS: AccountActions,
    Theme.ADMIN: AdminActions,
    Theme.TASKS: TaskActions,
    Theme.LOGS: LogActions,
    Theme.LIVE: LiveActions,
    Theme.OVERVIEW: OverviewActions,
}

COMMANDS = {
    "hello": None,
    "ping": None,
    "health": None,
    "register": "register",
    "login": "login",
    "logout": "logout",
    "whoami": "whoami",
    "set_weight": "weight",
    "change_password": "passwd",
    "set_password": "passwd",
    "totp_begin": "totp",
    "totp_confirm": "totp",
    "totp_off": "totp",
    "delete_account": "delete-account",
    "sessions": "sessions",
    "end_session": "sessions",
    "end_sessions": "sessions",
    "new_token": "token",
    "users": "users",
    "set_role": "users",
    "set_disabled": "users",
    "reset_password": "users",
    "reset_totp": "users",
    "end_user_sessions": "users",
    "invite": "invite",
    "invitations": "invitations",
    "end_invitation": "invitations",
    "audit": "audit",
    "quota": "quota",
    "set_quota": "quota",
    "new_task": "add",
    "new_tasks": "add",
    "get_tasks": "list",
    "get_task": "show",
    "cancel_task": "cancel",
    "retry_task": "retry",
    "explain": "explain",
    "get_log": "log",
    "kinds": "kinds",
    "overview": "overview",
    "watch": "watch",
    "unwatch": None,
    "wait": "wait",
}
"""The command of ``taskclient`` for an action; None if there is none."""


class InMemoryTransport:
    """A transport in memory: requests are calls, replies are dicts, events are decoded as they come."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.principal = Principal(address="memory")
        self.subscriptions = Subscriptions(self._send, nullcontext())
        self.events: list[dict[str, Any]] = []

    def _send(self, events: Sequence[bytes]) -> None:
        self.events += [msgspec.json.decode(event) for event in events]

    def start(self, name: str, /, **fields: Any) -> list[dict[str, Any]]:
        """Send a request. Returns a list to which its reply is added."""
        action = ACTIONS[name]
        request = msgspec.json.decode(encode(fields), type=action.request)
        replies: list[dict[str, Any]] = []
        done = Deferred.fromCoroutine(self._api.perform(self.principal, self.subscriptions, action, request))
        done.addCallbacks(self._answer, self._refuse, callbackArgs=(replies,), errbackArgs=(replies,))
        return replies

    def _answer(self, reply: Reply, replies: list[dict[str, Any]]) -> None:
        self.principal = reply.principal or self.principal
        replies.append(msgspec.json.decode(encode(reply.fields)))
        if reply.after_sent is not None:
            reply.after_sent()

    def _refuse(self, failure: Failure, replies: list[dict[str, Any]]) -> None:
        assert isinstance(failure.value, TaskdError)
        replies.append({"status": failure.value.status, "code": failure.value.code})


class EveryAction(StageCase):
    """Every action works over another transport."""

    def setUp(self) -> None:
        super().setUp()
        self.transport = InMemoryTransport(self.stage.api)
        self.used: set[str] = set()

    def ask(self, name: str, /, **fields: Any) -> dict[str, Any]:
        """The reply to a request."""
        self.used.add(name)
        replies = self.transport.start(name, **fields)
        self.stage.run_pending()
        [reply] = replies
        return reply

    def test_every_action(self) -> None:
        ask = self.ask
        self.assertEqual(ask("hello")["server"], "taskd")
        self.assertEqual(ask("ping"), {"status": "success"})
        self.assertEqual(ask("health")["code"], "forbidden")
        self.assertEqual(ask("new_task", task="x")["code"], "auth_required")
        self.assertEqual(ask("register", username="ana", password=PASSWORD)["username"], "ana")
        self.assertEqual(ask("login", username="ana", password=PASSWORD)["status"], "logged_in")
        self.assertEqual((self.transport.principal.username, self.transport.principal.address), ("ana", "memory"))
        self.assertEqual(ask("whoami")["user_id"], self.transport.principal.user_id)
        self.assertEqual(ask("set_weight", username="ana", weight=2)["code"], "forbidden")
        self.assertEqual(ask("set_quota", username="ana", open=2)["code"], "forbidden")
        self.assertEqual(ask("watch"), {"status": "success", "tasks": []})
        first = ask("new_task", task="one", payload={"seconds": 0})["task_id"]
        second, third = ask("new_tasks", tasks=[{"task": "two"}, {"task": "three"}])["task_ids"]
        self.assertEqual([event["task"]["id"] for event in self.transport.events], [first, second, third])
        self.assertEqual([task["id"] for task in ask("get_tasks")["tasks"]], [third, second, first])
        self.assertEqual(ask("get_task", task_id=first)["task"]["payload"], {"seconds": 0})
        self.assertEqual(ask("explain", task_id=first)["code"], "no_worker")
        self.assertEqual(ask("kinds")["kinds"], [])
        self.assertEqual(ask("quota")["open"]["used"], 3)
        self.assertEqual([route["waiting"] for route in ask("overview")["routes"]], [3])
        self.stage.begin(first)
        waiting = self.transport.start("wait", task_ids=[first])
        self.stage.run_pending()
        self.assertEqual(waiting, [])
        self.stage.report(first, "a line")
        self.assertEqual([line["text"] for line in ask("get_log", task_id=first, follow=True)["lines"]], ["a line"])
        self.stage.finish(first)
        self.assertTrue(waiting[0]["done"])
        self.stage.clock.advance(1)
        self.assertIn("log_end", [event["event"] for event in self.transport.events])
        self.assertEqual(ask("cancel_task", task_id=second)["task"]["state"], "cancelled")
        self.assertEqual(ask("retry_task", task_id=second)["task"]["state"], "waiting")
        self.assertEqual(ask("cancel_task", task_id=first)["code"], "conflict")
        self.assertEqual(ask("unwatch"), {"status": "success"})
        self.transport.events.clear()
        self.assertEqual(ask("logout"), {"status": "success"})
        self.assertEqual(self.transport.principal, Principal(address="memory"))
        self.assertEqual(self.transport.events, [])
        self.ask_about_accounts()
        self.assertEqual(self.used | {"wait"}, set(ACTIONS))

    def ask_about_accounts(self) -> None:
        """The actions of a user on the own account, and those of admins."""
        ask, new = self.ask, "another horse battery"
        self.stage.admin()
        ask("login", username="ana", password=PASSWORD)
        token = ask("new_token", name="nightly", scopes=["tasks:read"])
        self.assertEqual([each["name"] for each in ask("sessions")["sessions"]], ["nightly", None])
        self.assertEqual(ask("end_session", session_id=token["session_id"]), {"status": "success"})
        self.assertEqual(ask("end_sessions"), {"status": "success", "ended": 0})
        self.assertEqual(ask("change_password", password=PASSWORD, new_password=new), {"status": "success"})
        totp = pyotp.TOTP(ask("totp_begin", password=new)["secret"])
        self.assertEqual(len(ask("totp_confirm", code=totp.at(self.stage.now()))["recovery_codes"]), 10)
        later = totp.at(self.stage.now(), counter_offset=1)
        self.assertEqual(ask("totp_off", password=new, code=later), {"status": "success"})
        ask("login", username=ADMIN, password=PASSWORD)
        self.assertEqual(ask("reset_totp", username="ana")["username"], "ana")
        self.assertEqual([user["username"] for user in ask("users")["users"]], ["ana", ADMIN])
        self.assertEqual(ask("set_role", username="ana", role="operator")["role"], "operator")
        self.assertTrue(ask("set_disabled", username="ana", disabled=True)["disabled"])
        self.assertFalse(ask("set_disabled", username="ana", disabled=False)["disabled"])
        code = ask("reset_password", username="ana")["code"]
        self.assertEqual(ask("end_user_sessions", username="ana")["ended"], 0)
        invitation = ask("invite", uses=2)["invitation_id"]
        self.assertEqual([each["uses_left"] for each in ask("invitations")["invitations"]], [2])
        self.assertEqual(ask("end_invitation", invitation_id=invitation), {"status": "success"})
        self.assertEqual(ask("audit", limit=1)["audit"][0]["action"], "end_invitation")
        self.assertEqual(ask("set_password", username="ana", code=code, new_password=PASSWORD), {"status": "success"})
        ask("login", username="ana", password=PASSWORD)
        self.assertEqual(self.transport.principal.role.value, "operator")
        self.assertEqual(ask("delete_account", password=PASSWORD), {"status": "success"})
        self.assertEqual(self.transport.principal, Principal(address="memory"))

    def test_health_is_for_clients_on_the_same_machine(self) -> None:
        for address, local in (
            ("127.0.0.1", True),
            ("127.8.0.1", True),
            ("::1", True),
            ("::ffff:127.0.0.1", True),
            (None, True),
            ("10.0.0.1", False),
            ("::ffff:10.0.0.1", False),
            ("fe80::1%eth0", False),
            ("memory", False),
        ):
            self.transport.principal = Principal(address=address)
            reply = self.ask("health")
            self.assertEqual(reply.get("code"), None if local else "forbidden", address)

    def test_a_draining_server_refuses_new_requests(self) -> None:
        self.stage.api.drain()
        self.assertEqual(self.ask("ping")["code"], "draining")

    def test_a_defect_becomes_an_internal_error(self) -> None:
        self.ask("register", username="ana", password=PASSWORD)
        self.ask("login", username="ana", password=PASSWORD)
        self.stage.runner.broken = True
        self.assertEqual(self.ask("get_tasks")["code"], "internal")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class TestANewAction:
    """Every action has its method, section, command and texts; and there is none without an action."""

    def test_its_method_is_in_the_class_of_its_theme(self) -> None:
        for theme, actions in THEMES.items():
            methods = {name for name in vars(actions) if not name.startswith("_")}
            assert methods == {action.name for action in ACTIONS.values() if action.theme is theme}

    def test_the_protocol_document_has_its_section(self) -> None:
        page = (ROOT / "docs" / "protocol.md").read_text()
        sections = set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
        assert sorted(set(ACTIONS) - sections) == []

    def test_its_command_has_a_help_text_in_both_languages(self) -> None:
        assert set(COMMANDS) == set(ACTIONS)
        for command in set(COMMANDS.values()) - {None}:
            assert help_texts.summary(str(command), "en") and help_texts.summary(str(command), "es")

    def test_it_has_a_summary_in_both_languages(self) -> None:
        for action in ACTIONS.values():
            assert action.summary.endswith(".") and action.summary_es.endswith("."), action.name
            assert action.summary != action.summary_es
