"""README.md, README.es.md, CONTRIBUTING.md and docs/: the examples run, and the lists agree with the code.

test_protocol_doc.py tests docs/protocol.md.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from twisted.python import usage

from taskd.cli.texts.catalogue import LANGUAGES, Texts
from taskd.config import declarations, docs
from taskd.config.reading import read_settings
from taskd.server.tap import Options as ServerOptions
from taskd.store import migrations
from taskd.worker.tap import Options as WorkerOptions
from tests import services
from tests.daemons import Daemon, eventually, free_port
from tests.integration.terminal import Terminal
from tests.integration.test_protocol_doc import Bindings, compare
from tests.processes import clean_environment

ROOT = Path(__file__).resolve().parents[2]
README, README_ES, CONTRIBUTING = ROOT / "README.md", ROOT / "README.es.md", ROOT / "CONTRIBUTING.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
SETTINGS = ROOT / "docs" / "settings.md"
OPERATIONS, HANDLERS = ROOT / "docs" / "operations.md", ROOT / "docs" / "handlers.md"
PAGES = [
    README,
    README_ES,
    CONTRIBUTING,
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]

PASSWORD = "correct horse"
QUESTIONS = [
    Texts(lang)(key)
    for lang in LANGUAGES
    for key in ("username", "password", "password_again", "menu.choose", "menu.task")
]

# Parts of a transcript that differ each run.
VARIABLE = [
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "DATE"),
    (re.compile(r"^\d\d:\d\d:\d\d "), "TIME "),
    (re.compile(r"\b\d+ s\b"), "AGE"),
    (re.compile(r" {2,}"), "  "),
]

RUNNING = re.compile(r"\d\d:\d\d:\d\d +\d+ +(running|en curso) ")
READING = re.compile(r"bin/taskclient (list|show)\b")
READING_SECONDS = 10.0

# netcat has several incompatible versions, so this one replaces it: it sends, closes that direction, and prints.
NETCAT = """#!{python}
import shutil, socket, sys
assert sys.argv[1:] == ["-N", "127.0.0.1", "5000"], sys.argv
with socket.create_connection(("127.0.0.1", {port}), 20) as connection:
    connection.sendall(sys.stdin.buffer.read())
    connection.shutdown(socket.SHUT_WR)
    shutil.copyfileobj(connection.makefile("rb"), sys.stdout.buffer)
"""


class Step(NamedTuple):
    """A command of a transcript, and the lines that it shows, with the answers to its questions."""

    command: str
    shown: list[str]


class Start(NamedTuple):
    """``make run``, with the variables before it."""

    variables: dict[str, str]


class Module(NamedTuple):
    """The text of the module ``lab.py``."""

    text: str


def actions(page: str) -> Iterator[Step | Start | Module]:
    """What a reader of the page does, in the order of the page."""
    for language, block in re.findall(r"^```(console|sh|python)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if language == "python":
            yield Module(block)
        elif language == "sh":
            for variables in re.findall(r"^((?:\w+=\S+ )*)make run\b", block, re.MULTILINE):
                yield Start(dict(variable.split("=", 1) for variable in variables.split()))
        else:
            yield from transcript(block)


def transcript(block: str) -> Iterator[Step]:
    """The commands of a ``console`` block."""
    first, *steps = re.split(r"^\$ ", block, flags=re.MULTILINE)
    assert not first, f"a block does not begin with a command: {first!r}"
    for step in steps:
        command, *shown = step.rstrip("\n").split("\n")
        yield Step(command, shown)


class Stage:
    """A server, and the terminal of a user who has just made a checkout."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self._folder = folder
        self._daemon: Daemon | None = None
        programs = folder / "programs"
        programs.mkdir()
        netcat = programs / "nc"
        netcat.write_text(NETCAT.format(python=sys.executable, port=self._port))
        netcat.chmod(0o755)
        (folder / "bin").symlink_to(ROOT / "bin")
        path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        self._env = clean_environment(
            PATH=os.pathsep.join(path),
            HOME=str(folder),
            TASKD_SERVER=f"127.0.0.1:{self._port}",
            TERM="dumb",
            TZ="UTC",
            LANG="C.UTF-8",
        )
        for name in ("LC_ALL", "LC_MESSAGES", "XDG_STATE_HOME", "COLUMNS", "PYTHONIOENCODING"):
            self._env.pop(name, None)

    def start(self, start: Start) -> None:
        """Stop the server if it runs, and start it with these variables."""
        self.stop()
        listen = f"tcp:{self._port}:interface=127.0.0.1"
        # The shipped cost of a hash would take most of the time of this test.
        variables = {"TASKD_BCRYPT_ROUNDS": "4", **start.variables}
        self._daemon = Daemon.twistd("taskserver", ["--listen", listen], variables, cwd=self._folder)
        self._daemon.wait_for("is ready on port")
        if start.variables:
            self._daemon.wait_for(": a worker serves it")

    def stop(self) -> None:
        """End the server in order. Raises AssertionError if it logged a traceback."""
        if (daemon := self._daemon) is not None:
            self._daemon = None
            with daemon:
                daemon.send(signal.SIGTERM)
                eventually(lambda: daemon.returncode is not None or "seconds to end" in daemon.output())
                # A second signal gives the running tasks back at once
                assert daemon.terminate() == 0
                assert "Traceback" not in daemon.output()

    def write(self, module: Module) -> None:
        """Write ``lab.py`` into the folder of the server."""
        (self._folder / "lab.py").write_text(module.text, "utf-8")

    def run(self, step: Step) -> list[str]:
        """Run a command, answer its questions as the transcript does, and give the lines that it shows."""
        if found := re.fullmatch(r"export (\w+)=(\S+)", step.command):
            self._env[found[1]] = found[2]
            return []
        with Terminal(["bash", "-c", step.command], env=self._env, cwd=self._folder) as terminal:
            for line in step.shown:
                for question in QUESTIONS:
                    if line == question.rstrip() or re.fullmatch(rf"{re.escape(question)}\S.*", line):
                        terminal.answer(question, line[len(question) :] or PASSWORD)
            terminal.wait(30)
            text = terminal.output.replace(f"127.0.0.1:{self._port}", "127.0.0.1:5000")
        return text.replace("\r\n", "\n").rstrip("\n").split("\n")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A stage whose server ends with the test."""
    stage = Stage(tmp_path)
    yield stage
    stage.stop()


def normal(line: str) -> str:
    """A line without the parts that differ each run."""
    for pattern, name in VARIABLE:
        line = pattern.sub(name, line.rstrip())
    return line


@pytest.mark.parametrize(
    ("page", "programs"),
    [(README, {"bin/taskclient"}), (README_ES, {"bin/taskclient"}), (TUTORIAL, {"bin/taskclient", "nc"})],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_the_transcripts_are_what_a_user_sees(page: Path, programs: set[str], stage: Stage) -> None:
    """From the first ``make run`` on, with the handlers that the page shows."""
    bindings, done = Bindings(), list(actions(page.read_text("utf-8")))
    assert programs <= {word for step in done if isinstance(step, Step) for word in step.command.split()}
    assert {Start, Step, Module} == {type(each) for each in done}
    for each in done:
        if isinstance(each, Start):
            stage.start(each)
        elif isinstance(each, Module):
            stage.write(each)
        else:
            run(each, stage, bindings)


def run(step: Step, stage: Stage, bindings: Bindings) -> None:
    """Run a command and check what it shows. A reader types slower than this test: what only reads may be run again
    until the tasks are as far as on the page."""
    until = time.monotonic() + READING_SECONDS
    while True:
        real = stage.run(step)
        try:
            compare_output(step, real, bindings)
        except AssertionError:
            if not READING.match(step.command) or time.monotonic() > until:
                raise
        else:
            return


def compare_output(step: Step, real: list[str], bindings: Bindings) -> None:
    """Check the lines that a command shows against those of the page."""
    if step.shown and step.shown[0].startswith("{"):
        assert len(step.shown) == len(real), real
        for left, right in zip(step.shown, real, strict=True):
            compare(json.loads(left), json.loads(right), bindings)
    else:
        if not any(RUNNING.match(line) for line in step.shown):
            # a task that takes no time on the page may take a quarter of a second on a busy machine
            real = [line for line in real if not RUNNING.match(line)]
        assert [normal(line) for line in step.shown] == [normal(line) for line in real], step.command


def test_the_handler_of_the_readme_is_short() -> None:
    """It has twelve lines in both languages."""
    modules = [
        m.text for page in (README, README_ES) for m in actions(page.read_text("utf-8")) if isinstance(m, Module)
    ]
    assert [len(text.splitlines()) for text in modules] == [12, 12]


def table(page: Path, heading: str, head: str) -> dict[str, list[str]]:
    """The rows of the tables in a section whose first cell begins with ``head``: the first cell maps to the others."""
    text = page.read_text("utf-8").partition(f"\n## {heading}\n")[2]
    section = re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
    rows: dict[str, list[str]] = {}
    for part in section.split("\n\n"):
        lines = [line.strip("| \n").split(" | ") for line in part.splitlines() if line.startswith("|")]
        if lines and lines[0][0].startswith(head):
            rows |= {cells[0]: cells[1:] for cells in lines[2:]}
    return rows


def code(cell: str) -> str:
    """The text between the first backticks of a cell; empty if there are none."""
    found = re.match(r"`([^`]*)`", cell.strip("| "))
    return found[1] if found else ""


def test_the_settings_are_those_of_the_code(tmp_path: Path) -> None:
    """Names and defaults agree with the code and with .env.example."""
    shown = {code(name): code(cells[0]) for name, cells in table(SETTINGS, "Variables", "variable").items()}
    source = Path(declarations.__file__).read_text()
    assert set(shown) == set(re.findall(r'"((?:POSTGRES|RABBITMQ|TASKD)_[A-Z_]+)"', source))
    example = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert shown == example

    nothing = tmp_path / "nothing"
    nothing.touch()
    defaults = read_settings(str(nothing), {})
    assert read_settings(str(nothing), shown) == defaults
    hosts = {"POSTGRES_HOST": "db", "RABBITMQ_HOST": "mq"}
    assert read_settings(str(nothing), {**shown, **hosts}).postgres == (read_settings(str(nothing), hosts).postgres)
    assert read_settings(str(nothing), {**shown, **hosts}).rabbitmq == (read_settings(str(nothing), hosts).rabbitmq)
    assert int(shown["TASKD_SLOTS"]) == defaults.slots


def test_the_settings_page_is_generated_from_the_declarations() -> None:
    """``python -m taskd.config.docs`` writes its tables."""
    page = SETTINGS.read_text("utf-8")
    assert docs.updated(page) == page


def test_the_clients_variables_are_those_it_reads() -> None:
    """The page names all environment variables that the client reads."""
    [sentence] = re.findall(r"^The client reads (.*?)\n\n", SETTINGS.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    source = "".join(path.read_text() for part in ("client", "cli") for path in (ROOT / "taskd" / part).rglob("*.py"))
    read = set(re.findall(r"env(?:iron)?\.get\(\"([A-Z_]+)\"|\"(TASKD_[A-Z]+)\"", source))
    names = {name for pair in read for name in pair if name} - {"HOME", "TERM"}
    assert set(re.findall(r"`([A-Z_]{5,})`", sentence)) == names


@pytest.mark.parametrize(("daemon", "options"), [("taskserver", ServerOptions()), ("taskworker", WorkerOptions())])
def test_the_options_are_those_of_the_daemons(daemon: str, options: usage.Options) -> None:
    """The tables have exactly the long and short names."""
    shown = [re.findall(r"`-+([\w-]+)`", name) for name in table(SETTINGS, "Options", f"`twistd {daemon}`")]
    known: Any = options
    assert {long for long, *_ in shown} == {name for name in known.docs if len(name) > 1} - {"help", "version"}
    for long, *short in shown:
        assert [known.synonyms[each] for each in short] == [long] * len(short)


def test_every_dependency_has_its_line() -> None:
    """The table has the dependencies of setup.cfg, also those of the tests, each with a reason."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"] + setup["options.extras_require"]["test"]
    names = [re.split(r"[<>=!~;]", line)[0] for line in wanted.split("\n") if line and not line.startswith("#")]
    rows = table(CONTRIBUTING, "Dependencies", "package")
    assert [code(name) for name in rows] == names
    assert all(cells[0].endswith(".") for cells in rows.values())


def test_commands_and_paths_are_there() -> None:
    """The make targets and test paths that the pages name exist, and so does the tree."""
    makefile = (ROOT / "Makefile").read_text()
    for page, least in {README: {"run", "test"}, README_ES: {"run", "test"}, CONTRIBUTING: {"test", "lint"}}.items():
        text = page.read_text("utf-8")
        targets = set(re.findall(r"^(?:\w+=\S+ )*make (\w+)", text, re.MULTILINE))
        assert least <= targets
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
        for path in re.findall(r"TESTS=(\S+)", text):
            assert (ROOT / path).exists(), path
    [tree] = re.findall(r"^```text\n(.*?)^```$", CONTRIBUTING.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for line in tree.splitlines():
        assert (ROOT / line.split()[0]).exists(), line


def anchors(page: Path) -> set[str]:
    """The headings of a page, as anchors of links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link names a file, and a heading in it."""
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_have_no_path_of_a_machine(page: Path) -> None:
    """And no white space at the end of a line."""
    for line in page.read_text("utf-8").splitlines():
        assert line == line.rstrip(), line
        assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", line), line


def examples(page: Path, language: str) -> list[str]:
    """The blocks of a page in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_sql_for_operators_runs(postgres: services.Postgres, database: str) -> None:
    """With the current schema, and one task to read and change."""
    for migration in migrations.load("postgres"):
        postgres.query(migration.sql, database=database)
    postgres.query(migrations.CREATE_TABLE, database=database)
    postgres.query("INSERT INTO users (username, username_key, password) VALUES ('Ana', 'ana', '')", database=database)
    postgres.query("INSERT INTO tasks (user_id, task) VALUES (1, 'one')", database=database)
    recounting, reading, changing = examples(OPERATIONS, "sql")
    statements = [statement for statement in reading.split(";") if statement.strip()]
    assert len(statements) == reading.count("\n-- ") + 1
    for statement in statements:
        assert "SELECT" in statement
        postgres.query(statement, database=database)
    for statement in f"{recounting};{changing}".split(";"):
        if statement.strip():
            postgres.query(statement, database=database)
    assert postgres.query("SELECT state, status FROM tasks", database=database) == [("cancelled", "Cancelada")]


def test_the_log_lines_are_those_of_the_code() -> None:
    """Each line is a format string of the code."""
    section = OPERATIONS.read_text("utf-8").partition("\n## What the log says\n")[2].partition("\n## ")[0]
    lines = [text for cell in re.findall(r"^\| (`.*?`) \| ", section, re.MULTILINE) for text in cell.split("`")[1::2]]
    source = "".join(path.read_text() for path in (ROOT / "taskd").rglob("*.py"))
    assert len(lines) > 20
    assert [line for line in lines if f'"{line}"' not in source] == []


def test_the_handler_of_the_docs_and_its_tests(tmp_path: Path) -> None:
    """The module in docs/handlers.md, and the tests that the page shows for it."""
    module, *tests = [text for text in examples(HANDLERS, "python") if "import" in text]
    (tmp_path / "lab.py").write_text(module)
    names = []
    for n, text in enumerate(tests):
        names.append(f"test_{n}.py")
        own = "" if "from lab import" in text else "from lab import greet\n"
        (tmp_path / names[-1]).write_text(own + text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{len(tests)} passed" in ran.stdout and len(tests) >= 2
