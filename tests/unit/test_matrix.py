"""Who may do what: every action of the registry, asked by everybody."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from taskd.protocol.actions import ACTIONS
from tests.unit.stage import PASSWORD, Client, Stage, now

NEW_PASSWORD = "another horse battery"

WHO = ("stranger", "owner", "other", "disabled", "token", "operator", "admin")
"""``owner`` has the task, the session and the account that the request names; ``other`` is another user; ``disabled``
was disabled after its login; ``token`` is the owner with an API token that may only read."""


class Row(NamedTuple):
    """What each of WHO gets: ``ok``, or the code of the error. ``fields`` are those of a request that is right in all
    else; ``$task`` and ``$session`` stand for the owner's."""

    stranger: str
    owner: str
    other: str
    token: str
    operator: str
    admin: str
    fields: dict[str, Any]


def _anyone(**fields: Any) -> Row:
    return Row("ok", "ok", "ok", "ok", "ok", "ok", fields)


def _nobody(**fields: Any) -> Row:
    return Row("forbidden", "forbidden", "forbidden", "forbidden", "forbidden", "forbidden", fields)


def _own(token: str = "ok", **fields: Any) -> Row:
    """A user does it with what is its own, whatever the role."""
    return Row("auth_required", "ok", "ok", token, "ok", "ok", fields)


def _task(other: str, above: str, token: str) -> Row:
    """``above`` is what operators and admins get for a task of somebody else."""
    return Row("auth_required", "ok", other, token, above, above, {"task_id": "$task"})


def _admin(**fields: Any) -> Row:
    return Row("auth_required", "forbidden", "forbidden", "forbidden", "forbidden", "ok", fields)


MATRIX: dict[str, Row] = {
    "hello": _anyone(),
    "ping": _anyone(),
    "health": _nobody(),  # none of them is on the server's machine
    "register": _anyone(username="new", password=PASSWORD),
    "login": _anyone(username="owner", password=PASSWORD),
    "set_password": _nobody(username="owner", code="X", new_password=NEW_PASSWORD),  # the code is wrong
    "logout": _own(),
    "whoami": _own(),
    "change_password": _own("forbidden", password=PASSWORD, new_password=NEW_PASSWORD),
    "totp_begin": _own("forbidden", password=PASSWORD),
    "totp_confirm": Row(
        "auth_required", "conflict", "conflict", "forbidden", "conflict", "conflict", {"code": "000000"}
    ),  # nobody has begun
    "totp_off": Row(
        "auth_required",
        "conflict",
        "conflict",
        "forbidden",
        "conflict",
        "conflict",
        {"password": PASSWORD, "code": "000000"},
    ),  # nobody has a second factor
    "delete_account": Row(
        "auth_required", "ok", "ok", "forbidden", "ok", "conflict", {"password": PASSWORD}
    ),  # there is no other admin
    "sessions": _own("forbidden"),
    "end_session": Row(
        "auth_required", "ok", "not_found", "forbidden", "not_found", "not_found", {"session_id": "$session"}
    ),
    "end_sessions": _own("forbidden"),
    "new_token": _own("forbidden", name="n"),
    "new_task": _own("forbidden", task="x"),
    "new_tasks": _own("forbidden", tasks=[{"task": "x"}]),
    "get_tasks": _own(),
    "get_task": _task("not_found", "ok", "ok"),
    "explain": _task("not_found", "ok", "ok"),
    "get_log": _task("not_found", "ok", "ok"),
    "cancel_task": _task("not_found", "not_found", "forbidden"),
    "retry_task": Row(
        "auth_required", "conflict", "not_found", "forbidden", "not_found", "not_found", {"task_id": "$task"}
    ),  # it has not ended
    "wait": Row(
        "auth_required", "ok", "not_found", "ok", "not_found", "not_found", {"task_ids": ["$task"], "timeout": 0}
    ),
    "kinds": _own(),
    "overview": _own(),
    "watch": _own(),
    "unwatch": _own(),
    "quota": _own(),
    "set_quota": _admin(username="owner", open=5),
    "set_weight": _admin(username="owner", weight=2),
    "users": _admin(),
    "set_role": _admin(username="owner", role="operator"),
    "set_disabled": _admin(username="owner", disabled=True),
    "reset_password": _admin(username="owner"),
    "reset_totp": _admin(username="owner"),
    "end_user_sessions": _admin(username="owner"),
    "invite": _admin(),
    "invitations": _admin(),
    "end_invitation": Row(
        "auth_required", "forbidden", "forbidden", "forbidden", "forbidden", "not_found", {"invitation_id": 1}
    ),
    "audit": _admin(),
}


class World:
    """A server with one of each."""

    def __init__(self) -> None:
        self.stage = Stage()
        self.clients: dict[str, Client] = {"stranger": self.stage.connect()}
        for name in ("owner", "other", "operator", "root"):
            self.clients[name] = self.stage.client(name) if name != "root" else self.stage.admin()
        admin = self.clients["admin"] = self.clients.pop("root")
        # an admin by its role, not by the settings alone
        now(self.stage.other_store.set_role("root", _role("admin")))
        assert admin.ask("set_role", username="operator", role="operator")["ok"]
        owner = self.clients["owner"]
        self.task = owner.ask("new_task", task="x")["task_id"]
        self.session = owner.ask("sessions")["sessions"][0]["id"]
        token = owner.ask("new_token", name="reads", scopes=["tasks:read"])["token"]
        reader = self.clients["token"] = self.stage.connect()
        assert reader.ask("login", token=token)["ok"]
        disabled = self.clients["disabled"] = self.stage.client("disabled")
        assert admin.ask("set_disabled", username="disabled", disabled=True)["ok"]
        assert disabled.transport.connected

    def fields(self, row: Row) -> dict[str, Any]:
        """The fields of a request."""
        known = {"$task": self.task, "$session": self.session}
        found = {}
        for name, value in row.fields.items():
            one = isinstance(value, list) and value and isinstance(value[0], str)
            found[name] = [known.get(each, each) for each in value] if one else _lookup(known, value)
        return found


def _lookup(known: dict[str, Any], value: Any) -> Any:
    return known.get(value, value) if isinstance(value, str) else value


def _role(name: str) -> Any:
    from taskd.model.users import Role

    return Role(name)


def test_every_action_has_a_row() -> None:
    assert sorted(MATRIX) == sorted(ACTIONS)


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_who_may_do_it(name: str) -> None:
    row = MATRIX[name]
    found = {}
    for who in WHO:
        world = World()
        reply = world.clients[who].ask(name, **world.fields(row))
        found[who] = "ok" if reply["ok"] else reply["code"]
        world.stage.close()
    # a disabled user is like a stranger from the moment on
    wanted = {who: getattr(row, "stranger" if who == "disabled" else who) for who in WHO}
    assert found == wanted
