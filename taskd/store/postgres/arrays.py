"""Array literals: one column of a batch as one string, which psycopg2 quotes as a single parameter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from taskd.store.refusals import nul_refused


def array(values: Sequence[float | datetime | str | None]) -> str:
    """An array of numbers, flags, times or UUIDs, with NULL for None. JSON writes all of them as PostgreSQL reads them,
    but not other texts."""
    return "{" + _json(values).decode()[1:-1] + "}"


def texts(values: Sequence[str]) -> str:
    """``text[]`` or ``json[]``. Raises BadRequest for a text with NUL.

    The texts are joined by NUL, which none of them may contain, so that two passes escape all of them.
    """
    if not values:
        return "{}"
    joined = "\0".join(values)
    if joined.count("\0") != len(values) - 1:
        raise nul_refused()
    return '{"' + _escaped(joined).replace("\0", '","') + '"}'


def byte_strings(values: Sequence[bytes]) -> str:
    """``bytea[]``."""
    return "{" + ",".join([f'"\\\\x{value.hex()}"' for value in values]) + "}"


def optional_texts(values: Sequence[str | None]) -> str:
    """``text[]`` with NULL for None. The texts must not contain NUL."""
    return "{" + ",".join(["NULL" if v is None else f'"{_escaped(v)}"' for v in values]) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


_json = msgspec.json.Encoder().encode
