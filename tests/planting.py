"""Replaces parts of taskd by defective ones for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Replacement = tuple[Any, str, Any]
"""An owner, the name of its attribute, and what replaces it."""


@contextmanager
def replaced(replacements: Sequence[Replacement]) -> Iterator[None]:
    """Run with these replacements."""
    originals = [getattr(owner, name) for owner, name, _ in replacements]
    for owner, name, broken in replacements:
        setattr(owner, name, broken)
    try:
        yield
    finally:
        for (owner, name, _), original in zip(replacements, originals, strict=True):
            setattr(owner, name, original)


def without(statement: str, check: str, instead: str) -> str:
    """The statement with something else in place of a check that it has once."""
    assert statement.count(check) == 1
    return statement.replace(check, instead)
