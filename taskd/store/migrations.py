"""Numbered schema files, and which of them a database still needs. The stores apply them under a lock of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from taskd.model.errors import SchemaTooNew

CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at text NOT NULL
)
"""
"""Not in a numbered file: the table that counts the files must exist first. Both databases understand it."""

APPLIED = "SELECT max(version) FROM schema_migrations"

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")


class Migration(NamedTuple):
    """One file of ``schema/<dialect>/``."""

    version: int
    name: str
    sql: str


def load(dialect: str) -> list[Migration]:
    """The migrations of ``postgres`` or ``sqlite`` in order. Raises ValueError for a gap in the numbers."""
    found = []
    for file in (files("taskd") / "_schema" / dialect).iterdir():
        if match := _FILE.fullmatch(file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    found.sort()
    if [m.version for m in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"schema/{dialect}: migrations must be numbered 0001, 0002, ... without gaps")
    return found


def pending(migrations: Sequence[Migration], applied: int | None) -> Sequence[Migration]:
    """The migrations to apply to a database of version ``applied``. Raises SchemaTooNew."""
    ours, theirs = len(migrations), applied or 0
    if theirs > ours:
        raise SchemaTooNew(f"the database has schema version {theirs}, this taskd knows only {ours}: upgrade taskd")
    return migrations[theirs:]
