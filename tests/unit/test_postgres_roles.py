"""Starting on PostgreSQL as a role that may not change the schema (deploy/roles.sql)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from psycopg2.errors import InsufficientPrivilege
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

import taskd.store.postgres.database as database
from taskd.model.errors import SettingsError
from taskd.store import migrations
from taskd.store.postgres.store import PostgresStore

CURRENT = [migration[:2] for migration in migrations.load("postgres")]


class Server:
    """A PostgreSQL with these migrations; ``owner``: the role may create and change tables."""

    def __init__(self, applied: Sequence[tuple[int, str]] | None, owner: bool) -> None:
        self.applied = applied
        self.owner = owner
        self.changes: list[str] = []

    def connect(self, dsn: Mapping[str, Any], reactor: Any, prepared: Mapping[str, str], timeout: int) -> Connection:
        """In place of PostgresConnection."""
        return Connection(self)


class Connection:
    """One connection; it knows the statements of a start."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def open(self, on_lost: Callable[[BaseException], None]) -> None:
        """Always."""

    def close(self) -> None:
        """Nothing to close."""

    async def call(self, name: str, *args: Any, **options: Any) -> list[Any]:
        """After the migrations."""
        raise Started

    async def query(self, text: str, args: Sequence[Any] = ()) -> list[Any]:
        """The rows."""
        if "to_regclass" in text:
            return [(self._server.applied is not None,)]
        if text == migrations.APPLIED:
            return list(self._server.applied or ())
        if text == "SELECT id FROM installation":
            return [("lab",)]
        if text.lstrip().startswith(("CREATE", "--", "INSERT INTO schema")):
            if not self._server.owner:
                raise InsufficientPrivilege("permission denied for schema public\nLINE 1")
            self._server.changes.append(text)
        return []


class Started(Exception):
    """The schema is as it should be."""


def start(server: Server, monkeypatch: pytest.MonkeyPatch) -> BaseException:
    """How the start ends."""
    monkeypatch.setattr(database, "PostgresConnection", server.connect)
    store = PostgresStore({"host": "db", "port": 5432, "user": "taskd_daemon"}, Clock(), size=1)
    ended: list[Any] = []
    Deferred.fromCoroutine(store.start()).addErrback(ended.append)
    found: BaseException = ended[0].value
    return found


@pytest.mark.parametrize("owner", [True, False])
def test_a_current_schema_needs_no_right_to_change_it(owner: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(CURRENT, owner)
    assert isinstance(start(server, monkeypatch), Started)
    assert server.changes == []


@pytest.mark.parametrize("applied", [None, []])
def test_who_has_to_migrate(applied: list[Any] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = start(Server(applied, owner=False), monkeypatch)
    assert isinstance(refused, SettingsError)
    text = str(refused)
    assert text.startswith(
        f"PostgreSQL at db:5432: the schema has version 0, this taskd needs {len(CURRENT)}, and user taskd_daemon may"
        " not change it (permission denied for schema public"
    )
    assert text.endswith(": run bin/taskadmin migrate as the owner of the tables, then start the daemons again")
    assert "\n" not in text


def test_the_owner_migrates(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(None, owner=True)
    assert isinstance(start(server, monkeypatch), Started)
    assert len(server.changes) == 1 + 2 * len(CURRENT)
