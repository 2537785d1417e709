"""Generates the reference part of docs/protocol.md from the registry, so that page and code cannot differ.

``python -m taskd.protocol.docs`` prints the parts; with a path it writes them into that page, between the marks
``<!-- begin NAME -->`` and ``<!-- end NAME -->``. A test fails while the page is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import NODEFAULT, UNSET, Meta, Raw, UnsetType

from taskd.protocol.actions import ACTIONS, Access, Action

_TYPES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    Raw: "object",
    list: "array",
    datetime: "time",
}
_WHO = {Access.ANYONE: "anyone", Access.LOCAL: "local", Access.USER: "logged in", Access.ADMIN: "admin"}
_PART = re.compile(r"(<!-- begin ([\w ]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def parts() -> dict[str, str]:
    """Every generated part of the page, by its name: ``actions``, and ``fields NAME`` for each action."""
    return {"actions": overview()} | {f"fields {a.name}": fields(a) for a in ACTIONS.values()}


def updated(page: str) -> str:
    """The page with its marked parts regenerated. Raises ValueError when a part has no place, or two."""
    wanted = parts()
    found = [name for _, name, _ in _PART.findall(page)]
    if sorted(found) != sorted(wanted):
        raise ValueError(f"marked parts must be {sorted(wanted)}, not {sorted(found)}")
    return _PART.sub(lambda part: f"{part[1]}\n{wanted[part[2]]}\n{part[3]}", page)


def overview() -> str:
    """All actions in one table."""
    rows = [
        (
            f"[`{a.name}`](#{a.name})",
            _WHO[a.access],
            "yes" if a.exclusive else "",
            a.summary,
        )
        for a in ACTIONS.values()
    ]
    return _table(("action", "who", "alone", "what it does"), rows)


def fields(action: Action) -> str:
    """The fields of an action's request in one table."""
    hints = get_type_hints(action.request, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(action.request):
        default = field.default if field.default_factory is NODEFAULT else field.default_factory()
        shown = "required" if field.required else "" if default in (None, UNSET) else f"`{_json(default)}`"
        rows.append((f"`{field.name}`", _type(hints[field.name]), shown, _description(hints[field.name])))
    return _table(("field", "type", "default", "meaning"), rows) if rows else "It takes no fields.\n"


def _type(hint: Any) -> str:
    """A hint in JSON's words, with the range of a number: ``integer, 1 to 500``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = _range([meta for meta in arguments[1:] if isinstance(meta, Meta)])
        return f"{_type(arguments[0])}{limits}"
    if origin in (Union, UnionType):
        return " or ".join(_type(a) for a in arguments if a not in (type(None), UnsetType))
    if origin is list:
        return f"array of {_type(arguments[0]).partition(',')[0]}s"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return "object"
    return _TYPES[origin or hint]


def _range(metas: list[Meta]) -> str:
    low = next((m.ge for m in metas if m.ge is not None), None)
    high = next((m.le for m in metas if m.le is not None), None)
    above = next((m.gt for m in metas if m.gt is not None), None)
    if above is not None and high is not None:
        return f", more than {above:,.0f}, up to {high:,.0f}"
    if low is None:
        return ""
    return f", from {low:,}" if high is None or high == 2**63 - 1 else f", {low:,} to {high:,.0f}"


def _description(hint: Any) -> str:
    metas = [meta for meta in get_args(hint)[1:] if isinstance(meta, Meta)] if get_origin(hint) is Annotated else []
    return next((meta.description for meta in metas if meta.description), "")


def _json(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text.removesuffix(".0")


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in lines)


def main(arguments: list[str]) -> None:
    """Print the parts, or update a page."""
    if not arguments:
        print("\n".join(f"<!-- {name} -->\n{text}" for name, text in parts().items()))
    for name in arguments:
        path = Path(name)
        path.write_text(updated(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
