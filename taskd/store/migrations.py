"""Numbered schema files, and which of them a database still needs. The stores apply them under a lock of their own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from taskd.model.errors import SchemaTooNew, SettingsError

CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at text NOT NULL
)
"""
"""Not in a numbered file: the table that counts the files must exist first. Both databases understand it."""

APPLIED = "SELECT version, name FROM schema_migrations ORDER BY version"

LATEST = "SELECT max(version) FROM schema_migrations"

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")


class Migration(NamedTuple):
    """One file of ``schema/<dialect>/``. The name ends with a digest of its content."""

    version: int
    name: str
    sql: str


def load(dialect: str) -> list[Migration]:
    """The migrations of ``postgres`` or ``sqlite`` in order: 0001, 0002, ... without gaps."""
    found = []
    for file in (files("taskd") / "_schema" / dialect).iterdir():
        if match := _FILE.fullmatch(file.name):
            sql = file.read_text(encoding="utf-8")
            digest = hashlib.sha256(sql.encode()).hexdigest()[:12]
            found.append(Migration(int(match[1]), f"{match[2]} {digest}", sql))
    return sorted(found)


def pending(migrations: Sequence[Migration], applied: Sequence[tuple[int, str]]) -> Sequence[Migration]:
    """The migrations that a database needs in which these versions and names are ``applied``.

    Raises SchemaTooNew, and SettingsError if a file was another one when it was applied: released files never change,
    so an unreleased taskd has made the database."""
    ours, theirs = len(migrations), applied[-1][0] if applied else 0
    if theirs > ours:
        raise SchemaTooNew(f"the database has schema version {theirs}, this taskd knows only {ours}: upgrade taskd")
    for migration, (version, name) in zip(migrations, applied, strict=False):
        if (version, name) != migration[:2]:
            raise SettingsError(
                f"the database was made by an unreleased taskd: its migration {version} is not the one of this taskd;"
                " choose another database, or export what you need and make it anew"
            )
    return migrations[theirs:]
