"""``quota``: what it shows, and how an admin sets limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskd.model.errors import Forbidden, QuotaExceeded
from tests.unit.test_client_harness import Stage

MIB = 2**20


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state").logged_in()


def test_own_quotas(stage: Stage) -> None:
    run = stage.run("quota")
    assert (run.status, run.err) == (0, "")
    assert run.out.splitlines() == [
        "USED   LIMIT  QUOTA",
        "   3  100000  open tasks",
        "  40       -  tasks in 24 hours",
        "   2   10240  MiB of texts, payloads, results and logs",
    ]
    assert stage.taskd.asked()[-1] == {"action": "quota", "id": stage.taskd.asked()[-1]["id"]}
    stage.lang = "es"
    assert stage.run("quota").out.splitlines()[:2] == ["USADO  LÍMITE  CUOTA", "    3  100000  tareas sin terminar"]


def test_open_tasks_are_not_counted_without_end(stage: Stage) -> None:
    stage.taskd.quotas["open"].update(used=100_001, limit=100_000)
    assert ">100000  100000  open tasks" in stage.run("quota").out
    stage.taskd.quotas["open"].update(limit=0)
    assert ">100000      -  open tasks" in stage.run("quota").out


def test_limits_are_set(stage: Stage) -> None:
    run = stage.run("quota", "ana", "--open", "0", "--daily", "5", "--mib", "12")
    assert run.out.splitlines()[1:] == [
        "   3      -  open tasks (set for this user)",
        "  40      5  tasks in 24 hours (set for this user)",
        "   2     12  MiB of texts, payloads, results and logs (set for this user)",
    ]
    request = stage.taskd.asked()[-1]
    assert (request["action"], request["username"]) == ("set_quota", "ana")
    assert (request["open"], request["daily"], request["mib"]) == (0, 5, 12)
    stage.run("quota", "ana", "--daily", "default")
    request = stage.taskd.asked()[-1]
    assert request["daily"] is None and "open" not in request and "mib" not in request


def test_somebody_elses(stage: Stage) -> None:
    assert stage.run("quota", "ana").status == 0
    assert stage.taskd.asked()[-1]["username"] == "ana"
    assert (stage.run("quota", "nobody").status, stage.run("quota", "x" * 65).status) == (1, 1)


def test_json(stage: Stage) -> None:
    [reply] = stage.run("quota", "--json").objects
    assert reply["bytes"] == {"used": 2 * MIB, "limit": 10240 * MIB, "default": True}


@pytest.mark.parametrize("limit", ["-1", "1.5", "many", "", "1e3", "1000000000001"])
def test_a_wrong_limit_is_named(stage: Stage, capsys: pytest.CaptureFixture[str], limit: str) -> None:
    with pytest.raises(SystemExit) as ended:
        stage.run("quota", "ana", f"--open={limit}")
    assert ended.value.code == 2
    assert f"{limit} is not a limit: a whole number from 0 to 1000000000000, or default" in capsys.readouterr().err


def test_limits_need_a_name(stage: Stage) -> None:
    run = stage.run("quota", "--open", "5")
    assert (run.status, run.err) == (2, "taskclient: whose quota? give the username after the command\n")


def test_refusals(stage: Stage) -> None:
    stage.taskd.refusals["set_quota"] = Forbidden("set_quota is only for admins")
    assert stage.run("quota", "ana", "--open", "5").err == "taskclient: set_quota is only for admins\n"
    stage.taskd.old = True
    assert "older than taskclient" in stage.run("quota").err


def test_a_quota_that_is_used_up(stage: Stage) -> None:
    message = "5 of 5 open tasks: wait until some have ended, or cancel some"
    stage.taskd.refusals["new_task"] = QuotaExceeded(message, retry_after=7200)
    run = stage.run("add", "x")
    assert (run.status, run.err) == (1, f"taskclient: {message}\n")
    stage.lang = "es"
    assert stage.run("add", "x").err == f"taskclient: ha agotado su cuota: {message}\n"
