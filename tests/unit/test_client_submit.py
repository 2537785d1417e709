"""``add``: the requests for a command line or an input, and the output for the replies."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError

from taskd.cli.commands.add import batches
from taskd.cli.context import Context
from taskd.model.errors import QuotaExceeded
from taskd.model.states import State
from taskd.protocol.limits import MAX_LINE_BYTES
from tests.unit.test_client_harness import Stage
from tests.unit.test_client_taskd import NOON


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "state")


class TestAdd:
    def test_one_task(self, stage: Stage) -> None:
        run = stage.logged_in().run("add", "render", "scene", "7")
        assert (run.status, run.out) == (0, "Task 1 created.\n")
        assert stage.taskd.asked()[-1] == {"action": "new_task", "id": 2, "task": "render scene 7", "key": "key1"}

    def test_fields(self, stage: Stage) -> None:
        argv = ["--payload", '{"a": 1, "b": [2]}', "--field", "a=2", "--field", "c=x=y", "--field", 'd="2"']
        more = ["--kind", "thumb", "--queue", "slow", "--max-attempts", "5"]
        assert stage.logged_in().run("add", "x", *argv, *more).status == 0
        request = stage.taskd.asked()[-1]
        assert request["payload"] == {"a": 2, "b": [2], "c": "x=y", "d": "2"}
        assert (request["kind"], request["queue"], request["max_attempts"]) == ("thumb", "slow", 5)

    @pytest.mark.parametrize(
        "argv",
        [
            [],
            ["x", "--payload", "{"],
            ["x", "--payload", "[1]"],
            ["x", "--payload", "NaN"],
            ["x", "--field", "novalue"],
            ["x", "--field", "=1"],
            ["x", "--kind", "a b"],
            ["x", "--wait-timeout", "3"],
            ["x", "--stdin"],
        ],
    )
    def test_a_wrong_command_line(self, stage: Stage, argv: list[str]) -> None:
        run = stage.logged_in().run("add", *argv)
        assert (run.status, len(run.err.splitlines())) == (2, 1)
        assert stage.network.attempts == 1

    @pytest.mark.parametrize("text", [" ", "", "x" * 4097, "\udcff"])
    def test_a_wrong_text(self, stage: Stage, text: str) -> None:
        assert stage.logged_in().run("add", text).status == 1
        assert stage.network.attempts == 1

    def test_a_payload_that_is_too_large(self, stage: Stage) -> None:
        run = stage.logged_in().run("add", "x", "--field", "a=" + "y" * 65536)
        assert run.status == 1
        assert "more than 65536 bytes" in run.err

    def test_lines_of_the_input(self, stage: Stage) -> None:
        run = stage.logged_in().run("add", "-", lines=["one", "", "two"])
        assert (run.status, run.out) == (0, "2 tasks created (1 to 2).\n")
        assert stage.taskd.asked()[-1]["tasks"] == [{"task": "one", "key": "key1:1"}, {"task": "two", "key": "key1:3"}]

    def test_batches_fit_into_lines_and_lists(self, stage: Stage) -> None:
        short = [f"task {n}" for n in range(2500)]
        long = ["é" * 4096] * 20
        run = stage.logged_in().run(
            "add",
            "--stdin",
            lines=short + long,
        )
        assert run.status == 0
        assert [task.task for task in stage.taskd.tasks.values()] == short + long
        sizes = [len(request["tasks"]) for request in stage.taskd.asked()[2:]]
        assert sizes == [1000, 1000, 505, 7, 7, 1]

    def test_json_prints_the_replies(self, stage: Stage) -> None:
        run = stage.logged_in().run("add", "-", "--json", lines=["one", "two"])
        assert [reply["task_ids"] for reply in run.objects] == [[1, 2]]

    def test_a_bad_line_names_its_number_and_what_was_created(self, stage: Stage) -> None:
        run = stage.logged_in().run("add", "-", open=True)
        run.type("one", "two")
        run.type("", "x" * 5000)
        assert run.status == 1
        assert run.err.splitlines() == [
            "2 tasks were created before the error; --key key1 with the same lines continues from there.",
            "taskclient: line 4: a task needs 1 to 4,096 characters, at least one of them visible",
        ]

    def test_lines_are_sent_as_they_arrive(self, stage: Stage) -> None:
        run = stage.logged_in().run("add", "-", open=True)
        run.type("early")
        assert [task.task for task in stage.taskd.tasks.values()] == ["early"]
        assert run.status is None

    def test_an_empty_input(self, stage: Stage) -> None:
        run = stage.logged_in().run("add", "-")
        assert (run.status, run.out) == (0, "")
        assert "nothing created" in run.err

    @pytest.mark.parametrize("option", ["--queue", "--field"])
    def test_bytes_that_are_not_text(self, stage: Stage, option: str) -> None:
        run = stage.logged_in().run("add", "x", option, "a=\udcff")
        assert (run.status, run.out) == (1, "")
        assert "bytes that are not text" in run.err
        assert not stage.taskd.tasks

    @pytest.mark.parametrize(
        ("payload", "statuses"),
        [
            (f'{{"a": {10**400}}}', {0}),
            # The limit of nesting depends on the depth of the stack of the tests
            ('{"a": ' + "[" * 900 + "]" * 900 + "}", {0, 1, 2}),
            ("[" * 5000, {2}),
            (f'{{"a": 1{"0" * 5000}}}', {2}),
            ('{"a": "\\ud800"}', {2}),
        ],
    )
    def test_json_at_its_limits(self, stage: Stage, payload: str, statuses: set[int]) -> None:
        run = stage.logged_in().run("add", "x", "--payload", payload)
        assert run.error is None
        assert run.status in statuses

    def test_a_confirmation_is_printed_while_the_input_is_open(self, stage: Stage) -> None:
        run = stage.logged_in().run("add", "-", "--json", open=True)
        run.type("one")
        assert [reply["task_ids"] for reply in run.objects] == [[1]]
        run.type("two")
        assert [reply["task_ids"] for reply in run.objects] == [[1], [2]]

    def test_an_interruption_reports_what_was_created(self, stage: Stage) -> None:
        run = stage.logged_in().run("add", "-", open=True)
        run.type("one")
        run.cancel()
        assert isinstance(run.error, CancelledError)
        assert (
            run.err == "1 tasks were created before the error; --key key1 with the same lines continues from there.\n"
        )

    def test_a_refused_batch_is_not_counted(self, stage: Stage) -> None:
        run = stage.logged_in().run("add", "-", open=True)
        run.type("one")
        stage.taskd.refusals["new_tasks"] = QuotaExceeded("your share is used up")
        run.type("two")
        run.type("three")
        assert run.status == 1
        assert run.err.startswith("1 tasks were created before the error")
        assert run.err.endswith("\ntaskclient: your share is used up\n")

    def test_the_batches_in_flight_are_bounded(self, stage: Stage) -> None:
        stage.logged_in().taskd.silent.add("new_tasks")
        run = stage.run("add", "-", lines=["x"] * 10_000)
        assert stage.taskd.actions().count("new_tasks") == 4
        run.cancel()


class TestKeys:
    def test_a_chosen_key(self, stage: Stage) -> None:
        run = stage.logged_in().run("add", "pay", "--key", "invoice 17")
        assert (run.status, run.out, run.err) == (0, "Task 1 created.\n", "")
        again = stage.run("add", "pay", "--key", "invoice 17")
        assert (again.status, again.out, again.err) == (0, "Task 1 already exists under this key.\n", "")
        assert len(stage.taskd.tasks) == 1

    def test_a_known_task_is_waited_for_too(self, stage: Stage) -> None:
        stage.logged_in().run("add", "pay", "--key", "k")
        stage.taskd.move(1, State.FAILED, finished_at=NOON)
        assert stage.run("add", "pay", "--key", "k", "--wait").status == 5

    def test_json_prints_the_reply(self, stage: Stage) -> None:
        stage.logged_in().run("add", "pay", "--key", "k")
        (reply,) = stage.run("add", "pay", "--key", "k", "--json").objects
        assert (reply["task_id"], reply["duplicate"]) == (1, True)

    @pytest.mark.parametrize(
        ("lang", "says"),
        [
            ("en", "the key 'k' stands for another task already; use a new one"),
            (
                "es",
                "esa clave ya pertenece a otra tarea; use una nueva: "
                "the key 'k' stands for another task already; use a",
            ),
        ],
    )
    def test_a_key_of_another_task(self, stage: Stage, lang: str, says: str) -> None:
        stage.logged_in().run("add", "pay", "--key", "k")
        stage.lang = lang
        run = stage.run("add", "pay twice", "--key", "k")
        assert run.status == 1
        assert run.err.startswith(f"taskclient: {says}")
        assert len(stage.taskd.tasks) == 1

    @pytest.mark.parametrize(
        ("text", "key", "fits"),
        [
            ("x", "k" * 128, True),
            ("x", "k" * 129, False),
            ("x", "", False),
            ("x", "a\tb", False),
            ("x", "\udcff", False),
            ("-", "k" * 108, True),
            ("-", "k" * 109, False),
        ],
    )
    def test_wrong_keys(self, stage: Stage, text: str, key: str, fits: bool) -> None:
        run = stage.logged_in().run("add", text, "--key", key, lines=["one"])
        assert run.status == (0 if fits else 2)
        assert fits or f"a key has 1 to {108 if text == '-' else 128} printable characters" in run.err
        assert bool(stage.taskd.tasks) is fits

    def test_lines_continue_where_they_were_interrupted(self, stage: Stage) -> None:
        stage.logged_in().run("add", "-", "--key", "k", lines=["one", "", "two"])
        run = stage.run("add", "-", "--key", "k", lines=["one", "", "two", "three", "one"])
        assert run.status == 0
        assert run.out.splitlines() == [
            "2 tasks created (3 to 4).",
            "2 tasks already exist under these keys (1 to 2).",
        ]
        assert list(stage.taskd.keys) == ["k:1", "k:3", "k:4", "k:5"]

    def test_lines_that_are_all_known(self, stage: Stage) -> None:
        stage.logged_in().run("add", "-", "--key", "k", lines=["one"])
        run = stage.run("add", "-", "--key", "k", lines=["one"])
        assert (run.status, run.out) == (0, "Task 1 already exists under this key.\n")

    def test_a_line_whose_key_belongs_to_another_task(self, stage: Stage) -> None:
        stage.logged_in().run("add", "-", "--key", "k", lines=["one", "two"])
        run = stage.run("add", "-", "--key", "k", lines=["one", "other"])
        assert run.status == 1
        assert "'k:2' stands for another task" in run.err

    def test_every_task_has_a_random_key(self, stage: Stage) -> None:
        for _ in range(2):
            assert stage.logged_in().run("add", "same").out == f"Task {len(stage.taskd.tasks)} created.\n"
        key = Context.new_key()
        assert len(key) == 32 and int(key, 16)
        assert key != Context.new_key()


class TestBatches:
    def test_a_request_with_the_largest_batch_fits_into_a_line(self) -> None:
        task = b'{"task":"' + b"x" * 1000 + b'"}'
        sizes = [len(b'{"action":"new_tasks","id":123456789,"tasks":[]}') + sum(len(t) + 1 for t in batch)
                 for batch in batches([task] * 500)]  # fmt: skip
        assert max(sizes) <= MAX_LINE_BYTES
        assert sizes[0] > MAX_LINE_BYTES - 2 * len(task)

    def test_nothing(self) -> None:
        assert list(batches([])) == []
