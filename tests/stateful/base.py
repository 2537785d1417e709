"""Connections to a server in memory, requests on them, and what must hold after each step."""

from __future__ import annotations

from typing import Any

import bcrypt
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from taskd.model.users import Registration, Role
from tests.stateful.model import ACTIONS, LOGIN_SECONDS, PURGE_SECONDS, SESSION_SECONDS, Account, Model, Row, Session
from tests.unit.stage import Client, Stage, now

USERS = ("ana", "ben", "eva")
ADMIN = "boss"
FIRST_PASSWORD = "correct horse battery"
PASSWORDS = (FIRST_PASSWORD, "another staple horse", "seven green pears")
WRONG = "quite another guess"
ADDRESSES = ("192.0.2.1", "192.0.2.2", "198.51.100.7")
MOST_CONNECTIONS = 8
STEP = 0.25

_HASH = bcrypt.hashpw(FIRST_PASSWORD.encode(), bcrypt.gensalt(4)).decode()

picks = st.integers(0, 11)
"""One of several things of which there may be none yet."""

names = st.sampled_from([*USERS, *USERS, ADMIN, "root", "Kim"])


class Conn:
    """A connection and what the model knows of it."""

    def __init__(self, client: Client, address: str, at: float) -> None:
        self.client = client
        self.address = address
        self.login: tuple[Account, Session] | None = None
        self.stranger_from = self.stranger_to = at
        """When it began to be nobody's, at the earliest and the latest."""
        self.late = False
        """A request that took its time may give it more time to log in."""
        self.had_line = False
        self.watched: dict[int, tuple[int, str]] | None = None
        """Version and state of the tasks that a watch has shown."""
        self.logs: list[tuple[int, list[str]]] = []
        """The log events of the watch since the last look."""
        self.waits: dict[int, tuple[list[int], float]] = {}
        """The ids of requests that wait, the tasks that they wait for, and until when."""
        self.replies: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.rest: list[dict[str, Any]] = []
        """Replies without an id."""

    @property
    def active(self) -> bool:
        """Whether it gets events or waits."""
        return self.watched is not None or bool(self.waits)

    def read(self) -> None:
        """Sort what has come."""
        for line in self.client.lines():
            if "event" in line:
                self.events.append(line)
            elif "id" in line:
                assert line["id"] not in self.replies, line
                self.replies[line["id"]] = line
            else:
                self.rest.append(line)


@implementer(ILogObserver)
class Errors:
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        self.found: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level") in (LogLevel.error, LogLevel.critical):
            self.found.append(event)


class Base(RuleBasedStateMachine):
    """What all rules need."""

    registration = "open"

    def __init__(self) -> None:
        super().__init__()
        self.errors = Errors()
        globalLogPublisher.addObserver(self.errors)
        self.stage = Stage()
        self.stage.accounts.registration = Registration(self.registration)
        self.stage.accounts.session_seconds = round(SESSION_SECONDS)
        self.stage.server.rights.start()
        self.stage.maintenance.start()
        self.model = Model(self.registration)
        self.conns: list[Conn] = []
        self.before = self.now

    def teardown(self) -> None:
        globalLogPublisher.removeObserver(self.errors)
        self.stage.close()

    def begin_more(self, count: int) -> None:
        """What else there is at the beginning."""
        raise NotImplementedError

    @initialize(with_root=st.booleans(), tasks=st.integers(0, 2))
    def begin(self, with_root: bool, tasks: int) -> None:
        """The machine's administrator has made the accounts; some users are logged in."""
        for name in (*USERS, ADMIN, *(["root"] if with_root else [])):
            role = "admin" if name == ADMIN else "user"
            user = now(self.stage.other_store.create_user(name, name, _HASH, role=Role(role)))
            self.model.accounts[name] = Account(user.id, name, FIRST_PASSWORD, role)
            self.model.numbers.add(user.id)
        for name in (ADMIN, *USERS[:2]):
            self.logs_in(self.connects(ADDRESSES[0]), name, FIRST_PASSWORD)
        self.begin_more(tasks)

    @property
    def now(self) -> float:
        """The time, in seconds since 1970."""
        return self.stage.now().timestamp()

    def pass_time(self, seconds: float) -> None:
        """Let some seconds pass. The worker lives."""
        while seconds > 0:
            self.beat()
            self.stage.pass_time(min(seconds, 5.0), STEP)
            seconds -= 5.0

    def beat(self) -> None:
        """The worker says that it lives, and drops what was cancelled."""
        self.stage.sql("UPDATE workers SET beat = beat + 1")
        for (task_id,) in self.stage.sql("SELECT id FROM tasks WHERE held AND state = 'cancelled'"):
            self.stage.release(task_id)

    # -- connections and requests

    def connects(self, address: str) -> Conn:
        """A new connection."""
        conn = Conn(self.stage.connect(address), address, self.now)
        self.conns.append(conn)
        return conn

    def conn(self, pick: int) -> Conn:
        """One of the connections; a new one if there is none."""
        return self.conns[pick % len(self.conns)] if self.conns else self.connects(ADDRESSES[0])

    def user(self, pick: int) -> Conn:
        """A connection that is logged in, mostly."""
        if pick == 11:
            return self.conn(pick)
        able = [conn for conn in self.conns if conn.login is not None]
        if able:
            return able[pick % len(able)]
        accounts = list(self.model.accounts.values())
        free = [account for account in accounts if account.password is not None and not account.disabled]
        conn = self.conn(pick)
        if free:
            account = free[pick % len(free)]
            self.logs_in(conn, account.name, account.password or "")
        return conn

    def send(self, conn: Conn, action: str, **fields: Any) -> dict[str, Any]:
        """The reply to a request; a refused login may be answered up to five seconds later."""
        conn.had_line = True
        request_id = conn.client.start(action, **fields)
        for _ in range(round(6 / STEP)):
            conn.read()
            if request_id in conn.replies:
                return conn.replies.pop(request_id)
            conn.late = True
            self.pass_time(STEP)
        raise AssertionError(f"{action} was not answered in time")

    def ask(self, conn: Conn, action: str, kinds: tuple[str, ...] = (), **fields: Any) -> dict[str, Any] | None:
        """The reply to a request. None if this client may not use the action, which the reply must say."""
        refused = self.model.refusal(conn.login, action, kinds)
        reply = self.send(conn, action, **fields)
        if refused is not None:
            self.judge(reply, refused)
            return None
        if conn.login is not None and ACTIONS[action][0] != "anyone":
            conn.login[1].used = self.now
        return reply

    def judge(self, reply: dict[str, Any], *codes: str) -> bool:
        """Assert that the reply is one of these errors, or no error if there are none: the code, or code/status for
        another status than ``error``. Returns whether it is a success."""
        if not codes or ("ok" in codes and reply["ok"]):
            assert reply["ok"], reply
            return True
        assert not reply["ok"], (reply, codes)
        found = reply["code"] if reply["status"] == "error" else f"{reply['code']}/{reply['status']}"
        assert found in codes, (reply, codes)
        assert isinstance(reply["message"], str) and reply["message"], reply
        return False

    # -- sessions

    def logs_in(self, conn: Conn, name: str, password: str) -> None:
        """Try to log in with a password."""
        model, key, at = self.model, name.lower(), self.now
        account = model.accounts.get(key)
        must_wait = model.must_wait(key, conn.address, at)
        reply = self.send(conn, "login", username=name, password=password)
        if must_wait:
            self.judge(reply, "rate_limited")
            assert reply["retry_after"] > 0
            return
        right = account is not None and account.password == password
        model.guessed("login", key, conn.address, right, at)
        if account is None or not right:
            self.judge(reply, "forbidden/wrong_credentials")
            return
        if account.disabled:
            self.judge(reply, "forbidden")
            return
        self.judge(reply)
        assert reply["expires_in"] == SESSION_SECONDS
        assert reply["token"] not in model.tokens
        model.tokens.append(reply["token"])
        if conn.login is not None and conn.login[1].name is None:
            before, session = conn.login
            before.sessions.pop(session.number, None)
        self._logged_in(conn, account, Session(0, reply["token"], conn.address, at + SESSION_SECONDS, at), reply)
        model.audit.append(self.row("login", account, account.key, conn.address))

    def _logged_in(self, conn: Conn, account: Account, session: Session, reply: dict[str, Any]) -> None:
        shown = {"user_id": account.number, "username": account.name, "role": account.shown_role}
        assert shown.items() <= reply.items(), reply
        conn.login = account, session
        conn.watched = None
        if not session.number:
            # only the list of sessions has the number
            [session.number] = [each["id"] for each in self.send(conn, "sessions")["sessions"] if each["current"]]
            assert session.number not in account.sessions
            account.sessions[session.number] = session

    def logs_in_with(self, conn: Conn, token: str) -> None:
        """Try to log in with a token."""
        at = self.now
        found = self.model.by_token(token, at)
        reply = self.send(conn, "login", token=token)
        if found is None:
            self.judge(reply, "auth_required")
            return
        self.judge(reply)
        assert reply["token"] == token and "expires_in" not in reply
        account, session = found
        session.used = at
        self._logged_in(conn, account, session, reply)

    def row(self, action: str, by: Account | None, subject: str, address: str) -> Row:
        """A row of the audit."""
        return Row(action, "" if by is None else by.name, subject, address, 0 if by is None else by.number)

    def strangers(self, conn: Conn) -> None:
        """Nobody is logged in on this connection any more."""
        conn.login = conn.watched = None
        conn.stranger_from = conn.stranger_to = self.now

    def is_valid(self, conn: Conn) -> bool:
        """Whether the session of a connection goes on."""
        assert conn.login is not None
        account, session = conn.login
        return (
            self.model.accounts.get(account.key) is account
            and account.sessions.get(session.number) is session
            and session.is_valid(self.now)
        )

    # -- after each step

    @invariant()
    def everything_is_as_modelled(self) -> None:
        """What has changed takes effect within a second, and then everybody sees what the model says."""
        if not self.model.accounts:
            return  # before the beginning
        self.pass_time(1.0)
        self.beat()
        self._forget_ghosts()
        for conn in tuple(self.conns):
            self._look(conn)
        for conn in self.conns:
            self._compare(conn)
        assert not self.errors.found, self.errors.found
        self.before = self.now

    def _forget_ghosts(self) -> None:
        for task_id, at in tuple(self.model.ghosts.items()):
            if self.now - at > PURGE_SECONDS:
                assert not self.stage.sql("SELECT 1 FROM tasks WHERE id = ?", task_id), "it should have been deleted"
                del self.model.ghosts[task_id]

    def _look(self, conn: Conn) -> None:
        """Read what has come by itself, and see that it had to come."""
        conn.read()
        events, conn.events = conn.events, []
        if conn.login is not None and not self.is_valid(conn):
            ends = [event for event in events if event == {"event": "session_ended"}]
            # a wait may have ended before
            may_be_over = [request_id for request_id, (_, until) in conn.waits.items() if until <= self.now]
            is_active = conn.watched is not None or len(may_be_over) < len(conn.waits)
            assert len(ends) == is_active or (may_be_over and len(ends) == 1), (events, is_active)
            assert not ends or events[-1] in ends, events
            for request_id in conn.waits:
                self.judge(
                    conn.replies.pop(request_id), "auth_required", *(["ok"] if request_id in may_be_over else [])
                )
            conn.waits.clear()
            conn.stranger_from = self.before
            if not conn.client.closed:
                # a session that has ended by its age may end on its connections with the next request only
                assert not self.send(conn, "whoami")["ok"], "the session has ended"
                self.strangers(conn)
                conn.stranger_from = self.before
                return
            conn.login = conn.watched = None
            conn.stranger_to = self.now
        else:
            self._check_events(conn, events)
            self._check_waits(conn)
        assert not conn.replies, conn.replies
        age, most = self.now - conn.stranger_to, LOGIN_SECONDS * (2 if conn.late else 1)
        if conn.client.closed:
            assert conn.login is None and self.now - conn.stranger_from >= LOGIN_SECONDS, "closed without a reason"
            [last] = conn.rest
            self.judge(last, "auth_required")
            self.loses(conn)
        else:
            assert not conn.rest, conn.rest
            assert conn.login is not None or age <= most, "a connection must log in"

    def loses(self, conn: Conn) -> None:
        """The connection is gone."""
        self.conns.remove(conn)
        conn.client.lose_connection()

    def _check_events(self, conn: Conn, events: list[dict[str, Any]]) -> None:
        if conn.watched is None:
            assert not events, events
            return
        assert conn.login is not None
        own = conn.login[0].tasks
        conn.logs.clear()
        for event in events:
            if event["event"] == "task":
                task = event["task"]
                assert task["id"] in own, "a task of somebody else"
                version, _ = conn.watched.get(task["id"], (0, ""))
                assert task["version"] > version, "an old version"
                conn.watched[task["id"]] = task["version"], _stored(task["state"])
            else:
                assert event["event"] in ("log", "progress"), event
                assert event["task_id"] in own, "output of somebody else's task"
                if event["event"] == "log":
                    conn.logs.append((event["task_id"], event["lines"]))
        seen = {number: state for number, (_, state) in conn.watched.items()}
        assert seen == {task.number: task.state for task in own.values()}, "events are missing"

    def _check_waits(self, conn: Conn) -> None:
        for request_id, (wanted, until) in tuple(conn.waits.items()):
            assert conn.login is not None
            tasks = conn.login[0].tasks
            done = not any(tasks[number].is_open for number in wanted)
            reply = conn.replies.pop(request_id, None)
            if reply is None:
                assert not done and self.now <= until + 1, "the wait is over"
                continue
            del conn.waits[request_id]
            self.judge(reply)
            assert reply["done"] is done and (done or self.now >= until), reply
            assert [task["id"] for task in reply["tasks"]] == list(dict.fromkeys(wanted))

    def _compare(self, conn: Conn) -> None:
        """What this client sees."""
        reply = self.ask(conn, "whoami")
        if reply is None:
            self.ask(conn, "get_tasks")
            return
        assert conn.login is not None
        account, session = conn.login
        self.judge(reply)
        shown = {"user_id": account.number, "username": account.name, "role": account.shown_role}
        assert shown.items() <= reply.items(), (reply, shown)
        if (reply := self.ask(conn, "get_tasks", limit=500)) is not None:
            self.judge(reply)
            self.is_list_of(reply, account)
        if (reply := self.ask(conn, "sessions")) is not None:
            found = {each["id"]: each for each in reply["sessions"]}
            valid = [each for each in account.sessions.values() if each.is_valid(self.now)]
            assert list(found) == sorted((each.number for each in valid), reverse=True), (found, valid)
            for each in valid:
                view = found[each.number]
                assert view["current"] is (each is session), view
                scopes = None if each.scopes is None else list(each.scopes)
                assert (view["name"], view["scopes"], view["address"]) == (each.name, scopes, each.address), view
                assert view["ending"] == (None if each.name is None else each.token[-8:]), view
        if (reply := self.ask(conn, "users", limit=500)) is not None:
            assert reply["cursor"] is None
            self._compare_users(reply["users"])
        if (reply := self.ask(conn, "invitations")) is not None:
            valid_ones = [
                (each.number, each.uses_left, each.created_by)
                for each in reversed(self.model.invitations)
                if each.is_valid(self.now)
            ]
            assert [(v["id"], v["uses_left"], v["created_by"]) for v in reply["invitations"]] == valid_ones
        if (reply := self.ask(conn, "audit", limit=5)) is not None:
            done = sum(row["outcome"] == "ok" for row in reply["audit"])
            self.are_rows(reply["audit"], self.model.audit[len(self.model.audit) - done :])

    def are_rows(self, views: list[dict[str, Any]], expected: list[Row]) -> None:
        """Assert that these are the rows of the audit about what was done, the newest first, and perhaps others."""
        shown = [(v["action"], v["actor"], v["subject"], v["address"]) for v in views if v["outcome"] == "ok"]
        assert shown == [(row.action, row.actor, row.subject, row.address) for row in reversed(expected)], views

    def _compare_users(self, users: list[dict[str, Any]]) -> None:
        accounts = sorted(self.model.accounts.values(), key=lambda account: account.key)
        assert [user["username"] for user in users] == [account.name for account in accounts]
        for user, account in zip(users, accounts, strict=True):
            assert user["user_id"] == account.number
            assert (user["role"], user["disabled"]) == (account.shown_role, account.disabled), user
            assert user["weight"] == account.weight
            assert user["has_code"] is (account.code is not None and self.now < account.code_until), user
            if any(session.is_valid(self.now) for session in account.sessions.values()):
                assert user["used_at"] is not None, user

    def is_list_of(self, reply: dict[str, Any], account: Account) -> None:
        """Assert that these are all tasks of this user."""
        tasks = sorted(account.tasks.values(), key=lambda task: -task.number)
        views = [(task["id"], task["task"], task["kind"], task["state"]) for task in reply["tasks"]]
        expected = [(task.number, task.spec["task"], task.kind, task.shown(self.now)) for task in tasks]
        assert views == expected, (views, expected)
        assert reply["status"] == ("success" if tasks else "no_tasks"), reply


def _stored(state: str) -> str:
    """A state without the words that depend on the time."""
    return "waiting" if state in ("scheduled", "retrying", "queued") else state
