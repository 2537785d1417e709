"""The API for handlers, and how their modules are found."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from taskd.model.errors import SettingsError
from taskd.ports.handler import ITaskContext, ITaskHandler
from taskd.worker import Backoff, Handler, handler
from taskd.worker.handler import by_kind, collect
from taskd.worker.loading import load, modules_for_children

# -- the decorator


def test_a_def_runs_in_a_thread_and_an_async_def_on_the_reactor() -> None:
    @handler("a")
    def blocking(task: ITaskContext) -> int:
        """Counts.

        And more."""
        return 1

    @handler("b", timeout=60, max_attempts=5, backoff=Backoff(first=1))
    async def waiting(task: ITaskContext) -> None: ...

    @handler("c", isolation="process")
    def apart(task: ITaskContext) -> None: ...

    assert [h.isolation for h in (blocking, waiting, apart)] == ["thread", "async", "process"]
    assert (waiting.timeout, waiting.max_attempts, waiting.backoff.first) == (60, 5, 1)
    assert (blocking.timeout, blocking.max_attempts, blocking.summary) == (None, 3, "Counts.")
    assert verifyObject(ITaskHandler, blocking)
    task: Any = None
    assert blocking(task) == blocking.run(task) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"kind": ""}, "kind must be 1 to 64 of letters"),
        ({"kind": "a b"}, "kind must be 1 to 64 of letters"),
        ({"kind": 5}, "kind: expected string, got integer"),
        ({"timeout": 0}, "timeout: expected number > 0.0"),
        ({"timeout": "60"}, "timeout: expected number or null, got string"),
        ({"timeout": float("nan")}, "timeout: expected number > 0.0"),
        ({"timeout": True}, "timeout: expected number or null, got boolean"),
        ({"max_attempts": 0}, "max_attempts: expected integer >= 1"),
        ({"max_attempts": 1.5}, "max_attempts: expected integer, got number"),
        ({"isolation": "fork"}, "isolation must be 'async', 'thread' or 'process', not 'fork'"),
        ({"isolation": "async"}, "isolation 'async' needs an async def"),
        ({"backoff": 5}, "backoff: expected object, got integer"),
        ({"backoff": Backoff(first=-1)}, "backoff.first: expected number >= 0.0"),
        ({"backoff": Backoff(factor=1000)}, "backoff.factor: expected number <= 100.0"),
    ],
)
def test_invalid_arguments(options: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError) as caught:
        handler(**{"kind": "a", **options})(lambda task: None)
    assert why in str(caught.value)
    assert str(caught.value).startswith("handler ")


def test_an_async_def_needs_the_reactor() -> None:
    async def waits(task: ITaskContext) -> None: ...

    with pytest.raises(SettingsError, match="'thread' or 'process' takes a plain def"):
        handler("a", isolation="thread")(waits)


def test_only_a_function_can_be_decorated() -> None:
    not_one: Any = 5
    with pytest.raises(SettingsError, match="above a function, not 5"):
        handler("a")(not_one)


def test_the_handlers_of_a_module() -> None:
    @handler("a")
    def a(task: ITaskContext) -> None: ...

    @handler("a")
    def b(task: ITaskContext) -> None: ...

    module = ModuleType("m")
    vars(module).update(a=a, again=a, other=5, kind=Handler, b=b)
    assert collect(module) == [a, b]
    with pytest.raises(SettingsError, match="two handlers serve the kind 'a'"):
        by_kind(collect(module))


# -- loading


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Write a module into the current folder and return its name, which is unique."""
    path, modules = list(sys.path), set(sys.modules)

    def written(text: str) -> str:
        name = f"handlers_of_a_test_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield written
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("handlers_of_a_test"):
            del sys.modules[name]


_numbers = itertools.count()
GOOD = "from taskd.worker import handler\n@handler({kind!r}{more})\ndef work(task): pass\n"


def good(kind: str, more: str = "") -> str:
    """A module with one handler."""
    return GOOD.format(kind=kind, more=more)


def refusal(*modules: str, plugins: Any = ()) -> str:
    """Why these modules cannot be served, in one line."""
    with pytest.raises(SettingsError) as caught:
        load(modules, plugins)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_modules_of_the_current_folder(write: Any, tmp_path: Path) -> None:
    a, b = write(good("a")), write(good("simulate", ", isolation='process'"))
    found = load([a, b, a], ())
    assert [(each.kind, each.isolation) for each in found] == [("a", "thread"), ("simulate", "process")]
    # handlers may import more when they run
    assert sys.path[0] == str(tmp_path)


def test_without_modules_the_path_stays_as_it_is(tmp_path: Path) -> None:
    assert load([], ()) == []
    assert str(tmp_path) not in sys.path


def test_a_handler_imported_by_two_modules_is_one(write: Any) -> None:
    a = write(good("a"))
    b = write(f"from {a} import work\n")
    assert len(load([a, b], ())) == 1


def test_modules_that_cannot_be_imported(write: Any, tmp_path: Path) -> None:
    write(good("a"))
    assert refusal("nowhere.handlers") == (
        f"handlers 'nowhere.handlers': there is no module 'nowhere' in {tmp_path} or where Python looks"
    )
    for name in ("tasks.py/x", "./tasks", "", "a..b", "a b"):
        assert "name a module as import does, such as lab.handlers, not a file" in refusal(name)
    cases = [
        ("x = 1\nimport nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'", 2),
        ("def f(:\n", "SyntaxError: ", 1),
        ("  x = 1\n", "IndentationError: ", 1),
        ("def f():\n    raise ValueError('a\\nb')\nf()\n", "ValueError: a b", 2),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3", 2),
        ("\n" + good("a", ", timeout=-1"), "handler 'a' (work): timeout: expected number > 0.0", 3),
    ]
    for text, why, line in cases:
        name = write(text)
        message = refusal(name)
        assert message.startswith(f"handlers '{name}': {why}"), message
        # Python 3.10 gives a decorator that raises the line of the function below it
        lines = {line, line + 1} if "handler 'a'" in why and sys.version_info < (3, 11) else {line}
        assert any(message.endswith(f"({tmp_path / name}.py:{each})") for each in lines), message


def test_modules_without_a_handler_or_with_a_wrong_one(write: Any) -> None:
    assert 'it has no handler: put @handler("KIND") above a function' in refusal(write("x = 1\n"))
    assert "two handlers serve the kind 'a'" in refusal(write(good("a")), write(good("a")))
    assert "kinds that begin with 'command:' belong to programs" in refusal(write(good("command:x")))


def test_handlers_of_other_classes_are_checked() -> None:
    class Bare:
        def run(self, task: ITaskContext) -> None: ...

    bare: Any = Bare()
    parts = {"kind": "bare", "isolation": "thread", "timeout": None, "max_attempts": 3, "backoff": Backoff()}
    for name in (*parts, "summary"):
        vars(bare).clear()
        vars(bare).update({k: v for k, v in {**parts, "summary": ""}.items() if k != name})
        assert f"{name} is missing" in refusal(plugins=[bare])
    vars(bare).update(summary="")
    assert load([], [bare]) == [bare]
    vars(bare).update(summary=5)
    assert "summary: expected string, got integer" in refusal(plugins=[bare])
    vars(bare).update(summary="", run=5)
    assert "run: expected Callable, got integer" in refusal(plugins=[bare])


def test_child_processes_find_plugins_in_the_modules_of_their_code(write: Any) -> None:
    name = write(good("a", ", isolation='process'"))
    [found] = load([name], ())
    assert load([], [found]) == load([name], [found]) == [found]
    assert modules_for_children([], [found]) == modules_for_children([name], [found]) == [name]
    stray = Handler(found.function, "stray", "process", None, 3, Backoff())  # type: ignore[attr-defined]
    assert "child processes do not find it: create it in the module of its code" in refusal(plugins=[stray])


def test_a_deferred_is_not_a_handler() -> None:
    module = ModuleType("m")
    vars(module).update(d=Deferred())
    assert collect(module) == []
