"""Checks docs/protocol.md: runs every example against a real embedded server, and compares its tables with the code."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pyotp
import pytest

from taskd.api.subscriptions import SESSION_ENDED
from taskd.events import watch_hub
from taskd.events.records import log_event, progress_event, returned_event
from taskd.model import errors
from taskd.model.states import SHOWN_STATES, STATUSES, State
from taskd.model.tasks import Task
from taskd.protocol import docs
from taskd.protocol.actions import ACTIONS, Scope
from taskd.protocol.views import AttemptView, TaskView
from taskd.scheduling import estimate, explain
from taskd.scheduling.served_kinds import ServedKind
from tests.daemons import Daemon, LineClient, free_port

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "docs" / "protocol.md"
PAGE = PATH.read_text("utf-8")

KINDS = {
    "token": "token",
    "cursor": "cursor",
    "user_id": "user",
    "task_id": "task",
    "task_ids": "task",
    "duplicates": "task",
    "session_id": "session",
    "invitation_id": "invitation",
    "invitation": "invitation text",
    "one_time_code": "one-time code",
    "audit_id": "audit",
    "secret": "secret",
    "uri": "secret as URI",
    "recovery_codes": "recovery code",
}
"""Fields whose values differ from run to run, but mean the same wherever they occur, and what they mean. See
:func:`_key` for those whose name has several meanings."""

TIME_KEYS = {
    "created_at",
    "run_at",
    "started_at",
    "finished_at",
    "ended_at",
    "since",
    "at",
    "used_at",
    "expires_at",
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
MEASURED_KEYS = {"rate", "rate_seconds", "oldest", "used"}

WRONG_CODE = "000000"

MESSAGE_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
"""The form of a time in a message for people."""

[HANDLERS] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
"""The source of the handler module that the page shows."""


class Block(NamedTuple):
    """One example. ``number`` is its line on the page. ``user`` is logged in before it begins, or empty. ``lines`` are
    pairs of a mark, ``>`` or ``<``, and a message."""

    number: int
    user: str
    lines: list[tuple[str, str]]


def blocks(page: str) -> Iterator[Block]:
    """The examples of a page. Raises ValueError for a line that is neither a message nor its continuation."""
    for found in re.finditer(r"^```taskd ?(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        lines: list[tuple[str, str]] = []
        for line in found[2].splitlines():
            if line[:2] in ("> ", "< "):
                lines.append((line[0], line[2:]))
            elif line.startswith("  ") and lines:
                lines[-1] = (lines[-1][0], f"{lines[-1][1]} {line[2:]}")
            else:
                raise ValueError(f"in an example: {line!r}")
        yield Block(page.count("\n", 0, found.start()) + 1, found[1], lines)


BLOCKS = list(blocks(PAGE))


def _key(name: str, fields: Mapping[str, Any]) -> str:
    """What a field of an object is called in KINDS: an ``id`` may be a task's or another number, and a ``code`` may be
    a one-time code."""
    if name == "id":
        for key, others in (
            ("task_id", {"version", "state"}),
            ("session_id", {"current"}),
            ("invitation_id", {"uses_left"}),
            ("audit_id", {"outcome"}),
        ):
            if others <= fields.keys():
                return key
    if name == "code" and ("expires_in" in fields or fields.get("action") == "set_password"):
        return "one_time_code"
    if name == "code" and fields.get("action") in ("login", "totp_confirm", "totp_off"):
        return "totp_code"
    return name


class Bindings:
    """Which numbers, tokens and codes of the server stand for those on the page. They hold for the whole page."""

    def __init__(self) -> None:
        self._real: dict[tuple[str, object], object] = {}
        self._shown: dict[tuple[str, object], object] = {}
        self._secret = ""
        self._steps = itertools.count(-1)

    def bind(self, kind: str, shown: object, real: object) -> None:
        """Note that ``real`` stands for ``shown``. Raises AssertionError if one of them is bound to another value."""
        assert type(shown) is type(real), f"{kind}: {real!r} and {shown!r} have different types"
        known = self._real.setdefault((kind, shown), real), self._shown.setdefault((kind, real), shown)
        assert known == (real, shown), f"{kind} {shown!r} is {known[0]!r}, and {real!r} is {known[1]!r}"
        if kind == "secret":
            self._secret = str(real)

    def request(self, value: Any, key: str = "") -> Any:
        """A message of the page with the server's values in place of those that the page shows."""
        if isinstance(value, dict):
            return {k: self.request(v, _key(k, value)) for k, v in value.items()}
        if isinstance(value, list):
            return [self.request(v, key) for v in value]
        if key == "totp_code":
            return self._totp_code(value)
        return self._real.get((KINDS[key], value), value) if key in KINDS else value

    def _totp_code(self, shown: str) -> object:
        """The recovery code that this one stands for, or the next code of the authenticator that is still accepted:
        there are three. No code stands for 000000."""
        if shown == WRONG_CODE or not shown.isdecimal():
            return self._real.get(("recovery code", shown), shown)
        return pyotp.TOTP(self._secret).at(time.time(), counter_offset=next(self._steps))

    def text(self, text: str) -> str:
        """The same for a message for people, which may contain times and the numbers of tasks, sessions and
        invitations."""
        text = MESSAGE_TIME.sub("TIME", text)
        return re.sub(
            r"\b(task|session|invitation) (\d+)",
            lambda n: f"{n[1]} {self._real.get((n[1], int(n[2])), n[2])}",
            text,
        )

    def ending(self, shown: str) -> str:
        """The last characters of the token whose last characters are these on the page. Raises AssertionError if there
        is none."""
        tokens = [str(real) for (kind, text), real in self._real.items() if kind == "token" and _ends(text, shown)]
        assert len(tokens) == 1, f"{len(tokens)} tokens on the page end with {shown!r}"
        return tokens[0][-len(shown) :]


def _ends(text: object, ending: str) -> bool:
    return isinstance(text, str) and text.endswith(ending)


def compare(shown: Any, real: Any, bindings: Bindings, path: str = "", key: str = "") -> None:
    """Compare a message of the server with the one on the page. Raises AssertionError, which names the field."""
    if isinstance(shown, dict) and isinstance(real, dict):
        assert list(shown) == list(real), f"{path or 'the message'} has the fields {list(real)}, not {list(shown)}"
        for name, value in shown.items():
            compare(value, real[name], bindings, f"{path}.{name}", _key(name, shown))
    elif isinstance(shown, list) and isinstance(real, list):
        assert len(shown) == len(real), f"{path} has {len(real)} entries, not {len(shown)}: {real}"
        for n, (left, right) in enumerate(zip(shown, real, strict=True)):
            compare(left, right, bindings, f"{path}[{n}]", key)
    elif key in KINDS:
        bindings.bind(KINDS[key], shown, real)
    elif key == "ending" and shown is not None:
        assert real == bindings.ending(shown), f"{path} is {real!r}, which is not the end of the token"
    elif key in TIME_KEYS and shown is not None:
        assert isinstance(real, str) and TIME.fullmatch(real), f"{path} is not a time: {real!r}"
        assert TIME.fullmatch(shown), f"{path} on the page is not a time: {shown!r}"
        datetime.fromisoformat(real.replace("Z", "+00:00"))
    elif key in ("node", "version", "worker") and isinstance(shown, str):
        assert isinstance(real, str) and real, f"{path} is {real!r}"
    elif key == "version" and isinstance(real, int):
        # one more where a turn has assigned the task: its creation has not found a free slot
        assert shown <= real <= shown + 1, f"{path} is {real!r}, not {shown!r}"
    elif key in MEASURED_KEYS and shown is not None:
        assert isinstance(shown, float | int) and isinstance(real, float | int), f"{path} is {real!r}"
    else:
        expected = shown
        if key == "message":
            expected, real = bindings.text(shown), MESSAGE_TIME.sub("TIME", real)
        assert expected == real, f"{path} is {real!r}, not {expected!r}"


class Server:
    """An embedded server that runs the examples, and the passwords of its users."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.bindings = Bindings()
        self.passwords: dict[str, str] = {}
        # With the default cost, hashing passwords would take most of the time of this test.
        env = {
            "TASKD_BCRYPT_ROUNDS": "4",
            "TASKD_REGISTRATIONS_PER_HOUR": "0",
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        }
        (folder / "counting.py").write_text(HANDLERS, "utf-8")
        listen = f"tcp:{self.port}:interface=127.0.0.1"
        slots = [word for way in ("slots", "threads", "processes") for word in (f"--{way}", "1")]
        options = [*slots, "--handlers", "counting", "--listen", listen]
        root = {"username": "root", "password": "correct horse"}
        self.passwords[root["username"]] = root["password"]
        # an admin registers before the settings name the admin
        with Daemon.twistd("taskserver", options, env, cwd=folder) as first:
            first.wait_for("is ready on port")
            with self.client() as client:
                assert client.request("register", **root)["ok"]
        self.daemon = Daemon.twistd("taskserver", options, {**env, "TASKD_ADMINS": "root"}, cwd=folder)
        self.daemon.wait_for("is ready on port")
        # A new task is not queued at once before the server has read its backlog; the page shows it queued.
        with self.client() as client:
            warm = {"username": "warm-up", "password": "correct horse"}
            assert client.request("register", **warm)["ok"] and client.request("login", **warm)["ok"]
            task_id = client.request("new_task", task="the first", payload={"seconds": 0})["task_id"]
            assert client.request("wait", task_ids=[task_id], timeout=20)["done"]

    def client(self) -> LineClient:
        """A new connection."""
        return LineClient(self.port)

    def run(self, block: Block) -> None:
        """Run one example. Raises AssertionError, which names the line of the page."""
        with self.client() as client:
            if block.user:
                # no example uses this id
                login = {"username": block.user, "password": self.passwords[block.user]}
                client.send_line(json.dumps({"action": "login", "id": "before", **login}).encode())
                assert json.loads(client.read_line())["ok"]
            for mark, text in block.lines:
                if mark == ">":
                    client.send_line(self._request(text))
                else:
                    real = client.read_line()
                    assert real, f"line {block.number}: the server closed the connection instead of sending {text}"
                    try:
                        compare(json.loads(text), json.loads(real), self.bindings)
                    except AssertionError as e:
                        raise AssertionError(f"line {block.number}: {e}\nshown: {text}\nreal:  {real.decode()}") from e
            client.send_line(b'{"action":"ping"}')
            last = client.read_line()
            assert json.loads(last) == {"ok": True, "status": "success"}, (
                f"line {block.number}: the server also sent {last!r}"
            )

    def _request(self, text: str) -> bytes:
        try:
            request = json.loads(text)
        except ValueError:
            return text.encode()  # an example of a line that is not JSON
        if request.get("action") == "register":
            self.passwords.setdefault(request["username"].casefold(), request["password"])
        known = self.bindings.request(request)
        return text.encode() if known == request else json.dumps(known).encode()


def test_every_example_matches_the_server(tmp_path: Path) -> None:
    """The examples run in the order of the page: later ones use the tasks of earlier ones."""
    server = Server(tmp_path)
    with server.daemon:
        for block in BLOCKS:
            server.run(block)
        assert "Traceback" not in server.daemon.output()


def test_every_action_has_a_section_and_an_example_of_success() -> None:
    """The example may be anywhere on the page. The sections have the order of the registry."""
    requests = [json.loads(text) for b in BLOCKS for mark, text in b.lines if mark == ">" and text.endswith("}")]
    replies = [json.loads(text) for b in BLOCKS for mark, text in b.lines if mark == "<"]
    succeeded = {r["action"] for r in requests if {"ok": True, "id": r.get("id")}.items() <= _reply(r, replies).items()}
    assert set(ACTIONS) <= succeeded
    assert re.findall(r"^### (\w+)$", PAGE.partition("\n## Actions\n")[2], re.MULTILINE) == list(ACTIONS)


def _reply(request: Mapping[str, Any], replies: list[dict[str, Any]]) -> dict[str, Any]:
    """The reply to a request, from the same block: the one with the same id, or without an id the one at the same
    position."""
    for block in BLOCKS:
        asked = [text for mark, text in block.lines if mark == ">"]
        answered = [a for mark, text in block.lines if mark == "<" and "ok" in (a := json.loads(text))]
        for n, text in enumerate(asked):
            if text.endswith("}") and json.loads(text) == request:
                if "id" not in request:
                    return {"id": None, **answered[n]}
                return next(a for a in answered if a.get("id") == request["id"])
    raise AssertionError(f"no reply to {request}")


def rows(heading: str) -> dict[str, str]:
    """The rows of all tables of a section: from the first cell, without its backquotes, to the whole row."""
    section = PAGE.partition(f"\n{heading}\n")[2]
    level = heading.partition(" ")[0]
    section = re.split(rf"^#{{1,{len(level)}}} ", section, maxsplit=1, flags=re.MULTILINE)[0]
    # without the table heads, which have a line of dashes below them
    return {row[1]: row[0] for row in re.finditer(r"^\| `([^`]+)` \|.*$(?!\n\| ---)", section, re.MULTILINE)}


def test_every_code_and_status_of_the_code_is_on_the_page() -> None:
    """The page has exactly the codes and statuses of taskd.model.errors."""
    known = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, errors.TaskdError)]
    codes = {e.code for e in known}
    fields = {"ok", "status", "code", "message", "field", "retry_after"}
    assert set(rows("### Errors")) - fields == codes
    assert set(rows("## Replies")) - fields - codes == {e.status for e in known} | {
        "success",
        "logged_in",
        "task_created",
        "no_tasks",
    }


def test_states_fields_and_events_match_the_code() -> None:
    """These tables are written by hand."""
    states = rows("### Statuses and states")
    assert set(states) == set(SHOWN_STATES)
    for state in State:
        assert f"`{state.value}`" in states[state.value]
    assert all(f"`{status}`" in PAGE for status in STATUSES)
    assert list(rows("### The task object")) == list(TaskView.__struct_fields__)
    task = Task(42, 1, "t", "simulate", "tasks", State.RUNNING, NOON, NOON)
    outputs = [
        bytes(each.event)
        for each in (progress_event(task, 0.5, None), log_event(task, 1, ["x"], NOON), returned_event(task))
    ]
    outputs += [watch_hub.GAP, watch_hub.DRAINING, SESSION_ENDED]
    of_code = {x["event"]: list(x) for x in map(json.loads, outputs)}
    shown = [json.loads(text) for text in rows("## Watching") if text.count("{") == 1]
    assert {x["event"]: list(x) for x in shown} == of_code


def test_every_code_of_explain_is_on_the_page() -> None:
    """In taskd.scheduling.explain, every ``return`` of a reason begins with its code."""
    codes = set(re.findall(r'return "(\w+)", ', inspect.getsource(explain)))
    assert codes == set(
        re.findall(r"^\| (\w+) \|", PAGE.partition("| `code` of `explain` |")[2].partition("\n\n")[0], re.M)
    )


def test_what_explain_says_of_the_line_is_on_the_page() -> None:
    """The names in taskd.scheduling.explain, and the codes of taskd.scheduling.estimate, which are its constants."""
    fields = re.findall(r'^ +"(\w+)": ', inspect.getsource(explain._line_fields), re.M)
    bases = [value for name, value in vars(estimate).items() if name.isupper()]
    for heading, names in (
        ("| field of a `waiting` task |", [name for name in fields if name != "slots"]),
        ("| `basis` of an estimate |", bases),
    ):
        table = PAGE.partition(heading)[2].partition("\n\n")[0]
        assert re.findall(r"^\| (\w+) \|", table, re.M) == names


def test_the_fields_of_kinds_and_attempts_match_the_code() -> None:
    """These tables are written by hand."""
    for heading, fields in (
        ("| field of an attempt |", AttemptView.__struct_fields__),
        ("| field of a kind |", ServedKind._fields),
    ):
        table = PAGE.partition(heading)[2].partition("\n\n")[0]
        assert re.findall(r"^\| (\w+) \|", table, re.MULTILINE) == list(fields)


def test_the_fields_of_an_overview_match_its_example() -> None:
    """The example is compared with the server."""
    [reply] = [r for b in BLOCKS for mark, text in b.lines if mark == "<" and "rate_seconds" in (r := json.loads(text))]
    for heading, fields in (("| field of the reply |", list(reply)[3:]), ("| field of a route |", reply["routes"][0])):
        table = PAGE.partition("\n### overview\n")[2].partition(heading)[2].partition("\n\n")[0]
        assert re.findall(r"^\| (\w+) \|", table, re.MULTILINE) == list(fields)


def test_the_fields_of_accounts_match_their_examples() -> None:
    """These tables are written by hand. The examples are compared with the server."""
    replies = [json.loads(text) for b in BLOCKS for mark, text in b.lines if mark == "<"]
    for heading, name in (
        ("| field of a session |", "sessions"),
        ("| field of a user |", "users"),
        ("| field of an invitation |", "invitations"),
        ("| field of an audit row |", "audit"),
    ):
        table = PAGE.partition(heading)[2].partition("\n\n")[0]
        listed = next(r[name] for r in replies if r.get(name))
        assert re.findall(r"^\| (\w+) \|", table, re.MULTILINE) == list(listed[0])


def test_the_scopes_match_the_registry() -> None:
    """The table has every action that a scope allows, and the text below it those that no token allows."""
    allowed: dict[str, list[str]] = {
        "any": [a.name for a in ACTIONS.values() if a.scope is Scope.NONE],
        "tasks:read": [a.name for a in ACTIONS.values() if a.scope is Scope.READ],
        "tasks:write": [a.name for a in ACTIONS.values() if a.scope in (Scope.SUBMIT, Scope.WRITE)],
        "submit:KIND": [a.name for a in ACTIONS.values() if a.scope is Scope.SUBMIT],
    }
    table = PAGE.partition("| scope | allows |\n")[2].partition("\n\n")[0]
    found = re.findall(r"^\| `?([\w:]+)`? \| (.*) \|$", table, re.MULTILINE)
    assert {scope: re.findall(r"\[`(\w+)`\]", actions) for scope, actions in found} == allowed


def test_the_reference_tables_are_up_to_date() -> None:
    """If this fails, run: python -m taskd.protocol.docs docs/protocol.md"""
    assert docs.updated(PAGE) == PAGE


def test_a_page_with_a_missing_or_doubled_part_is_refused() -> None:
    """Every action must have exactly one marked part."""
    for wrong in (PAGE.replace("fields ping", "fields pong"), PAGE + "<!-- begin actions -->\n<!-- end actions -->\n"):
        with pytest.raises(ValueError, match="marked parts must be"):
            docs.updated(wrong)


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ({"ok": True}, {"ok": False}),
        ({"ok": True}, {"ok": True, "more": 1}),
        ({"task_ids": [1, 2]}, {"task_ids": [7]}),
        ({"task_ids": [1, 1]}, {"task_ids": [7, 8]}),
        ({"task_ids": [1, 2]}, {"task_ids": [7, 7]}),
        ({"token": "a"}, {"token": None}),
        ({"created_at": "2026-03-01T12:00:00Z"}, {"created_at": None}),
        ({"finished_at": None}, {"finished_at": "2026-03-01T12:00:00Z"}),
        ({"task_id": 1, "message": "task 1"}, {"task_id": 7, "message": "task 1"}),
        ({"session_id": 1, "message": "session 1"}, {"session_id": 7, "message": "session 1"}),
        ({"session_id": 1, "x": {"id": 1, "current": True}}, {"session_id": 7, "x": {"id": 8, "current": True}}),
        ({"token": "taskd_abc", "ending": "_abc"}, {"token": "taskd_xyz", "ending": "_abc"}),
        ({"token": "taskd_abc", "ending": "zabc"}, {"token": "taskd_xyz", "ending": "_xyz"}),
        ({"code": "forbidden"}, {"code": "conflict"}),
        ({"code": "AB", "expires_in": 1}, {"code": None, "expires_in": 1}),
    ],
)
def test_the_comparison_finds_a_wrong_example(shown: Any, real: Any) -> None:
    """The second message differs from the first in more than the values that may differ."""
    with pytest.raises(AssertionError):
        compare(shown, real, Bindings())


def test_values_of_the_server_are_used_in_later_requests() -> None:
    """And in the comparison of messages for people."""
    bindings = Bindings()
    compare({"task_ids": [1, 2], "token": "shown"}, {"task_ids": [7, 8], "token": "real"}, bindings)
    assert bindings.request({"task_id": 2, "token": "shown", "limit": 1}) == {"task_id": 8, "token": "real", "limit": 1}
    compare({"message": "task 2 is over"}, {"message": "task 8 is over"}, bindings)
    compare({"token": "taskd_abc", "ending": "_abc"}, {"token": "taskd_xyz", "ending": "_xyz"}, bindings)
    compare({"code": "AB-CD", "expires_in": 1}, {"code": "EF-GH", "expires_in": 1}, bindings)
    request = {"action": "set_password", "code": "AB-CD"}
    assert bindings.request(request) == {"action": "set_password", "code": "EF-GH"}
