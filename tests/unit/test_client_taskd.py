"""A small taskd server in memory, for the unit tests of the client."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

from msgspec import UNSET
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from taskd.events.records import TaskOutput, log_event, progress_event
from taskd.model.errors import (
    AuthRequired,
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    NoUser,
    RateLimited,
    TaskdError,
    UnknownAction,
    UsernameInUse,
    WrongCredentials,
    code_missing,
    code_refused,
)
from taskd.model.states import State
from taskd.model.tasks import FailedAttempt, Task
from taskd.protocol.limits import MAX_LINE_BYTES, MAX_REPLY_BYTES
from taskd.protocol.messages import encode
from taskd.protocol.views import view
from taskd.server.pipeline import Call, RequestPipeline

NEW = ("get_log", "retry_task", "explain", "kinds", "overview", "quota", "set_quota", "set_weight")
"""Actions that an older server does not know."""

NOON = datetime(2025, 3, 1, 12, tzinfo=timezone.utc)


TOTP_CODE = "123456"
"""The code of every authenticator."""


def kind(name: str, **fields: Any) -> dict[str, Any]:
    """A kind that workers serve."""
    defaults = {"queues": ["tasks"], "isolation": "async", "timeout": None, "max_attempts": 3, "summary": ""}
    return {"kind": name, "workers": 1, "slots": 100, **defaults, **fields}


def route(kind: str, **fields: Any) -> dict[str, Any]:
    """A route of an overview."""
    counts = {"waiting": 0, "delayed": 0, "queued": 0, "running": 0, "slots": 100, "hung": 0}
    return {"queue": "tasks", "kind": kind, **counts, "rate": 0.0, "oldest": None, "more": [], **fields}


class FakeTaskd:
    """The state of a taskd server in memory: one queue and no workers; tests change the tasks themselves.

    It refuses the actions in ``refusals``, and ignores those in ``silent``. It executes those in ``mute`` but does not
    answer, like a server that dies at that moment. It answers those in ``held`` when the connection is released. An
    ``old`` server does not know the actions in NEW.
    """

    def __init__(self) -> None:
        self.passwords: dict[str, str] = {}
        self.tokens: dict[str, str] = {}
        self.tasks: dict[int, Task] = {}
        self.connections: list[FakeConnection] = []
        self.refusals: dict[str, TaskdError] = {}
        self.silent: set[str] = set()
        self.mute: set[str] = set()
        self.held: set[str] = set()
        self.keys: dict[str, tuple[int, Any]] = {}
        self.served: list[dict[str, Any]] = [kind("simulate", summary="Waits.")]
        self.failed: dict[int, list[FailedAttempt]] = {}
        self.reasons: dict[int, dict[str, Any]] = {}
        self.logs: dict[int, list[dict[str, Any]]] = {}
        self.quotas: dict[str, dict[str, Any]] = {
            "open": {"used": 3, "limit": 100_000, "default": True},
            "daily": {"used": 40, "limit": 0, "default": True},
            "bytes": {"used": 2 * 2**20, "limit": 10_240 * 2**20, "default": True},
        }
        self.overview: dict[str, Any] = {
            "scope": "own",
            "rate_seconds": 120.0,
            "routes": [route("simulate")],
            "more": False,
        }
        self.local: str | None = None
        """The user of the machine, who may log in without a password."""
        self.roles: dict[str, str] = {}
        self.disabled: set[str] = set()
        self.codes: dict[str, str] = {}
        self.totp: dict[str, str] = {}
        """The code that users with a second factor must show."""
        self.begun: set[str] = set()
        """Users who have begun to set one up."""
        self.sessions: list[dict[str, Any]] = []
        """What ``sessions`` lists: API tokens and logins alike."""
        self.invitations: list[dict[str, Any]] = []
        self.invitation: str | None = None
        """The invitation that a registration needs."""
        self.audit: list[dict[str, Any]] = []
        self.busy: list[float | None] = []
        """How often the server puts off whatever checks a password, each time for so many seconds. None: it says
        nothing about the time."""
        self.closes = False
        """Whether it also closes the connection of what it has put off."""
        self.cut = False
        self.old = False
        self._ids = itertools.count(1)

    def user(self, name: str = "ana", password: str = "correct horse") -> str:
        """Create an account and a token for it."""
        self.passwords[name] = password
        token = f"token-{len(self.tokens)}"
        self.tokens[token] = name
        return token

    def end_sessions(self, name: str) -> int:
        """All sessions of a user end, wherever that is decided. Returns how many."""
        ended = [token for token, owner in self.tokens.items() if owner == name]
        for token in ended:
            del self.tokens[token]
        for connection in tuple(self.connections):
            connection.session_ended(ended)
        return len(ended)

    def task(self, text: str = "one", state: State = State.QUEUED, **fields: Any) -> Task:
        """Create a task."""
        defaults: dict[str, Any] = {"kind": "simulate", "queue": "tasks", "created_at": NOON, "run_at": NOON}
        task = Task(next(self._ids), 1, text, state=state, **defaults | fields)
        self.tasks[task.id] = task
        return task

    def move(self, task_id: int, state: State, **fields: Any) -> None:
        """Change a task's state, and inform the connections that watch or wait."""
        task = self.tasks[task_id]
        task.state = state
        task.version += 1
        for name, value in fields.items():
            setattr(task, name, value)
        for connection in tuple(self.connections):
            connection.tell(task)

    def progress(self, task_id: int, progress: float, note: str | None = None) -> None:
        """A running task reports its progress."""
        task = self.tasks[task_id]
        for connection in tuple(self.connections):
            connection.output(progress_event(task, progress, note))

    def log(self, task_id: int, *texts: str, attempt: int = 1, first: int | None = None) -> None:
        """A task logs lines. ``first`` is the number of the first one, if lines before it are missing."""
        log = self.logs.setdefault(task_id, [])
        last = log[-1]["line"] if log and log[-1]["attempt"] == attempt else 0
        lines: list[dict[str, Any]] = [
            {"attempt": attempt, "line": n, "at": NOON, "text": text}
            for n, text in enumerate(texts, last + 1 if first is None else first)
        ]
        log += lines
        for connection in tuple(self.connections):
            connection.output(log_event(self.tasks[task_id], lines[0]["line"], texts, NOON))
            connection.feed(task_id)

    def asked(self, connection: int = -1) -> list[dict[str, Any]]:
        """The requests of one connection, in their order."""
        return self.connections[connection].requests

    def actions(self, connection: int = -1) -> list[str]:
        """The names of those requests."""
        return [request["action"] for request in self.asked(connection)]


class FakeConnection(LineReceiver):
    """The server's end of one connection. The real session keeps the replies in order."""

    delimiter = b"\n"
    MAX_LENGTH = MAX_REPLY_BYTES
    transport: Any

    def __init__(self, taskd: FakeTaskd) -> None:
        self._taskd = taskd
        self._session = RequestPipeline(self._start, self._write, lambda full: None)
        self._token: str | None = None
        self._watching = False
        self._waits: list[tuple[Call, list[int]]] = []
        self._follows: dict[int, int] = {}
        self._held: list[tuple[Call, dict[str, Any]]] = []
        self.requests: list[dict[str, Any]] = []
        self.chunks: list[bytes] = []

    def connectionMade(self) -> None:
        self._taskd.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.chunks.append(data)
        super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        assert len(line) <= MAX_LINE_BYTES
        self.requests.append(json.loads(line))
        self._session.receive(line)

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self in self._taskd.connections:
            self._watching = False
            self._waits.clear()
            self._follows.clear()

    def event(self, fields: dict[str, Any]) -> None:
        """Send an event."""
        self._write(encode(fields) + b"\n")

    def tell(self, task: Task) -> None:
        """Send the change of a task to a client that watches, follows or waits."""
        if self._watching:
            self.event({"event": "task", "task": view(task, NOON)})
        if task.id in self._follows and task.finished_at is not None:
            del self._follows[task.id]
            self.event({"event": "log_end", "task_id": task.id, "state": task.state.value})
        for call, ids in tuple(self._waits):
            if all(self._taskd.tasks[n].finished_at for n in ids):
                self._waits.remove((call, ids))
                call.succeed({"status": "success", "done": True, "tasks": self._views(ids)})

    def output(self, output: TaskOutput) -> None:
        """Send the output of a task to a client that watches."""
        if self._watching:
            self._write(bytes(output.event) + b"\n")

    def feed(self, task_id: int) -> None:
        """Send the new lines of a log that the client follows."""
        if task_id in self._follows:
            lines = self._taskd.logs[task_id][self._follows[task_id] :]
            self._follows[task_id] += len(lines)
            cursor = str(self._follows[task_id])
            self.event({"event": "log", "task_id": task_id, "lines": lines, "cursor": cursor, "cut": False})

    def time_out(self) -> None:
        """Answer the ``wait`` requests as after their timeout."""
        waits, self._waits = self._waits, []
        for call, ids in waits:
            call.succeed({"status": "success", "done": False, "tasks": self._views(ids)})

    def session_ended(self, tokens: list[str]) -> None:
        """Tell a client that is logged in with one of these tokens."""
        if self._token in tokens:
            self._token = None
            self._watching = False
            self.event({"event": "session_ended"})

    def release(self) -> None:
        """Answer the held requests."""
        for call, reply in self._held:
            call.succeed(reply)

    def _write(self, line: bytes) -> None:
        self.transport.write(line)

    def _start(self, call: Call) -> None:
        name = call.action.name
        if name in self._taskd.silent:
            return
        try:
            if self._taskd.old and name in NEW:
                raise UnknownAction(f"there is no action '{name}'", field="action")
            if name in self._taskd.refusals:
                raise self._taskd.refusals[name]
            if name not in ("register", "login", "set_password", "hello", "ping") and self._token is None:
                raise AuthRequired(f"log in first: {name} is for a logged-in user")
            self._put_off(name, call.request)
            reply = getattr(self, name)(call, call.request)
        except RateLimited as e:
            call.fail(e)
            if self._taskd.closes:
                self.transport.loseConnection()
        except TaskdError as e:
            call.fail(e)
        else:
            if name in self._taskd.held:
                self._held.append((call, reply))
            elif reply is not None and name not in self._taskd.mute:
                call.succeed(reply)
                if name == "get_log":
                    self._begin(call.request)

    def _put_off(self, name: str, request: Any) -> None:
        if self._taskd.busy and getattr(request, "password", None) is not None:
            raise RateLimited("the server is busy", retry_after=self._taskd.busy.pop(0))

    def ping(self, call: Call, request: Any) -> dict[str, Any]:
        return {"status": "success"}

    def register(self, call: Call, request: Any) -> dict[str, Any]:
        if request.username in self._taskd.passwords:
            raise UsernameInUse("somebody has this username")
        if request.invitation != self._taskd.invitation:
            raise Forbidden("registration needs an invitation", field="invitation")
        self._taskd.user(request.username, request.password)
        return {"status": "success", "user_id": 1, "username": request.username}

    def login(self, call: Call, request: Any) -> dict[str, Any]:
        if request.token is not None:
            if request.token not in self._taskd.tokens:
                raise AuthRequired("this session has ended; log in again")
            token = request.token
        elif request.local and not self._taskd.old:
            if self._taskd.local is None:
                raise Forbidden("local logins are off here", field="local")
            token = self._taskd.user(self._taskd.local, "")
        elif request.username is None:
            raise BadRequest("username is missing", field="username")
        else:
            if self._taskd.passwords.get(request.username) != request.password:
                raise WrongCredentials("the username or the password is wrong")
            self._show_totp(request.username, request.code)
            token = f"token-{len(self._taskd.tokens)}"
            self._taskd.tokens[token] = request.username
        self._token = token
        name = self._taskd.tokens[token]
        return {"status": "logged_in", "token": token, "user_id": 1, "username": name, "expires_in": 3600}

    def logout(self, call: Call, request: Any) -> dict[str, Any]:
        self._taskd.tokens.pop(self._token or "", None)
        self._token = None
        return {"status": "success"}

    def whoami(self, call: Call, request: Any) -> dict[str, Any]:
        name = self._taskd.tokens[self._token or ""]
        return {"status": "success", "user_id": 1, "username": name, "totp": name in self._taskd.totp}

    def new_task(self, call: Call, request: Any) -> dict[str, Any]:
        task_id, duplicate = self._create(request)
        return {"status": "task_created", "task_id": task_id, **({"duplicate": True} if duplicate else {})}

    def new_tasks(self, call: Call, request: Any) -> dict[str, Any]:
        created = [self._create(spec) for spec in request.tasks]
        duplicates = [task_id for task_id, duplicate in created if duplicate]
        reply: dict[str, Any] = {"status": "task_created", "task_ids": [task_id for task_id, _ in created]}
        return reply | ({"duplicates": duplicates} if duplicates else {})

    def _create(self, spec: Any) -> tuple[int, bool]:
        known = self._taskd.keys.get(spec.key)
        if known is not None:
            if known[1] != spec:
                raise Conflict(f"the key '{spec.key}' stands for another task already; use a new one", field="key")
            return known[0], True
        run_at = spec.run_at or NOON + timedelta(seconds=spec.delay or 0)
        task = self._taskd.task(spec.task, kind=spec.kind, payload=bytes(spec.payload).decode(), run_at=run_at)
        self._taskd.keys[spec.key] = task.id, spec
        self.tell(task)
        return task.id, False

    def get_tasks(self, call: Call, request: Any) -> dict[str, Any]:
        below = int(request.cursor) if request.cursor else 1 << 62
        # Like the real server, cut the page before filtering: it may be short, or even empty
        page = [task for task in reversed(self._taskd.tasks.values()) if task.id < below][: request.limit]
        cursor = str(page[-1].id) if page and page[-1].id > 1 else None
        ids = [task.id for task in page if request.state in (None, task.state.value)]
        status = "success" if ids or cursor else "no_tasks"
        return {"status": status, "tasks": self._views(ids), "cursor": cursor}

    def get_task(self, call: Call, request: Any) -> dict[str, Any]:
        self._views([request.task_id])
        failed = self._taskd.failed.get(request.task_id, [])
        return {"status": "success", "task": view(self._taskd.tasks[request.task_id], NOON, failed)}

    def cancel_task(self, call: Call, request: Any) -> dict[str, Any]:
        self._views([request.task_id])
        task = self._taskd.tasks[request.task_id]
        if task.state in (State.COMPLETED, State.FAILED):
            raise Conflict(f"task {task.id} is {task.state.value}: too late to cancel it")
        if task.state is not State.CANCELLED:
            self._taskd.move(task.id, State.CANCELLED, finished_at=NOON)
        return {"status": "success", "task": self._views([request.task_id])[0]}

    def retry_task(self, call: Call, request: Any) -> dict[str, Any]:
        self._views([request.task_id])
        task = self._taskd.tasks[request.task_id]
        if task.state not in (State.FAILED, State.CANCELLED):
            raise Conflict(f"task {task.id} is {task.state.value}: there is no need to try it again")
        self._taskd.move(task.id, State.WAITING, finished_at=None)
        return {"status": "success", "task": self._views([task.id])[0]}

    def explain(self, call: Call, request: Any) -> dict[str, Any]:
        self._views([request.task_id])
        return {"status": "success", "task_id": request.task_id, **self._taskd.reasons[request.task_id]}

    def overview(self, call: Call, request: Any) -> dict[str, Any]:
        return {"status": "success", **self._taskd.overview}

    def quota(self, call: Call, request: Any) -> dict[str, Any]:
        name = request.username or self._taskd.tokens[self._token or ""]
        if name not in self._taskd.passwords:
            raise NoUser("nobody is registered under this username")
        return {"status": "success", "username": name, **self._taskd.quotas}

    def set_quota(self, call: Call, request: Any) -> dict[str, Any]:
        reply = self.quota(call, request)
        for name, limit in (("open", request.open), ("daily", request.daily), ("mib", request.mib)):
            if limit is not UNSET:
                field, unit = ("bytes", 2**20) if name == "mib" else (name, 1)
                own = {"limit": 7 if limit is None else limit * unit, "default": limit is None}
                reply[field] = {**reply[field], **own}
        return reply

    def set_weight(self, call: Call, request: Any) -> dict[str, Any]:
        self._known(request)
        return {"status": "success", "username": request.username, "weight": request.weight}

    # -- accounts

    def _known(self, request: Any) -> str:
        name: str = request.username
        if name not in self._taskd.passwords:
            raise NoUser("nobody is registered under this username")
        return name

    def _own(self, password: str) -> str:
        name = self._taskd.tokens[self._token or ""]
        if self._taskd.passwords[name] != password:
            raise WrongCredentials("the password is wrong", field="password")
        return name

    def change_password(self, call: Call, request: Any) -> dict[str, Any]:
        self._taskd.passwords[self._own(request.password)] = request.new_password
        return {"status": "success"}

    def set_password(self, call: Call, request: Any) -> dict[str, Any]:
        if self._taskd.codes.pop(request.username, None) != request.code:
            raise WrongCredentials("the code is wrong", field="code")
        self._taskd.passwords[request.username] = request.new_password
        return {"status": "success"}

    def _show_totp(self, name: str, code: str | None) -> None:
        if name in self._taskd.totp and not code:
            raise code_missing()
        if self._taskd.totp.get(name) not in (None, code):
            raise code_refused()

    def totp_begin(self, call: Call, request: Any) -> dict[str, Any]:
        self._taskd.begun.add(self._own(request.password))
        return {"status": "success", "secret": "JBSWY3DP", "uri": "otpauth://totp/taskd:ana?secret=JBSWY3DP"}

    def totp_confirm(self, call: Call, request: Any) -> dict[str, Any]:
        name = self._taskd.tokens[self._token or ""]
        assert name in self._taskd.begun
        if request.code != TOTP_CODE:
            raise code_refused()
        self._taskd.totp[name] = request.code
        return {"status": "success", "recovery_codes": ["ABCD-EFGH", "JKLM-NPQR"]}

    def totp_off(self, call: Call, request: Any) -> dict[str, Any]:
        name = self._own(request.password)
        self._show_totp(name, request.code)
        del self._taskd.totp[name]
        return {"status": "success"}

    def reset_totp(self, call: Call, request: Any) -> dict[str, Any]:
        name = self._known(request)
        self._taskd.totp.pop(name, None)
        return {"status": "success", "username": name, "role": "user", "disabled": False}

    def delete_account(self, call: Call, request: Any) -> dict[str, Any]:
        name = self._own(request.password)
        del self._taskd.passwords[name]
        self._taskd.end_sessions(name)
        return {"status": "success"}

    def sessions(self, call: Call, request: Any) -> dict[str, Any]:
        return {"status": "success", "sessions": self._taskd.sessions}

    def end_session(self, call: Call, request: Any) -> dict[str, Any]:
        found = next((each for each in self._taskd.sessions if each["id"] == request.session_id), None)
        if found is None:
            raise NotFound(f"you have no session {request.session_id}", field="session_id")
        self._taskd.sessions.remove(found)
        if found["current"]:
            self._taskd.end_sessions(self._taskd.tokens[self._token or ""])
        return {"status": "success"}

    def end_sessions(self, call: Call, request: Any) -> dict[str, Any]:
        assert request.keep_this
        ended = [each for each in self._taskd.sessions if not each["current"]]
        self._taskd.sessions = [each for each in self._taskd.sessions if each["current"]]
        return {"status": "success", "ended": len(ended)}

    def new_token(self, call: Call, request: Any) -> dict[str, Any]:
        token = f"taskd_{request.name}"
        self._taskd.tokens[token] = self._taskd.tokens[self._token or ""]
        expires = NOON + timedelta(days=request.days)
        return {"status": "success", "session_id": 9, "token": token, "expires_at": expires}

    def users(self, call: Call, request: Any) -> dict[str, Any]:
        start = int(request.cursor or 0)
        names = list(self._taskd.passwords)
        page = names[start : start + request.limit]
        end = start + len(page)
        return {
            "status": "success",
            "users": [self._user(n, name) for n, name in enumerate(page, start + 1)],
            "cursor": str(end) if end < len(names) else None,
        }

    def _user(self, user_id: int, name: str) -> dict[str, Any]:
        return {
            "username": name,
            "user_id": user_id,
            "role": self._taskd.roles.get(name, "user"),
            "disabled": name in self._taskd.disabled,
            "weight": 1.0,
            "created_at": NOON,
            "used_at": NOON if name in self._taskd.tokens.values() else None,
            "has_code": name in self._taskd.codes,
        }

    def set_role(self, call: Call, request: Any) -> dict[str, Any]:
        self._taskd.roles[self._known(request)] = request.role
        return self._changed(request.username)

    def set_disabled(self, call: Call, request: Any) -> dict[str, Any]:
        (self._taskd.disabled.add if request.disabled else self._taskd.disabled.discard)(self._known(request))
        return self._changed(request.username)

    def _changed(self, name: str) -> dict[str, Any]:
        disabled = name in self._taskd.disabled
        return {
            "status": "success",
            "username": name,
            "role": self._taskd.roles.get(name, "user"),
            "disabled": disabled,
        }

    def reset_password(self, call: Call, request: Any) -> dict[str, Any]:
        self._taskd.codes[self._known(request)] = "ABCD-EFGH"
        return {"status": "success", "username": request.username, "code": "ABCD-EFGH", "expires_in": 86400}

    def end_user_sessions(self, call: Call, request: Any) -> dict[str, Any]:
        return {"status": "success", "ended": self._taskd.end_sessions(self._known(request))}

    def invite(self, call: Call, request: Any) -> dict[str, Any]:
        invitation = {"invitation_id": 3, "invitation": "welcome-1"}
        return {"status": "success", **invitation, "uses": request.uses, "expires_in": request.days * 86400}

    def invitations(self, call: Call, request: Any) -> dict[str, Any]:
        return {"status": "success", "invitations": self._taskd.invitations}

    def end_invitation(self, call: Call, request: Any) -> dict[str, Any]:
        kept = [each for each in self._taskd.invitations if each["id"] != request.invitation_id]
        if len(kept) == len(self._taskd.invitations):
            raise NotFound(f"there is no invitation {request.invitation_id}", field="invitation_id")
        self._taskd.invitations = kept
        return {"status": "success"}

    def audit(self, call: Call, request: Any) -> dict[str, Any]:
        rows = [row for row in self._taskd.audit if request.action_name in (None, row["action"])]
        return {"status": "success", "audit": rows[: request.limit], "cursor": None}

    def kinds(self, call: Call, request: Any) -> dict[str, Any]:
        return {"status": "success", "kinds": self._taskd.served}

    def get_log(self, call: Call, request: Any) -> dict[str, Any]:
        self._views([request.task_id])
        log = self._taskd.logs.get(request.task_id, [])
        start = int(request.cursor or 0)
        if request.tail:
            start = max(start, len(log) - request.limit)
        lines = log[start : start + request.limit]
        end = start + len(lines)
        if request.follow:
            self._follows[request.task_id] = end
        cut = self._taskd.cut and start == 0
        return {
            "status": "success",
            "lines": lines,
            "cursor": str(end) if end else None,
            "more": end < len(log),
            "cut": cut,
        }

    def _begin(self, request: Any) -> None:
        task_id = request.task_id
        if not request.follow:
            return
        if self._taskd.logs.get(task_id, [])[self._follows[task_id] :]:
            self.feed(task_id)
        task = self._taskd.tasks[task_id]
        if task.finished_at is not None:
            self.tell(task)

    def watch(self, call: Call, request: Any) -> dict[str, Any]:
        self._watching = True
        return {"status": "success", "tasks": self._views(list(reversed(self._taskd.tasks))[: request.limit])}

    def wait(self, call: Call, request: Any) -> dict[str, Any] | None:
        tasks = self._views(request.task_ids)
        done = all(self._taskd.tasks[n].finished_at for n in request.task_ids)
        if done or request.timeout == 0:
            return {"status": "success", "done": done, "tasks": tasks}
        self._waits.append((call, request.task_ids))
        return None

    def _views(self, ids: Iterable[int]) -> list[Any]:
        for n in ids:
            if n not in self._taskd.tasks:
                raise NotFound(f"you have no task {n}", field="task_id")
        return [view(self._taskd.tasks[n], NOON) for n in ids]
