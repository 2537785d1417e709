"""JSON values as text that every process and both databases can read back."""

from __future__ import annotations

from typing import Any

import msgspec

from taskd.model.errors import BadRequest, TooLarge
from taskd.model.limits import MAX_JSON_DEPTH

_encode = msgspec.json.Encoder().encode


def encode_json(value: Any, limit: int, field: str) -> str:
    """One canonical JSON text of a decoded value.

    Raises TooLarge above ``limit`` bytes, BadRequest if it is nested too deeply or is no JSON value.
    """
    try:
        raw = _encode(value)
        if len(raw) > limit:
            raise TooLarge(f"{field} must have at most {limit} bytes as JSON, not {len(raw)}", field=field)
        brackets = raw.count(b"[") + raw.count(b"{")
        if brackets > MAX_JSON_DEPTH and _deeper(msgspec.json.decode(raw), MAX_JSON_DEPTH):
            raise RecursionError
    except RecursionError:
        raise BadRequest(f"{field} must not be nested more than {MAX_JSON_DEPTH} deep", field=field) from None
    except (TypeError, ValueError, OverflowError) as e:
        raise BadRequest(f"{field} cannot be written as JSON: {e}", field=field) from None
    return raw.decode()


def _deeper(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return levels == 0 or any(_deeper(inner, levels - 1) for inner in value)
