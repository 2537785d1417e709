"""``taskclient`` with real handlers and programs: progress, logs, attempts and kinds."""

from __future__ import annotations

import itertools
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskd.cli.ui.text import width
from tests.integration.test_client import PASSWORD, Client, Server

HANDLERS = '''
"""Handlers for the tests of the client."""

import asyncio
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import deferLater

from taskd.worker import Reject, handler


@handler("paint", timeout=60)
async def paint(task):
    """Paints walls one by one."""
    walls = task.payload.get("walls", 4)
    for n in range(walls):
        task.log(f"wall {n}")
        task.progress(n / walls, f"wall {n} of {walls}")
        await deferLater(reactor, task.payload.get("pause", 0.3))
    task.progress(1.0, "tidying up")
    return {"painted": walls}


@handler("fragile", max_attempts=1)
def fragile(task):
    """Breaks as long as a file is there."""
    task.log("looking")
    if Path("broken").exists():
        raise RuntimeError("it is broken")
    return "repaired"
'''

PROGRAMS = """
[say]
path = "/bin/echo"
args = ["said:", "{what}"]
summary = "Says it."
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that all tests share."""
    server = make_server(tmp_path_factory.mktemp("server"))
    with server.daemon:
        yield server


def make_server(folder: Path) -> Server:
    """A server with handlers and a program."""
    (folder / "lab.py").write_text(HANDLERS)
    (folder / "programs.toml").write_text(PROGRAMS)
    return Server(folder, options=["--handlers", "lab", "--programs", str(folder / "programs.toml")])


@pytest.fixture
def ana(server: Server, tmp_path: Path) -> Client:
    """A client with the session of a new user."""
    return Client(tmp_path, server.address).log_in()


def created(output: str) -> str:
    """The number of the created task."""
    found = re.match(r"Task (\d+) created", output)
    assert found is not None, output
    return found[1]


class TestProgress:
    def test_lines_in_a_pipe(self, ana: Client) -> None:
        lines = ana.ok("add", "paint", "--wait").splitlines()
        task_id = created(lines[0])
        assert lines[0] == f"Task {task_id} created, of kind paint."
        words = [" ".join(line.split()[1:]) for line in lines[1:]]
        assert f"{task_id} running 50 % paint: wall 2 of 4" in words
        assert words[-1] == f'{task_id} completed paint: {{"painted":4}}'

    def test_bars_on_a_terminal(self, ana: Client) -> None:
        with ana.terminal("add", "the hall", "--kind", "paint", "--wait") as screen:
            before = screen.expect("wall 2 of 4")
            assert "━" in before and "50 %" in before and "\x1b[1A" in before
            screen.expect("completed")
            assert screen.wait() == 0
            assert screen.modes() == screen.before
            assert all(width(re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", line)) < 80 for line in screen.output.splitlines())
            assert screen.output.endswith("\x1b[1A\r\x1b[J") and 'the hall: {"painted":4}' in screen.output

    def test_bars_are_erased_before_other_output(self, ana: Client) -> None:
        with ana.terminal("watch", "--limit", "1") as screen:
            screen.expect("Ctrl-C ends it.")
            ana.ok("add", "the kitchen", "--kind", "paint", "--field", "walls=40")
            screen.expect("━")
            screen.control("c")
            screen.expect("\x1b[1A\r\x1b[J")
            assert "━" not in screen.expect("Interrupted.")
            assert screen.wait() == 130

    def test_a_terminal_that_cannot_move_its_cursor_gets_lines(self, ana: Client) -> None:
        with ana.terminal("add", "the hall", "--kind", "paint", "--wait", TERM="dumb") as screen:
            assert screen.wait() == 0
            assert "\x1b" not in screen.output and "50 %" in screen.output

    def test_the_list_and_the_details(self, ana: Client) -> None:
        task_id = created(ana.ok("add", "paint", "--field", "walls=2", "--field", "pause=12", "--timeout", "30s"))
        with ana.start("watch", "--json") as watch:
            watch.wait_for('"progress":')
        assert "running 0 %" in ana.ok("list")
        details = ana.ok("show", task_id)
        assert "Progress: 0 %  wall 0 of 2" in details and "Timeout:  30s" in details


class TestLog:
    def test_the_log_of_a_task_that_has_ended(self, ana: Client) -> None:
        task_id = created(ana.ok("add", "paint", "--field", "pause=0", "--wait"))
        assert ana.ok("log", task_id).splitlines() == [f"wall {n}" for n in range(4)]
        assert ana.ok("log", task_id, "-n", "1") == "wall 3\n"
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S*  wall 0", ana.ok("log", task_id, "--times").split("\n")[0]
        )
        objects = [json.loads(line) for line in ana.ok("log", task_id, "--json").splitlines()]
        assert [(line["attempt"], line["line"], line["text"]) for line in objects[:1]] == [(1, 1, "wall 0")]

    def test_following_it_to_its_end(self, ana: Client) -> None:
        task_id = created(ana.ok("add", "paint", "--field", "walls=6"))
        with ana.start("log", task_id, "-f") as log:
            assert log.wait(20) == 0
            assert log.output().splitlines() == [f"wall {n}" for n in range(6)]

    def test_following_it_while_the_server_is_killed(self, tmp_path: Path) -> None:
        server = make_server(tmp_path)
        bob = Client(tmp_path, server.address).log_in()
        with server.daemon:
            task_id = created(bob.ok("add", "paint", "--field", "walls=8"))
            with bob.start("log", task_id, "-f") as log:
                log.wait_for("wall 3")
                server.daemon.kill()
                log.wait_for("Connection lost; connecting again ...")
                with server.start():
                    log.wait_for("Connected again.")
                    assert log.wait(60) == 0
        lines = [line for line in log.output().splitlines() if not line.startswith("Connect")]
        # an attempt that was lost with the server does not count: the next one has the same number
        split = lines.index("--- attempt 1 ---")
        first, second = lines[:split], lines[split + 1 :]
        assert first == [f"wall {n}" for n in range(len(first))] and len(first) > 3
        assert second == [f"wall {n}" for n in range(8)]

    def test_ctrl_c(self, ana: Client) -> None:
        task_id = created(ana.ok("add", "paint", "--field", "pause=60"))
        with ana.start("log", task_id, "-f") as log:
            log.wait_for("wall 0")
            assert log.stop(signal.SIGINT, 10) == 130
        ana.ok("cancel", task_id)


class TestTroubleAndKinds:
    def test_a_task_that_fails_is_explained_and_retried(self, server: Server, ana: Client) -> None:
        broken = server.folder / "broken"
        broken.touch()
        added = ana.run("add", "fragile", "--wait")
        assert added.returncode == 5
        task_id = created(added.stdout)
        details = ana.ok("show", task_id)
        assert "Attempt 1 failed:" in details and "it is broken" in details and "Traceback" in details
        assert "It has failed: " in ana.ok("explain", task_id)
        assert f"taskclient retry {task_id}" in ana.ok("explain", task_id, TASKD_LANG="es")
        broken.unlink()
        assert ana.ok("retry", task_id) == f"Task {task_id} will be tried again.\n"
        ana.ok("wait", task_id)
        assert '"repaired"' in ana.ok("show", task_id)
        assert ana.ok("explain", task_id).startswith("It is completed")

    def test_programs(self, ana: Client) -> None:
        added = ana.ok("add", "command:say", "--field", "what=hello", "--wait")
        assert "completed" in added
        assert ana.ok("log", created(added)) == "said: hello\n"

    def test_kinds(self, ana: Client) -> None:
        rows = {line.split()[0]: line for line in ana.ok("kinds").splitlines()}
        assert {"KIND", "paint", "fragile", "simulate", "command:say"} == set(rows)
        assert rows["paint"].endswith("Paints walls one by one.") and "1m" in rows["paint"]
        assert "Says it." in rows["command:say"]
        kinds = [json.loads(line)["kind"] for line in ana.ok("kinds", "--json").splitlines()]
        assert sorted(kinds) == sorted(set(rows) - {"KIND"})

    def test_a_kind_that_nobody_serves_and_a_task_for_later(self, ana: Client) -> None:
        waits = created(ana.ok("add", "x", "--kind", "nobodys"))
        assert "nobodys" in ana.ok("explain", waits)
        assert "Ningún worker atiende el tipo nobodys" in ana.ok("explain", waits, TASKD_LANG="es")
        later = created(ana.ok("add", "in an hour", "--delay", "1h"))
        at = created(ana.ok("add", "next century", "--at", "2030-01-01 08:00"))
        assert "scheduled" in ana.ok("show", later)
        assert "Not before: 2030-01-01 08:00:00+00:00" in ana.ok("show", at)
        assert "Está programada" in ana.ok("explain", later, TASKD_LANG="es")
        ana.ok("cancel", waits, later, at)


def test_the_menu(ana: Client) -> None:
    name = ana.ok("whoami").strip()
    with ana.terminal() as screen:
        screen.answer("Choose an option: ", "2")
        screen.answer("Username: ", name)
        screen.answer("Password: ", PASSWORD)
        screen.answer("Choose an option: ", "2")
        screen.answer("Task: ", "the hall")
        screen.answer("Enter for simulate): ", "paint")
        screen.answer("Enter for none: ", "walls=2 pause=5")
        screen.expect("Task ")
        task_id = screen.expect(" created, of kind paint.")
        screen.answer("Choose an option: ", "1")
        screen.expect("For one of them, by its number: show N")
        for n in itertools.count():
            screen.answer("Choose an option: ", f"show {task_id}")
            if "wall 0 of 2" in screen.expect("Payload:"):
                break
            assert n < 1000
        screen.answer("Choose an option: ", f"log {task_id}")
        screen.expect("wall 0")
        screen.answer("Choose an option: ", f"cancel {task_id}")
        screen.expect(f"Task {task_id} cancelled.")
        screen.answer("Choose an option: ", f"retry {task_id}")
        screen.expect("will be tried again.")
        screen.answer("Choose an option: ", "3")
        screen.answer("Choose an option: ", "3")
        assert screen.wait() == 0
    ana.ok("cancel", task_id)
