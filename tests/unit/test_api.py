"""taskd.api without lines: every action through another transport, and what a new action still lacks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from taskd.api.actions.accounts import AccountActions
from taskd.api.actions.live import LiveActions
from taskd.api.actions.logs import LogActions
from taskd.api.actions.server import ServerActions
from taskd.api.actions.tasks import TaskActions
from taskd.api.principal import Principal
from taskd.api.reply import Reply
from taskd.api.subscriptions import Subscriptions
from taskd.cli.texts import help as help_texts
from taskd.model.errors import TaskdError
from taskd.protocol.actions import ACTIONS, Theme
from taskd.protocol.messages import encode
from tests.unit.stage import PASSWORD, StageCase

ROOT = Path(__file__).resolve().parents[2]

THEMES: dict[Theme, type] = {
    Theme.SERVER: ServerActions,
    Theme.ACCOUNTS: AccountActions,
    Theme.TASKS: TaskActions,
    Theme.LOGS: LogActions,
    Theme.LIVE: LiveActions,
}

COMMANDS = {
    "hello": None,
    "ping": None,
    "register": "register",
    "login": "login",
    "logout": "logout",
    "whoami": "whoami",
    "new_task": "add",
    "new_tasks": "add",
    "get_tasks": "list",
    "get_task": "show",
    "cancel_task": "cancel",
    "retry_task": "retry",
    "explain": "explain",
    "get_log": "log",
    "kinds": "kinds",
    "watch": "watch",
    "unwatch": None,
    "wait": "wait",
}
"""The command of ``taskclient`` that sends an action; None for one that no command is named after."""


class Direct:
    """A transport in memory: requests are calls, replies are dicts, events are decoded as they come."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.principal = Principal(address="memory")
        self.subscriptions = Subscriptions(self._send, nullcontext())
        self.events: list[dict[str, Any]] = []

    def _send(self, events: Sequence[bytes]) -> None:
        self.events += [msgspec.json.decode(event) for event in events]

    def start(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """The replies of a request, none while it is under way."""
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
    """The same actions over a transport that knows no lines."""

    def setUp(self) -> None:
        super().setUp()
        self.direct = Direct(self.stage.api)
        self.used: set[str] = set()

    def ask(self, name: str, **fields: Any) -> dict[str, Any]:
        """The reply to a request."""
        self.used.add(name)
        replies = self.direct.start(name, **fields)
        self.stage.settle()
        [reply] = replies
        return reply

    def test_every_action(self) -> None:
        ask = self.ask
        self.assertEqual(ask("hello")["server"], "taskd")
        self.assertEqual(ask("ping"), {"status": "success"})
        self.assertEqual(ask("new_task", task="x")["code"], "auth_required")
        self.assertEqual(ask("register", username="ana", password=PASSWORD)["username"], "ana")
        self.assertEqual(ask("login", username="ana", password=PASSWORD)["status"], "logged_in")
        self.assertEqual((self.direct.principal.username, self.direct.principal.address), ("ana", "memory"))
        self.assertEqual(ask("whoami")["user_id"], self.direct.principal.user_id)
        self.assertEqual(ask("watch"), {"status": "success", "tasks": []})
        first = ask("new_task", task="one", payload={"seconds": 0})["task_id"]
        second, third = ask("new_tasks", tasks=[{"task": "two"}, {"task": "three"}])["task_ids"]
        self.assertEqual([event["task"]["id"] for event in self.direct.events], [first, second, third])
        self.assertEqual([task["id"] for task in ask("get_tasks")["tasks"]], [third, second, first])
        self.assertEqual(ask("get_task", task_id=first)["task"]["payload"], {"seconds": 0})
        self.assertEqual(ask("explain", task_id=first)["code"], "no_worker")
        self.assertEqual(ask("kinds")["kinds"], [])
        self.stage.claim(first)
        waiting = self.direct.start("wait", task_ids=[first])
        self.stage.settle()
        self.assertEqual(waiting, [])
        self.stage.say(first, "a line")
        self.assertEqual([line["text"] for line in ask("get_log", task_id=first, follow=True)["lines"]], ["a line"])
        self.stage.finish(first)
        self.assertTrue(waiting[0]["done"])
        self.stage.clock.advance(1)
        self.assertIn("log_end", [event["event"] for event in self.direct.events])
        self.assertEqual(ask("cancel_task", task_id=second)["task"]["state"], "cancelled")
        self.assertEqual(ask("retry_task", task_id=second)["task"]["state"], "waiting")
        self.assertEqual(ask("cancel_task", task_id=first)["code"], "conflict")
        self.assertEqual(ask("unwatch"), {"status": "success"})
        self.direct.events.clear()
        self.assertEqual(ask("logout"), {"status": "success"})
        self.assertEqual(self.direct.principal, Principal(address="memory"))
        self.assertEqual(self.direct.events, [])
        self.assertEqual(self.used | {"wait"}, set(ACTIONS))

    def test_a_server_that_stops_refuses_what_comes(self) -> None:
        self.stage.api.drain()
        self.assertEqual(self.ask("ping")["code"], "draining")

    def test_whatever_fails_is_an_error_with_a_code(self) -> None:
        self.ask("register", username="ana", password=PASSWORD)
        self.ask("login", username="ana", password=PASSWORD)
        self.stage.runner.broken = True
        self.assertEqual(self.ask("get_tasks")["code"], "internal")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class TestANewAction:
    """Fails for each thing that an action of the registry still lacks, and for what belongs to no action."""

    def test_its_method_stands_in_the_class_of_its_theme(self) -> None:
        for theme, actions in THEMES.items():
            methods = {name for name in vars(actions) if not name.startswith("_")}
            assert methods == {action.name for action in ACTIONS.values() if action.theme is theme}

    def test_its_section_stands_in_the_protocol_document(self) -> None:
        page = (ROOT / "docs" / "protocol.md").read_text()
        sections = set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
        assert sorted(set(ACTIONS) - sections) == []

    def test_its_command_is_known(self) -> None:
        assert set(COMMANDS) == set(ACTIONS)
        for command in set(COMMANDS.values()) - {None}:
            assert help_texts.summary(str(command), "en") and help_texts.summary(str(command), "es")

    def test_its_texts_are_there_in_both_languages(self) -> None:
        for action in ACTIONS.values():
            assert action.summary.endswith(".") and action.summary_es.endswith("."), action.name
            assert action.summary != action.summary_es
