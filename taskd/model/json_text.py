"""JSON values as text that every process and both databases can read back."""

from __future__ import annotations

from typing import Any

import msgspec

from taskd.model.errors import BadRequest, TooLarge
from taskd.model.limits import MAX_JSON_DEPTH

_encode = msgspec.json.Encoder().encode


def encode_json(value: Any, limit: int, field: str) -> str:
    """The canonical JSON text of a value.

    Raises TooLarge above ``limit`` bytes, BadRequest if it is nested too deeply or is no JSON value.
    """
    try:
        raw = _encode(value)
    except RecursionError:
        raise _too_deep(field) from None
    except (TypeError, ValueError, OverflowError) as e:
        raise BadRequest(f"{field} cannot be written as JSON: {e}", field=field) from None
    if len(raw) > limit:
        raise TooLarge(f"{field} must have at most {limit} bytes as JSON, not {len(raw)}", field=field)
    check_depth(raw, field)
    return raw.decode()


def check_depth(raw: bytes, field: str) -> None:
    """Raises BadRequest if this valid JSON is nested more than MAX_JSON_DEPTH deep."""
    brackets = raw.count(b"[") + raw.count(b"{")
    if brackets > MAX_JSON_DEPTH:
        try:
            too_deep = _deeper(msgspec.json.decode(raw), MAX_JSON_DEPTH)
        except RecursionError:
            too_deep = True
        if too_deep:
            raise _too_deep(field)


def _deeper(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return levels == 0 or any(_deeper(inner, levels - 1) for inner in value)


def _too_deep(field: str) -> BadRequest:
    return BadRequest(f"{field} must not be nested more than {MAX_JSON_DEPTH} deep", field=field)
