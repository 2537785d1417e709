"""Checks of request fields that more than one action has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskd.model.errors import BadRequest, TooLarge
from taskd.protocol.limits import MAX_BATCH


def check_count(items: Sequence[Any], field: str) -> None:
    """Raises BadRequest for an empty list, TooLarge above MAX_BATCH."""
    if not items:
        raise BadRequest(f"{field} must not be empty", field=field)
    if len(items) > MAX_BATCH:
        raise TooLarge(f"{field} must have at most {MAX_BATCH} entries, not {len(items)}", field=field)


def check_choice(value: str | None, choices: Sequence[str], field: str) -> None:
    """Raises BadRequest unless the value is one of the choices or None."""
    if value is not None and value not in choices:
        raise BadRequest(f"{field} must be one of: {', '.join(choices)}", field=field)
