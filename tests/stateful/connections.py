"""Rules: connect, disconnect, wrong lines, pipelines, time."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.stateful.base import ADDRESSES, MOST_CONNECTIONS, Base, picks
from tests.stateful.model import ACTIONS, ADMIN, DAY, LOCAL, NEVER, USER

# What some actions need to be understood; ids that nobody has. No request of these changes anything.
FIELDS: dict[str, dict[str, object]] = {
    "set_weight": {"username": "nobody", "weight": 2},
    "change_password": {"password": "x", "new_password": "something long"},
    "delete_account": {"password": "x"},
    "end_session": {"session_id": 10**12},
    "new_token": {"name": "n"},
    "set_role": {"username": "ana", "role": "admin"},
    "set_disabled": {"username": "ana", "disabled": True},
    "reset_password": {"username": "ana"},
    "end_user_sessions": {"username": "ana"},
    "end_invitation": {"invitation_id": 10**12},
    "new_task": {"task": "t", "kind": "sculpt"},
    "new_tasks": {"tasks": [{"task": "t", "kind": "simulate"}, {"task": "t", "kind": "sculpt"}]},
    "get_task": {"task_id": 10**12},
    "cancel_task": {"task_id": 10**12},
    "retry_task": {"task_id": 10**12},
    "explain": {"task_id": 10**12},
    "get_log": {"task_id": 10**12},
    "set_quota": {"username": "ana", "open": 1},
    "wait": {"task_ids": [10**12]},
}
KNOCKED = sorted(name for name, (who, scope) in ACTIONS.items() if who in (USER, ADMIN, LOCAL) or scope == NEVER)

LONG = b'{"action":"ping","padding":"' + b"x" * 65_536 + b'"}'
LINES: dict[bytes, tuple[str | None, str]] = {
    b"not json": (None, "bad_json"),
    b"": (None, "bad_json"),
    b"[1]": (None, "bad_json"),
    b'{"action":"ping"': (None, "bad_json"),
    b'{"action":"ping"} {}': (None, "bad_json"),
    b'{"action":"ping","x":"\xff"}': (None, "bad_json"),
    b'{"action":"fly","id":"odd"}': ("odd", "unknown_action"),
    b'{"id":"odd"}': ("odd", "bad_request"),
    b'{"action":7,"id":"odd"}': ("odd", "bad_request"),
    b'{"action":"ping","id":[1]}': (None, "bad_request"),
    b'{"action":"get_task","id":"odd","task_id":"one"}': ("odd", "bad_request"),
    LONG: (None, "too_large"),
}
"""Wrong lines, the id of the reply and its code."""


class ConnectionRules(Base):
    """What clients do with connections."""

    @precondition(lambda self: len(self.conns) < MOST_CONNECTIONS)
    @rule(address=st.sampled_from(ADDRESSES))
    def connect(self, address: str) -> None:
        """A client connects."""
        self.connects(address)

    @precondition(lambda self: len(self.conns) > 3)
    @rule(pick=picks)
    def disconnect(self, pick: int) -> None:
        """A client goes away without a word."""
        self.loses(self.conn(pick))

    @rule(pick=picks, line=st.sampled_from(sorted(LINES)))
    def send_wrong_line(self, pick: int, line: bytes) -> None:
        """A wrong line is answered. As the first one it ends the connection if it does not begin an object, or is too
        long."""
        conn = self.conn(pick)
        request_id, code = LINES[line]
        if conn.waits and request_id is None:
            return  # its answer waits for theirs
        closes = not conn.had_line and (not line.startswith(b"{") or code == "too_large")
        conn.had_line = True
        conn.client.send(line)
        conn.read()
        reply = conn.rest.pop() if request_id is None else conn.replies.pop(request_id)  # type: ignore[call-overload]
        self.judge(reply, code)
        assert conn.client.closed is closes, (line, closes)
        if closes:
            assert not conn.rest
            self.loses(conn)

    @rule(pick=picks)
    def send_pipeline(self, pick: int) -> None:
        """Requests without an id are answered one after the other."""
        conn = self.user(pick)
        if conn.waits:
            return
        conn.had_line = True
        conn.client.send({"action": "ping"}, {"action": "whoami"}, {"action": "fly"}, {"action": "hello"})
        conn.read()
        replies, conn.rest = conn.rest, []
        assert [reply.get("code") for reply in replies] == [
            None,
            None if conn.login else "auth_required",
            "unknown_action",
            None,
        ]
        assert ("node" in replies[3]) is (conn.login is not None)

    @precondition(lambda self: len(self.conns) > 3)
    @rule(pick=picks)
    def half_close(self, pick: int) -> None:
        """A client that has sent its last request gets the answer before the connection is closed."""
        conn = self.conn(pick)
        if conn.active:
            return
        conn.client.connection.dataReceived(b'{"action":"whoami","id":"last"}\n')
        conn.client.half_close()
        conn.read()
        reply = conn.replies.pop("last")  # type: ignore[call-overload]
        self.judge(reply, *([] if conn.login else ["auth_required"]))
        assert conn.client.closed
        self.loses(conn)

    @rule(pick=picks, action=st.sampled_from(KNOCKED))
    def knock(self, pick: int, action: str) -> None:
        """Try what this client may not do."""
        conn = self.user(pick)
        kinds = ("simulate", "sculpt") if action == "new_tasks" else ("sculpt",)
        if self.model.refusal(conn.login, action, kinds) is None or conn.waits:
            return
        assert self.ask(conn, action, kinds, **FIELDS.get(action, {})) is None

    @rule(seconds=st.sampled_from([1.0, 5.0, 12.0, 31.0, 61.0]))
    def let_time_pass(self, seconds: float) -> None:
        """Some seconds pass."""
        self.pass_time(seconds)

    @rule(times=st.sampled_from([1, 1, 1, 3]))
    def let_days_pass(self, times: int) -> None:
        """Days pass, and ten seconds more, in which sessions that are too old end on their connections, too."""
        for _ in range(times):
            self.beat()
            self.stage.clock.advance(2.5 * DAY)
            self.pass_time(11.0)
            for conn in self.conns:
                if conn.login is not None and conn.active and self.is_valid(conn):
                    conn.login[1].used = self.now
