"""What msgspec found wrong with a value, in plain words."""

from __future__ import annotations

import re

import msgspec

from taskd.model.errors import BadRequest

IN_PAYLOAD = " - in payload"
"""How the message of a ValidationError ends whose reason lies in a payload. msgspec adds the path of the task."""

_TIME = 'time in RFC 3339 form, such as "2026-03-01T12:00:00Z"'
_WORDS = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "datetime": _TIME}


def invalid(error: msgspec.ValidationError) -> BadRequest:
    """The error for a value of a wrong type or out of its range. It names the field by its path, for example
    "backoff.first: expected number >= 0.0"."""
    what, _, path = str(error).partition(" - at `")
    path = path.rstrip("`").removeprefix("$").removeprefix(".")
    if what.endswith(IN_PAYLOAD):
        what = what.removesuffix(IN_PAYLOAD)
        path = f"{path}.payload" if path else "payload"
    if found := re.fullmatch("Object (missing required|contains unknown) field `(.*)`", what):
        path = f"{path}.{found[2]}" if path else found[2]
        return BadRequest(f"{path} is {'missing' if found[1] == 'missing required' else 'not known'}", field=path)
    what = what.replace("Invalid RFC3339 encoded datetime", "Expected `datetime`")
    what = re.sub("`(.*?)`", lambda found: _words(found[1]), what).replace("Expected", "expected")
    return BadRequest(f"{path}: {what}" if path else what, field=path or None)


def _words(types: str) -> str:
    """The JSON names of Python types."""
    names = types.split(" | ")
    if "float" in names and "int" in names:
        names.remove("int")
    return " or ".join(_WORDS.get(name, name) for name in names)
