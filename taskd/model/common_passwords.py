"""Passwords that everybody tries first."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files


def is_common(password: str) -> bool:
    """Whether this is one of the 3,000 most common passwords of at least 8 bytes, in any letter case."""
    return password.lower() in _common()


@lru_cache(maxsize=1)
def _common() -> frozenset[str]:
    """The list, read when it is first needed: most processes never check a new password."""
    text = (files("taskd.model") / "common_passwords.txt").read_text("utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("#"))
