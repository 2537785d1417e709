"""Imports between the rooms of taskd point one way. Imports inside functions count as well."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The rooms that each room may import, besides itself. docs/architecture.md has the same table. The taps wire everything
# together: no room imports them, and they may import every room but the client and the command line.
MODEL = {"taskd", "taskd.model"}
PORTS = MODEL | {"taskd.ports"}
PROTOCOL = MODEL | {"taskd.protocol"}
EVENTS = PORTS | PROTOCOL | {"taskd.events"}
SCHEDULING = EVENTS | {"taskd.batching", "taskd.scheduling", "taskd.usage_log"}
API = SCHEDULING | {"taskd.api", "taskd.health"}
SERVER = API | {"taskd.config", "taskd.server", "taskd.tls"}
WORKER = EVENTS | {
    "taskd.batching",
    "taskd.config",
    "taskd.hardening",
    "taskd.health",
    "taskd.usage_log",
    "taskd.watchdog",
    "taskd.worker",
}
ADAPTERS = {"taskd.store", "taskd.broker"}

MAY_IMPORT: dict[str, set[str]] = {
    "taskd": set(),
    "taskd.model": MODEL,
    "taskd.ports": PORTS,
    "taskd.protocol": PROTOCOL,
    "taskd.config": MODEL,
    "taskd.batching": MODEL,
    "taskd.hardening": set(),
    "taskd.daemon_log": MODEL,
    "taskd.tls": MODEL,
    "taskd.health": PORTS,
    "taskd.usage_log": PORTS,
    "taskd.events": EVENTS,
    "taskd.store": PORTS,
    "taskd.broker": PORTS | {"taskd.config", "taskd.tls"},
    "taskd.scheduling": SCHEDULING,
    "taskd.api": API,
    "taskd.server": SERVER,
    "taskd.watchdog": PORTS | {"taskd.hardening", "taskd.store"},
    "taskd.worker": WORKER,
    "taskd.daemon": PORTS | ADAPTERS | {"taskd.config", "taskd.daemon_log", "taskd.hardening"},
    "tap": SERVER | WORKER | {"taskd.daemon"},
    # handlers and a whole server in memory, for tests
    "taskd.testing": SERVER | WORKER | ADAPTERS,
    "taskd.client": PROTOCOL | {"taskd.client", "taskd.tls"},
    "taskd.cli": PROTOCOL | {"taskd.client", "taskd.cli"},
    "taskd.admin": PORTS | {"taskd.admin", "taskd.cli", "taskd.config", "taskd.daemon", "taskd.store"},
}


def room_of(module: str) -> str:
    """The room of a module: ``taskd.store`` for ``taskd.store.sqlite.store``."""
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
            # "from taskd.server import tap" imports the module, "from taskd.model.tasks import Task" a name of one.
            inside = [f"{origin}.{alias.name}" for alias in node.names]
            names = [name if name in modules else origin for name in inside]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "taskd":
                yield node.lineno, name


def forbidden_imports(sources: dict[str, str]) -> list[str]:
    """One line for every forbidden import. ``sources`` maps paths like ``taskd/model.py`` to their text."""
    found = []
    names = {path: path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in sources}
    # Packages count as well, so that "from taskd import store" is an import of taskd.store.
    modules = {".".join(n.split(".")[: i + 1]) for n in names.values() for i in range(n.count(".") + 1)}
    for path, source in sources.items():
        here = room_of(names[path])
        for line, imported in imports(source, names[path], path.endswith("__init__.py"), modules):
            there = room_of(imported)
            if there != here and there not in MAY_IMPORT.get(here, set()):
                found.append(f"{path}:{line}: {here} may not import {imported}")
            elif there == here == "tap" and imported != names[path]:
                found.append(f"{path}:{line}: one tap may not import another, {imported}")
    return sorted(found)


def test_the_architecture_document_has_the_same_table() -> None:
    """Its rows name the rooms without ``taskd.``, and leave out the room itself and ``taskd``."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(taskd\.\w+|tap)` \| .* \| ([\w, ]*) ?\|$", page, re.MULTILINE)
    shown = {room: {f"taskd.{name}" for name in names.split(", ") if name.strip()} for room, names in rows}
    exact = {room: names - {"taskd", room} for room, names in MAY_IMPORT.items() if room != "taskd"}
    assert {room: {name.strip() for name in names} for room, names in shown.items()} == exact


def test_every_import_is_allowed() -> None:
    """In the source of taskd as it is."""
    sources = {str(p.relative_to(ROOT)): p.read_text() for p in (ROOT / "taskd").rglob("*.py")}
    assert "taskd/model/tasks.py" in sources
    assert forbidden_imports(sources) == []


OTHERS = dict.fromkeys(
    [
        "taskd/__init__.py",
        "taskd/model/tasks.py",
        "taskd/config.py",
        "taskd/ports/__init__.py",
        "taskd/ports/store.py",
        "taskd/protocol/codec.py",
        "taskd/events/watch_hub.py",
        "taskd/broker/memory.py",
        "taskd/store/listing.py",
        "taskd/store/sqlite/store.py",
        "taskd/scheduling/dispatcher.py",
        "taskd/api/accounts.py",
        "taskd/server/line_connection.py",
        "taskd/server/tap.py",
        "taskd/worker/tap.py",
        "taskd/web/health.py",
        "taskd/client/connection.py",
        "taskd/cli/menu.py",
    ],
    "",
)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("taskd/model/tasks.py", "import taskd.ports"),
        ("taskd/ports/tasks.py", "from taskd.protocol.codec import encode_reply"),
        ("taskd/protocol/codec.py", "from taskd.store.sqlite.store import SqliteStore"),
        ("taskd/protocol/codec.py", "from ..server import lines"),
        ("taskd/events/watch_hub.py", "from taskd.scheduling.pools import Pools"),
        ("taskd/store/sqlite/store.py", "from taskd.broker import memory"),
        ("taskd/store/sqlite/store.py", "from taskd.protocol import codec"),
        ("taskd/broker/memory.py", "from taskd import store"),
        ("taskd/store/postgres/store.py", "def later():\n    from taskd.events.watch_hub import Hub"),
        ("taskd/scheduling/dispatcher.py", "from taskd.api.accounts import Accounts"),
        ("taskd/api/accounts.py", "from taskd.server.line_connection import LineFactory"),
        ("taskd/api/accounts.py", "from taskd.worker.runner import Runner"),
        ("taskd/worker/runner.py", "if True:\n    import taskd.web.health"),
        ("taskd/worker/runner.py", "from taskd.scheduling import pools"),
        ("taskd/server/line_connection.py", "from taskd.server import tap"),
        ("taskd/server/line_connection.py", "from . import tap"),
        ("taskd/server/tap.py", "from taskd.worker.tap import makeService"),
        ("taskd/server/tap.py", "from taskd.cli import menu"),
        ("taskd/client/connection.py", "from taskd.cli.menu import Menu"),
        ("taskd/cli/menu.py", "from taskd.ports.store import IStore"),
        ("taskd/cli/menu.py", "from taskd import config"),
        ("taskd/surprise.py", "from taskd.model.tasks import Task"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    """An import in the wrong direction, or in a module of a room that the table does not have."""
    [line] = forbidden_imports({**OTHERS, path: source})
    assert line.startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("taskd/ports/tasks.py", "from taskd.model.tasks import Task"),
        (
            "taskd/store/sqlite/store.py",
            "from taskd.store.listing import Filter\nfrom .. import listing\nimport sqlite3",
        ),
        ("taskd/api/accounts.py", "from taskd.protocol import codec\nfrom taskd import __version__"),
        ("taskd/scheduling/dispatcher.py", "from taskd.events.watch_hub import Hub"),
        ("taskd/server/tap.py", "def wire():\n    from taskd.worker.runner import Runner\n    import taskd.daemon"),
        ("taskd/cli/menu.py", "from ..protocol.codec import encode\nfrom ..client.connection import connect"),
    ],
)
def test_an_allowed_import_is_not_reported(path: str, source: str) -> None:
    """Imports as the rooms have them."""
    assert forbidden_imports({**OTHERS, path: source}) == []
