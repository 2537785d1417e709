"""The CSV files of ``taskadmin import-users``: users to create, and the codes that were made for them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from taskd.admin.failure import Failed
from taskd.cli.texts.catalogue import Texts
from taskd.model.errors import BadRequest
from taskd.model.users import Role, normalize_username

MAX_BYTES = 16 * 1024 * 1024
"""Of a file. A hundred thousand users need two megabytes."""

SHOWN = 10
"""How many wrong lines are shown at most."""

_HEADERS = (["username"], ["username", "role"])


class NewUser(NamedTuple):
    """A user of the file: the name, the key under which it is unique, and the role."""

    username: str
    key: str
    role: Role


def read_users(path: Path, texts: Texts) -> list[NewUser]:
    """The users of the file, which may begin with a header. Raises Failed with a line for each wrong one."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as e:
        raise Failed(texts("bad_file", file=path, why=e.strerror)) from None
    except UnicodeDecodeError:
        raise Failed(texts("bad_file", file=path, why=texts("not_utf8"))) from None
    if len(raw) > MAX_BYTES:
        raise Failed(texts("bad_file", file=path, why=f"> {MAX_BYTES // 1024 // 1024} MiB"))
    users: dict[str, tuple[int, NewUser]] = {}
    wrong = []
    for line, why, user in _lines(text, texts):
        if user is not None and user.key in users:
            why = texts("twice", first=users[user.key][0])
        if why:
            wrong.append(texts("bad_line", file=path, line=line, why=why))
        elif user is not None:
            users[user.key] = line, user
    if wrong:
        more = [] if len(wrong) <= SHOWN else [f"... (+{len(wrong) - SHOWN})"]
        raise Failed(*wrong[:SHOWN], *more, texts("nothing_imported"))
    if not users:
        raise Failed(texts("bad_file", file=path, why=texts("no_lines")))
    return [user for _, user in users.values()]


def _lines(text: str, texts: Texts) -> Iterator[tuple[int, str, NewUser | None]]:
    """For each line its number, and what is wrong with it or else its user."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as e:
            # what follows cannot be told apart from it
            yield reader.line_num, str(e), None
            return
        if row is None:
            return
        fields = [field.strip() for field in row]
        if not any(fields) or (reader.line_num == 1 and [field.lower() for field in fields] in _HEADERS):
            continue
        try:
            yield reader.line_num, "", _user(fields, texts)
        except Failed as e:
            yield reader.line_num, e.lines[0], None
        except BadRequest as e:
            yield reader.line_num, e.message, None


def _user(fields: list[str], texts: Texts) -> NewUser:
    if len(fields) > 2:
        raise Failed(texts("bad_columns"))
    role = fields[1] if len(fields) == 2 else ""
    try:
        found = Role(role or Role.USER.value)
    except ValueError:
        raise Failed(texts("bad_role", role=repr(role[:64]))) from None
    return NewUser(*normalize_username(fields[0]), found)
