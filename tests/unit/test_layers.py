"""Imports point one way. Every ``import`` below taskd/ counts, also one inside a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CORE = {"taskd.model", "taskd.errors"}
INNER = {"taskd.ports", "taskd.wire", "taskd.batching", "taskd.config"}
ADAPTERS = {"taskd.store", "taskd.broker"}
OUTER = {"taskd.server", "taskd.worker", "taskd.web"}
DAEMON = {"taskd.daemon"}

# A part may import what stands here and itself. The taps wire everything together: nobody imports them, and
# they may import all but the client.
MAY_IMPORT: dict[str, set[str]] = {
    "taskd": set(),
    **{part: {"taskd"} | CORE for part in CORE},
    **{part: {"taskd"} | CORE | INNER for part in INNER},
    **{part: {"taskd"} | CORE | INNER for part in ADAPTERS},
    **{part: {"taskd"} | CORE | INNER | ADAPTERS for part in OUTER},
    **{part: {"taskd"} | CORE | INNER | ADAPTERS for part in DAEMON},
    "tap": {"taskd"} | CORE | INNER | ADAPTERS | OUTER | DAEMON,
    # for tests of handlers: a server and a worker in one
    "taskd.testing": {"taskd"} | CORE | INNER | ADAPTERS | OUTER,
    "taskd.client": {"taskd", "taskd.wire"} | CORE,
}


def part_of(module: str) -> str:
    """The part that a module belongs to: ``taskd.store`` for ``taskd.store.sqlite``."""
    return "tap" if module.endswith(".tap") else ".".join(module.split(".")[:2])


def imports(source: str, module: str, is_package: bool, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of every module below taskd that the source imports."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # "from taskd.server import tap" imports the module, "from taskd.model import Task" a name of one.
            inside = [f"{origin}.{alias.name}" for alias in node.names]
            names = [name if name in modules else origin for name in inside]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "taskd":
                yield node.lineno, name


def backward_arrows(sources: dict[str, str]) -> list[str]:
    """One line for every import that may not be; ``sources`` maps paths like ``taskd/model.py`` to text."""
    found = []
    names = {path: path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in sources}
    # A package counts as well, so that "from taskd import wire" is an import of taskd.wire.
    modules = {".".join(n.split(".")[: i + 1]) for n in names.values() for i in range(n.count(".") + 1)}
    for path, source in sources.items():
        here = part_of(names[path])
        for line, imported in imports(source, names[path], path.endswith("__init__.py"), modules):
            there = part_of(imported)
            if there != here and there not in MAY_IMPORT.get(here, set()):
                found.append(f"{path}:{line}: {here} may not import {imported}")
            elif there == here == "tap" and imported != names[path]:
                found.append(f"{path}:{line}: one tap may not import another, {imported}")
    return sorted(found)


def test_no_import_runs_back() -> None:
    """The layers of taskd, as they are."""
    sources = {str(p.relative_to(ROOT)): p.read_text() for p in (ROOT / "taskd").rglob("*.py")}
    assert "taskd/model.py" in sources
    assert backward_arrows(sources) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("taskd/model.py", "import taskd.ports"),
        ("taskd/wire/codec.py", "from taskd.store.sqlite import SqliteStore"),
        ("taskd/wire/codec.py", "from ..server import lines"),
        ("taskd/store/sqlite.py", "from taskd.broker import memory"),
        ("taskd/broker/memory.py", "from taskd import store"),
        ("taskd/store/postgres.py", "def later():\n    from taskd.server.hub import Hub"),
        ("taskd/server/hub.py", "from taskd.worker.runner import Runner"),
        ("taskd/worker/runner.py", "if True:\n    import taskd.web.health"),
        ("taskd/server/hub.py", "from taskd.server import tap"),
        ("taskd/server/hub.py", "from . import tap"),
        ("taskd/server/tap.py", "from taskd.worker.tap import makeService"),
        ("taskd/server/tap.py", "from taskd.client import menu"),
        ("taskd/client/menu.py", "from taskd.ports import ITaskStore"),
        ("taskd/client/menu.py", "from taskd import config"),
        ("taskd/surprise.py", "from taskd.model import Task"),
    ],
)
def test_an_import_that_runs_back_is_found(path: str, source: str) -> None:
    """One that points back, or one of a part that has no place yet."""
    others = dict.fromkeys(
        [
            *("taskd/model.py", "taskd/config.py", "taskd/ports.py", "taskd/wire/codec.py"),
            *("taskd/store/sqlite.py", "taskd/broker/memory.py", "taskd/server/lines.py"),
            *("taskd/server/tap.py", "taskd/worker/tap.py", "taskd/web/health.py", "taskd/client/menu.py"),
        ],
        "",
    )
    [line] = backward_arrows({**others, path: source})
    assert line.startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("taskd/ports.py", "from taskd.model import Task"),
        (
            "taskd/store/sqlite.py",
            "from taskd.store.common import rows\nfrom . import common\nimport sqlite3",
        ),
        ("taskd/server/hub.py", "from taskd.wire import codec\nfrom taskd import config, __version__"),
        (
            "taskd/server/tap.py",
            "def wire():\n    from taskd.worker.runner import Runner\n    import taskd.store.sqlite",
        ),
        ("taskd/client/menu.py", "from ..wire.codec import encode\nfrom .texts import TEXTS"),
    ],
)
def test_an_import_that_points_inwards_is_not(path: str, source: str) -> None:
    """What the rooms do."""
    others = dict.fromkeys(["taskd/__init__.py", "taskd/config.py", "taskd/wire/codec.py", "taskd/server/lines.py"], "")
    assert backward_arrows({**others, path: source}) == []
