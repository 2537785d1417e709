"""What admins and operators do with the accounts of others, and the audit."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from taskd.cli.ui.text import width
from taskd.model.errors import Forbidden
from tests.unit.test_client_harness import Stage
from tests.unit.test_client_taskd import NOON

NASTY = "\x1b[2J\u202ex"
SHOWN = "\\x1b[2J\\u202ex"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path / "state").logged_in()
    stage.taskd.roles["ana"] = "admin"
    stage.taskd.passwords["bob"] = "correct horse"
    return stage


def row(row_id: int, **fields: Any) -> dict[str, Any]:
    """A row of the audit."""
    entry = {"action": "login", "outcome": "ok", "actor": "Ana", "subject": "ana", "address": "192.0.2.1"}
    return {"id": row_id, "at": NOON, **entry, "number": 1, "details": None, **fields}


class TestUsers:
    def test_a_table(self, stage: Stage) -> None:
        stage.taskd.passwords["eve"] = ""
        stage.taskd.disabled.add("bob")
        stage.taskd.codes["eve"] = "ABCD-EFGH"
        run = stage.run("users")
        assert run.status == 0
        assert run.out.splitlines() == [
            "ROLE   ACCOUNT     WEIGHT  CREATED     LAST USED  USER",
            "admin  active           1  2025-03-01  0 s        ana",
            "user   disabled         1  2025-03-01  -          bob",
            "user   has a code       1  2025-03-01  -          eve",
        ]

    def test_pages(self, stage: Stage) -> None:
        for n in range(1200):
            stage.taskd.passwords[f"user{n}"] = ""
        assert [user["user_id"] for user in stage.run("users", "--all", "--json").objects] == list(range(1, 1203))
        assert len(stage.taskd.asked()) == 4
        run = stage.run("users", "--limit", "2")
        assert (len(run.out.splitlines()), run.err) == (3, "There are more: --limit N or --all\n")

    def test_changes(self, stage: Stage) -> None:
        assert stage.run("users", "set-role", "bob", "operator").out == "bob has the role operator from now on.\n"
        assert stage.taskd.roles["bob"] == "operator"
        assert stage.run("users", "disable", "bob").out.startswith("bob is disabled;")
        assert stage.taskd.disabled == {"bob"}
        assert stage.run("users", "enable", "bob").out == "bob is enabled again.\n"
        assert stage.taskd.disabled == set()
        stage.taskd.user("bob")
        assert stage.run("users", "end-sessions", "bob").out == "Sessions and API tokens ended: 1.\n"
        stage.lang = "es"
        assert stage.run("users", "disable", "bob").out.startswith("bob queda con la cuenta bloqueada")

    def test_a_code_is_alone_on_standard_output(self, stage: Stage) -> None:
        run = stage.run("users", "reset-password", "bob")
        assert (run.status, run.out) == (0, "ABCD-EFGH\n")
        assert "valid for 1d." in run.err
        assert run.err.endswith("bob sets a new password: taskclient passwd --code bob\n")
        run = stage.run("users", "reset-password", "bob", "--json")
        assert (run.objects[0]["code"], run.err) == ("ABCD-EFGH", "")

    @pytest.mark.parametrize("verb", ["disable", "reset-password", "end-sessions"])
    def test_an_unknown_user(self, stage: Stage, verb: str) -> None:
        run = stage.run("users", verb, "nobody")
        assert (run.status, run.err) == (1, "taskclient: there is no such user\n")
        assert stage.run("users", verb, " ").err.startswith("taskclient: a username has 1 to 64 visible")

    def test_a_wrong_role(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            stage.run("users", "set-role", "bob", "king")
        assert "invalid choice: 'king'" in capsys.readouterr().err

    def test_only_for_admins(self, stage: Stage) -> None:
        stage.taskd.refusals["users"] = Forbidden("users is only for admins")
        run = stage.run("users")
        assert (run.status, run.err) == (1, "taskclient: users is only for admins\n")

    def test_the_tasks_of_a_user(self, stage: Stage) -> None:
        stage.taskd.task("one")
        assert "one" in stage.run("list", "--user", "bob").out
        assert stage.taskd.asked()[-1]["username"] == "bob"
        stage.run("list")
        assert "username" not in stage.taskd.asked()[-1]


class TestInvitations:
    def test_an_invitation_is_alone_on_standard_output(self, stage: Stage) -> None:
        run = stage.run("invite", "--uses", "20", "--days", "3")
        assert (run.status, run.out) == (0, "welcome-1\n")
        assert "Uses: 20; valid for 3d." in run.err
        assert run.err.endswith("taskclient register --invitation\n")
        stage.run("invite")
        assert set(stage.taskd.asked()[-1]) == {"action", "id"}

    def test_the_list(self, stage: Stage) -> None:
        assert stage.run("invitations").out == "No invitations.\n"
        expires = NOON + timedelta(days=7)
        stage.taskd.invitations = [
            {"id": 3, "uses_left": 20, "created_by": NASTY, "created_at": NOON, "expires_at": expires}
        ]
        assert stage.run("invitations").out.splitlines() == [
            "ID  USES LEFT  CREATED     EXPIRES     MADE BY",
            f" 3         20  2025-03-01  2025-03-08  {SHOWN}",
        ]
        assert stage.run("invitations", "--json").objects[0]["id"] == 3
        assert stage.run("invitations", "--end", "3").out == "Invitation 3 withdrawn.\n"
        assert stage.run("invitations", "--end", "3").err == "taskclient: there is no invitation 3\n"

    def test_too_many_uses(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            stage.run("invite", "--uses", "10001")
        assert "an invitation has at most 10000 uses" in capsys.readouterr().err


class TestAudit:
    def test_a_table(self, stage: Stage) -> None:
        stage.taskd.audit = [
            row(12, action="set_role", subject="bob", details="operator"),
            row(11, outcome="forbidden", actor="", subject="eve", address=None, number=40),
        ]
        run = stage.run("audit")
        assert run.status == 0
        heads, first, second = run.out.splitlines()
        assert heads.split() == ["TIME", "ACTION", "OUTCOME", "TIMES", "BY", "ACCOUNT", "ADDRESS", "DETAILS"]
        assert first.split()[2:] == ["set_role", "ok", "1", "Ana", "bob", "192.0.2.1", "operator"]
        assert second.split()[2:] == ["login", "forbidden", "40", "-", "eve", "-"]
        assert [entry["id"] for entry in stage.run("audit", "--json").objects] == [12, 11]

    def test_filters(self, stage: Stage) -> None:
        stage.taskd.audit = [row(12), row(11, action="register")]
        run = stage.run("audit", "--user", "bob", "--action", "register", "--limit", "5", "--json")
        assert [entry["id"] for entry in run.objects] == [11]
        request = stage.taskd.asked()[-1]
        assert (request["username"], request["action_name"], request["limit"]) == ("bob", "register", 5)
        assert stage.run("audit", "--action", "logout").out == "Nothing in the audit.\n"

    def test_texts_cannot_control_the_terminal(self, stage: Stage) -> None:
        names = ("action", "outcome", "actor", "subject", "address", "details")
        stage.taskd.audit = [row(1, **dict.fromkeys(names, NASTY))]
        out = stage.run("audit", tty=True, columns=200).out
        assert out.count(SHOWN) == len(names)
        assert not set(NASTY[0] + NASTY[4]) & set(out)

    @pytest.mark.parametrize("lang", ["en", "es"])
    @pytest.mark.parametrize("columns", [200, 100, 80, 60])
    def test_no_line_is_wider_than_the_terminal(self, stage: Stage, columns: int, lang: str) -> None:
        stage.lang = lang
        stage.taskd.audit = [row(1, address="2001:db8::1", details="a long text " * 9)]
        for argv in (["audit"], ["users"]):
            assert max(map(width, stage.run(*argv, tty=True, columns=columns).out.splitlines())) <= columns
