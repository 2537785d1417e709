"""``add`` with kinds, times and limits, ``show`` with attempts, ``retry``, ``explain`` and ``kinds``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from taskd.cli.texts.reasons import REASONS
from taskd.cli.ui.text import width
from taskd.model.errors import Unavailable
from taskd.model.states import State
from taskd.model.tasks import FailedAttempt
from tests.unit.test_client_harness import Run, Stage
from tests.unit.test_client_taskd import NOON, kind

AT_NOON = NOON.astimezone().isoformat(" ", "seconds")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state").logged_in()


class TestKindOrText:
    def new_task(self, stage: Stage, *argv: str) -> dict[str, Any]:
        run = stage.run("add", *argv)
        assert run.status == 0, run.err
        return stage.taskd.asked()[-1]

    def test_a_word_that_names_a_served_kind(self, stage: Stage) -> None:
        stage.taskd.served.append(kind("thumbnail"))
        run = stage.run("add", "thumbnail", "--field", "album=7")
        assert (run.status, run.out) == (0, "Task 1 created, of kind thumbnail.\n")
        request = stage.taskd.asked()[-1]
        assert (request["kind"], request["task"], request["payload"]) == ("thumbnail", "thumbnail", {"album": 7})

    def test_any_other_word_is_a_text(self, stage: Stage) -> None:
        assert "kind" not in self.new_task(stage, "thumbnail", "--field", "album=7")
        stage.taskd.old = True
        assert "kind" not in self.new_task(stage, "thumbnail")

    @pytest.mark.parametrize("argv", [["make", "thumbnail"], ["make thumbnail"], ["¡ya!"], ["-"]])
    def test_a_text_without_the_form_of_a_kind_needs_no_request(self, stage: Stage, argv: list[str]) -> None:
        assert stage.run("add", *argv, lines=["x"]).status == 0
        assert "kinds" not in stage.taskd.actions()

    def test_a_program_need_not_be_served(self, stage: Stage) -> None:
        request = self.new_task(stage, "command:convert", "--field", "from=a.png")
        assert (request["kind"], request["task"]) == ("command:convert", "command:convert")
        assert "kinds" not in stage.taskd.actions()

    def test_with_the_option_the_words_are_only_text(self, stage: Stage) -> None:
        stage.taskd.served.append(kind("thumbnail"))
        request = self.new_task(stage, "--kind", "simulate", "thumbnail")
        assert (request["kind"], request["task"]) == ("simulate", "thumbnail")
        request = self.new_task(stage, "--kind", "thumbnail")
        assert (request["kind"], request["task"]) == ("thumbnail", "thumbnail")
        assert "kinds" not in stage.taskd.actions()

    def test_errors_of_the_kinds_request(self, stage: Stage) -> None:
        stage.taskd.refusals["kinds"] = Unavailable("the store is away")
        run = stage.run("add", "thumbnail")
        for _ in range(70):
            stage.advance(1)
        assert (run.status, stage.taskd.tasks) == (1, {})


class TestTimesAndLimits:
    def test_what_is_sent(self, stage: Stage) -> None:
        assert stage.run("add", "a b", "--delay", "1h30m", "--timeout", "30s", "--max-attempts", "5").status == 0
        request = stage.taskd.asked()[-1]
        assert (request["delay"], request["timeout"], request["max_attempts"]) == (5400, 30, 5)
        assert stage.taskd.tasks[1].run_at == NOON + timedelta(hours=1.5)
        assert stage.run("add", "a b", "--at", "2026-12-01T08:00Z").status == 0
        assert stage.taskd.asked()[-1]["run_at"] == "2026-12-01T08:00:00+00:00"

    def test_lines_of_the_input_get_the_fields_too(self, stage: Stage) -> None:
        assert stage.run("add", "-", "--delay", "10m", "--kind", "k", lines=["one", "two"]).status == 0
        assert [(task["delay"], task["kind"]) for task in stage.taskd.asked()[-1]["tasks"]] == [(600, "k")] * 2

    @pytest.mark.parametrize("lang", ["en", "es"])
    @pytest.mark.parametrize(
        ("argv", "says"),
        [
            (["--delay", "soon"], ["--delay", "soon", "1h30m"]),
            (["--delay", "\x1b[2J"], ["--delay", "\\x1b[2J"]),
            (["--delay", "99999d"], ["--delay", "99999d", "3660d"]),
            (["--timeout", "0"], ["--timeout", "30s"]),
            (["--timeout", "31d"], ["--timeout", "31d", "30d"]),
            (["--wait", "--wait-timeout", "-1"], ["--wait-timeout"]),
            (["--at", "tomorrow"], ["--at", "tomorrow", "2026-12-01 08:00"]),
            (["--at", "2026-12-01", "--delay", "1"], ["--at", "--delay"]),
            (["--max-attempts", "0"], ["--max-attempts", "0"]),
        ],
    )
    def test_a_wrong_value_is_named(
        self, stage: Stage, capsys: pytest.CaptureFixture[str], lang: str, argv: list[str], says: list[str]
    ) -> None:
        stage.lang = lang
        with pytest.raises(SystemExit) as ended:
            stage.run("add", "x", *argv)
        assert ended.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert all(word in line for word in says), line


class TestShow:
    def test_a_running_task(self, stage: Stage) -> None:
        stage.taskd.task(
            "render", State.RUNNING, attempt=1, max_attempts=0, progress=0.4, note="walls\x07", timeout=90.0
        )
        lines = dict(line.split(":", 1) for line in stage.run("show", "1").out.splitlines())
        assert lines["Progress"].strip() == "40 %  walls\\x07"
        assert lines["Timeout"].strip() == "1m30s"
        assert lines["Attempts"].strip() == "1", "its kind has not said yet how many it may have"

    def test_failed_attempts(self, stage: Stage) -> None:
        stage.taskd.task("render", State.WAITING, attempt=2, run_at=NOON + timedelta(minutes=1), error="ValueError: x")
        trace = 'Traceback (most recent call last):\n  File "a.py", line 1\n\tboo\x1b[2J\nValueError: x\n'
        stage.taskd.failed[1] = [
            FailedAttempt(0, 1, "host-1", NOON, NOON + timedelta(seconds=4), "ValueError: x", trace),
            FailedAttempt(0, 2, "host-2", None, NOON, "the worker was lost", None),
        ]
        lines = stage.run("show", "1").out.splitlines()
        assert lines[lines.index("Attempt 1 failed:") - 1 :] == [
            "",
            "Attempt 1 failed:",
            "  Worker: host-1",
            f"  Ended:  {(NOON + timedelta(seconds=4)).astimezone().isoformat(' ', 'seconds')} (4s)",
            "  Error:  ValueError: x",
            "  Traceback (most recent call last):",
            '    File "a.py", line 1',
            "      boo\\x1b[2J",
            "  ValueError: x",
            "",
            "Attempt 2 failed:",
            "  Worker: host-2",
            f"  Ended:  {AT_NOON}",
            "  Error:  the worker was lost",
        ]
        assert any(line.startswith("Not before:") for line in lines)
        stage.lang = "es"
        assert "El intento 1 falló:" in stage.run("show", "1").out

    def test_the_list_shows_progress(self, stage: Stage) -> None:
        stage.taskd.task("render", State.RUNNING, progress=0.4)
        stage.taskd.task("paint", State.COMPLETED, progress=1.0)
        assert [line.split("  ")[2] for line in stage.run("list").out.splitlines()[1:]] == ["completed", "running 40 %"]
        stage.lang = "es"
        assert "en curso 40 %" in stage.run("list").out


def test_retry_continues_after_a_refusal(stage: Stage) -> None:
    stage.taskd.task("runs", State.RUNNING)
    stage.taskd.task("failed", State.FAILED, finished_at=NOON)
    run = stage.run("retry", "1", "2", "2")
    assert (run.status, run.out) == (1, "Task 2 will be tried again.\n")
    assert run.err == "taskclient: task 1 is running: there is no need to try it again\n"
    assert stage.taskd.tasks[2].state is State.WAITING


class TestExplain:
    FIELDS: dict[str, Any] = {  # noqa: RUF012 (never changed)
        "kind": "thumbnail",
        "queue": "tasks",
        "attempt": 2,
        "max_attempts": 5,
        "run_at": NOON,
        "since": NOON,
        "error": "no disk.\x07",
        "blocked_by": "render of task 12 at lab.py:7.",
        "losses": 2,
        "waits_for": "host:7:ab",
    }

    def explain(self, stage: Stage, code: str, lang: str = "en", **fields: Any) -> str:
        stage.taskd.tasks.clear()
        task = stage.taskd.task()
        stage.taskd.reasons[task.id] = {"state": "waiting", "code": code, "message": "It waits\x07.", **fields}
        stage.lang = lang
        run = stage.run("explain", str(task.id))
        assert (run.status, run.err, run.out.count("\n")) == (0, "", 1)
        return run.out.strip()

    def test_in_english_the_server_explains(self, stage: Stage) -> None:
        assert self.explain(stage, "no_worker", **self.FIELDS) == "It waits\\x07."

    def test_it_recommends_commands_of_the_client(self, stage: Stage) -> None:
        says = self.explain(stage, "failed", **self.FIELDS)
        assert says == (
            "It has failed: no disk.\\x07. To see all its attempts: taskclient show 1."
            " To run it again: taskclient retry 1"
        )

    @pytest.mark.parametrize("code", REASONS)
    def test_in_spanish(self, stage: Stage, code: str) -> None:
        says = self.explain(stage, code, "es", **self.FIELDS)
        assert "It waits" not in says
        if code == "no_worker":
            assert "thumbnail" in says and "cola tasks" in says
        if code == "retrying":
            assert says == f"Falló el intento 2 de 5: no disk.\\x07. Se volverá a intentar, no antes de {AT_NOON}."

    def test_a_blocked_worker_and_a_suspect_in_spanish(self, stage: Stage) -> None:
        assert self.explain(stage, "stalled", "es", **self.FIELDS).endswith("bloqueado: render of task 12 at lab.py:7.")
        assert "(2 veces)" in self.explain(stage, "suspect", "es", **self.FIELDS)

    def test_a_task_that_was_given_back(self, stage: Stage) -> None:
        """The server's message says it already."""
        fields = {**self.FIELDS, "returns": 3}
        assert self.explain(stage, "queued", **fields) == "It waits\\x07."
        assert self.explain(stage, "queued", "es", **fields).endswith(" la han devuelto: 3 veces.")
        assert "devuelto" not in self.explain(stage, "completed", "es", **fields)

    LINE: dict[str, Any] = {  # noqa: RUF012 (never changed)
        **{"queue": "tasks", "slots": 4, "held": 7, "held_by_you": 3, "before_you": 12},
        **{"estimate": 185.0, "basis": "ended_lately", "before_you_more": False},
    }
    TURN = "Espera su turno en la cola tasks. Puestos para ella: 4; tareas que los ocupan: 7, suyas: 3."

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({}, "empiece dentro de aproximadamente 3 minutos, al ritmo al que han terminado sus últimas tareas."),
            (
                {"estimate": 3600.0, "basis": "measured_times"},
                "empiece dentro de aproximadamente 60 minutos, según los tiempos que han medido los workers.",
            ),
            ({"estimate": 0.2, "basis": "magic"}, "empiece dentro de aproximadamente 1 segundo."),
            ({"estimate": 200_000}, "empiece dentro de aproximadamente 2 días, al"),
            ({"estimate": None, "basis": None}, "Aún no se ha medido nada en que basar una estimación."),
        ],
    )
    def test_a_task_in_the_line_in_spanish(self, stage: Stage, fields: dict[str, Any], says: str) -> None:
        text = self.explain(stage, "waiting", "es", **{**self.LINE, **fields})
        assert text.startswith(f"{self.TURN} Tareas suyas que van antes: 12. ")
        assert says in text

    def test_more_in_the_line_than_is_counted(self, stage: Stage) -> None:
        fields = {**self.LINE, "before_you": 10_000, "before_you_more": True, "returns": 1}
        text = self.explain(stage, "waiting", "es", **fields)
        assert "que van antes: más de 10000. Probablemente" in text and "minutos como pronto, " in text
        assert text.endswith("la han devuelto: una vez.")

    def test_a_task_whose_turn_it_is_and_one_without_slots_in_spanish(self, stage: Stage) -> None:
        fields = {**self.LINE, "before_you": 0, "estimate": 0.0, "basis": "free_slots"}
        assert self.explain(stage, "waiting", "es", **fields).endswith("se está asignando a un worker ahora mismo.")
        text = self.explain(stage, "waiting", "es", **{**self.LINE, "slots": 0, "estimate": None, "basis": None})
        assert "ningún worker que la atiende puede tomar tareas ahora. Tareas suyas que van antes: 12." in text

    def test_a_task_in_the_line_in_english_and_of_an_older_server(self, stage: Stage) -> None:
        assert self.explain(stage, "waiting", **self.LINE) == "It waits\\x07."
        assert self.explain(stage, "waiting", "es", queue="tasks").startswith("Espera su turno en la cola tasks: hay")

    @pytest.mark.parametrize("code", ["paused", "running", "retrying", "failed", "stalled", "suspect"])
    def test_unknown_codes_and_fields(self, stage: Stage, code: str) -> None:
        assert self.explain(stage, code, "es", error=None, since=None, losses=0) == "It waits\\x07."

    def test_json(self, stage: Stage) -> None:
        stage.taskd.task()
        stage.taskd.reasons[1] = {"state": "queued", "code": "queued", "message": "x"}
        assert stage.run("explain", "1", "--json").objects[0]["code"] == "queued"

    def test_a_task_that_does_not_exist(self, stage: Stage) -> None:
        assert stage.run("explain", "7").err == "taskclient: you have no task 7\n"


class TestKinds:
    @pytest.fixture(autouse=True)
    def served(self, stage: Stage) -> None:
        more = {"queues": ["tasks", "slow"], "isolation": "process", "timeout": 90.0, "max_attempts": 5}
        stage.taskd.served.append(kind("thumbnail", workers=12, summary="Makes\x07 pictures small.", **more))

    def test_a_table(self, stage: Stage) -> None:
        run = stage.run("kinds")
        assert run.status == 0
        assert run.out.splitlines() == [
            "KIND       QUEUES       RUNS AS  TIMEOUT  ATTEMPTS  WORKERS  SLOTS  WHAT IT DOES",
            "simulate   tasks        async    -               3        1    100  Waits.",
            "thumbnail  tasks, slow  process  1m30s           5       12    100  Makes\\x07 pictures small.",
        ]

    def test_blocked_workers_and_hung_slots_are_shown(self, stage: Stage) -> None:
        stage.taskd.served[1] |= {"hung": 2, "stalled": 1}
        stage.taskd.served.pop(0)
        head, row = stage.run("kinds").out.splitlines()
        assert head.split()[-6:] == ["BLOCKED", "SLOTS", "HUNG", "WHAT", "IT", "DOES"]
        assert row.split()[-7:-3] == ["12", "1", "100", "2"]

    @pytest.mark.parametrize("troubled", [False, True])
    @pytest.mark.parametrize("lang", ["en", "es"])
    @pytest.mark.parametrize("columns", [200, 100, 80, 60, 50, 40])
    def test_no_line_is_wider_than_the_terminal(self, stage: Stage, columns: int, lang: str, troubled: bool) -> None:
        stage.lang = lang
        if troubled:
            stage.taskd.served[1] |= {"hung": 2, "stalled": 1}
        lines = stage.run("kinds", tty=True, columns=columns).out.splitlines()
        assert len(lines) == 3
        assert max(map(width, lines)) <= columns
        assert lines[2].startswith("thumbnail")

    def test_json_prints_one_kind_per_line(self, stage: Stage) -> None:
        assert [line["kind"] for line in stage.run("kinds", "--json").objects] == ["simulate", "thumbnail"]

    def test_no_worker(self, stage: Stage) -> None:
        stage.taskd.served.clear()
        run: Run = stage.run("kinds")
        assert (run.status, run.out) == (0, "No worker is connected, so no kind of task is served now.\n")

    def test_garbage(self, stage: Stage) -> None:
        stage.taskd.served[0] = {"name": "x"}
        assert "is not a taskd" in stage.run("kinds").err
