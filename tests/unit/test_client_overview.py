"""``overview`` and ``weight``."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskd.cli.ui.text import width
from taskd.model.errors import Forbidden
from tests.unit.test_client_harness import Stage
from tests.unit.test_client_taskd import route


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state").logged_in()


class TestOverview:
    @pytest.fixture
    def busy(self, stage: Stage) -> Stage:
        more = ["delayed", "oldest", "waiting"]
        counts = {"waiting": 10_000, "delayed": 2000, "queued": 7, "running": 93, "rate": 812.5, "oldest": 3725.4}
        stage.taskd.overview["routes"].append(route("thumb\x07nail", queue="slow", **counts, more=more))
        return stage

    def test_a_table(self, busy: Stage) -> None:
        run = busy.run("overview")
        assert run.status == 0
        assert run.out.splitlines() == [
            "QUEUE  KIND           WAITING  DELAYED  QUEUED  RUNNING  SLOTS  PER MINUTE  OLDEST",
            "tasks  simulate             0        0       0        0    100           0  -",
            "slow   thumb\\x07nail   >10000    >2000       7       93    100       812.5  >1h2m5s",
        ]
        assert run.err == "Your tasks; the rate counts the last 2m.\n"

    def test_hung_slots_are_shown(self, stage: Stage) -> None:
        stage.taskd.overview["routes"][0]["hung"] = 3
        head, row = stage.run("overview").out.splitlines()
        assert dict(zip(head.split(), row.split(), strict=False))["HUNG"] == "3"

    def test_an_admin_sees_the_tasks_of_all(self, stage: Stage) -> None:
        stage.taskd.overview |= {"scope": "all", "rate_seconds": 7.4, "more": True}
        assert stage.run("overview").err.splitlines() == [
            "There are more kinds with tasks than are shown.",
            "The tasks of all users; the rate counts the last 7s.",
        ]
        stage.lang = "es"
        run = stage.run("overview")
        assert run.out.startswith("COLA   TIPO ")
        assert run.err.endswith("Las tareas de todos los usuarios; el ritmo es el de los últimos 7s.\n")

    @pytest.mark.parametrize("lang", ["en", "es"])
    @pytest.mark.parametrize("columns", [200, 100, 80, 60, 50])
    def test_no_line_is_wider_than_the_terminal(self, busy: Stage, columns: int, lang: str) -> None:
        busy.lang = lang
        busy.taskd.overview["routes"][0]["hung"] = 3
        lines = busy.run("overview", tty=True, columns=columns).out.splitlines()[:3]
        assert max(map(width, lines)) <= columns
        assert ">10000" in lines[2]

    def test_json_prints_the_reply(self, busy: Stage) -> None:
        run = busy.run("overview", "--json")
        [reply] = run.objects
        assert [found["waiting"] for found in reply["routes"]] == [0, 10_000]
        assert (reply["scope"], run.err) == ("own", "")

    def test_no_work(self, stage: Stage) -> None:
        stage.taskd.overview["routes"].clear()
        run = stage.run("overview")
        assert (run.status, run.out, run.err) == (0, "No tasks, and no worker is connected.\n", "")

    def test_garbage(self, stage: Stage) -> None:
        stage.taskd.overview["routes"] = [{"name": "x"}]
        assert "is not a taskd" in stage.run("overview").err


class TestWeight:
    def test_it_is_set(self, stage: Stage) -> None:
        run = stage.run("weight", "ana", "2.50")
        assert (run.status, run.out) == (0, "ana has the weight 2.5 from now on.\n")
        request = stage.taskd.asked()[-1]
        assert (request["username"], request["weight"]) == ("ana", 2.5)
        stage.lang = "es"
        assert stage.run("weight", "ana", "1000").out == "ana tiene el peso 1000 a partir de ahora.\n"

    def test_json(self, stage: Stage) -> None:
        assert stage.run("weight", "ana", "2", "--json").objects[0]["weight"] == 2

    @pytest.mark.parametrize("weight", ["0", "0.0001", "1001", "nan", "inf", "1e999", "two", ""])
    def test_a_wrong_weight_is_named(self, stage: Stage, capsys: pytest.CaptureFixture[str], weight: str) -> None:
        with pytest.raises(SystemExit) as ended:
            stage.run("weight", "ana", weight)
        assert ended.value.code == 2
        assert f"{weight} is not a weight: a number from 0.001 to 1000" in capsys.readouterr().err

    def test_refusals(self, stage: Stage) -> None:
        run = stage.run("weight", "nobody", "2")
        assert (run.status, run.err.count("\n")) == (1, 1)
        stage.taskd.refusals["set_weight"] = Forbidden("set_weight is only for admins")
        assert stage.run("weight", "ana", "2").err == "taskclient: set_weight is only for admins\n"
        stage.lang = "es"
        assert stage.run("weight", "ana", "2").err.startswith("taskclient: no está permitido: ")

    def test_the_name_of_an_admin_cannot_be_registered(self, stage: Stage) -> None:
        stage.taskd.refusals["register"] = Forbidden("'root' is the name of an admin", field="username")
        run = stage.run("register", "root", lines=["correct horse"])
        assert (run.status, run.err) == (1, "taskclient: 'root' is the name of an admin\n")
        stage.lang = "es"
        assert "administrador" in stage.run("register", "root", lines=["correct horse"]).err
