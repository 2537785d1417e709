"""Array literals: a column of a batch as one parameter, one string for psycopg2 to quote."""

from __future__ import annotations

from collections.abc import Sequence

from taskd.errors import BadRequest


def numbers(values: Sequence[int]) -> str:
    """``int[]`` or ``bigint[]``"""
    return "{" + ",".join(map(str, values)) + "}"


def flags(values: Sequence[bool]) -> str:
    """``bool[]``"""
    return "{" + ",".join(["t" if v else "f" for v in values]) + "}"


def ids(values: Sequence[str]) -> str:
    """``uuid[]``"""
    return "{" + ",".join(values) + "}"


def texts(values: Sequence[str]) -> str:
    """``text[]`` or ``json[]``. Raises BadRequest for a text with NUL.

    Joined by NUL, which nothing storable contains, all texts are escaped in two passes.
    """
    if not values:
        return "{}"
    joined = "\0".join(values)
    if joined.count("\0") != len(values) - 1:
        raise BadRequest("text must not contain the NUL character")
    return '{"' + joined.replace("\\", "\\\\").replace('"', '\\"').replace("\0", '","') + '"}'
