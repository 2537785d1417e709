"""The argument template of a program: how the fields of a payload become an argv list. No shell is involved.

An argument may contain placeholders, ``{name}``, alone or inside other text (``--size={size}``). Literal braces are
doubled. ``{name:int}`` sets the type of the field: ``str`` (the default), ``int``, ``float`` or ``bool``.
``{name=value}`` sets its default. ``{name...}`` must be alone and becomes one argument for each element of a list. A
list within the list of arguments is left out if none of its fields is given:
``args = ["--fast", ["--quality", "{quality:int}"], "--", "{input}"]``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from taskd.model.errors import SettingsError, quote
from taskd.worker.handler import Reject

TYPES = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}

# a whole number has only one spelling, so it is allowed as a text
_CLASSES: dict[str, tuple[type, ...]] = {"str": (str, int), "int": (int,), "float": (int, float), "bool": (bool,)}

_TOKEN = re.compile(
    r"(?P<text>(?:[^{}]|\{\{|\}\})+)"
    r"|\{(?P<name>[A-Za-z_][A-Za-z0-9_-]*)(?::(?P<type>[a-z]+))?(?P<many>\.\.\.)?(?:=(?P<default>[^{}]*))?\}"
    r"|[{}]"
)


class Field(NamedTuple):
    """A field of the payload. ``many``: it is a list. ``default`` is its text if it is missing."""

    name: str
    type: str
    many: bool
    default: str | None

    @property
    def expected(self) -> str:
        """Its type in words."""
        return f"a list, each element {TYPES[self.type]}" if self.many else TYPES[self.type]

    def texts(self, value: Any) -> list[str]:
        """The texts of a value of the payload. Raises Reject if its type is wrong."""
        if not self.many:
            return [self._text(value)]
        if not isinstance(value, list):
            raise Reject(f"{self.name} must be {self.expected}")
        return [self._text(each) for each in value]

    def _text(self, value: Any) -> str:
        # a bool is an int, too
        if not isinstance(value, _CLASSES[self.type]) or isinstance(value, bool) != (self.type == "bool"):
            raise Reject(f"{self.name} must be {self.expected}, not {quote(_shown(value))}")
        text = _shown(value)
        if "\0" in text:
            raise Reject(f"{self.name} must not contain the NUL character")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Reject(f"{self.name} must be valid Unicode text") from None
        return text


class Argument(NamedTuple):
    """Literal texts and fields in their order. ``guarded``: it must not begin with a dash."""

    pieces: Sequence[str | Field]
    guarded: bool

    @property
    def fields(self) -> list[Field]:
        """Its fields."""
        return [piece for piece in self.pieces if isinstance(piece, Field)]

    def fill(self, texts: Mapping[str, Sequence[str]]) -> Sequence[str]:
        """One argument, or one for each element of a list. Raises Reject if one begins with a dash and must not."""
        parts = [[piece] if isinstance(piece, str) else texts[piece.name] for piece in self.pieces]
        filled = parts[0] if len(parts) == 1 else ["".join(part[0] for part in parts)]
        if self.guarded and any(text.startswith("-") for text in filled):
            name = self.fields[0].name
            raise Reject(f"{name} must not begin with '-', which the program would read as an option")
        return filled


class Template:
    """The arguments after a program's path. Raises SettingsError, without a location, if the template is invalid."""

    def __init__(self, args: Sequence[Any]) -> None:
        self._groups: list[tuple[list[Argument], bool]] = []
        """Arguments that are used together, and whether they may be left out."""
        self._fields: dict[str, Field] = {}
        self._required: set[str] = set()
        ended = False
        for item in args:
            optional = isinstance(item, list)
            group = [self._argument(each, ended) for each in (item if optional else [item])]
            fields = [field for argument in group for field in argument.fields]
            if not optional:
                self._required.update(field.name for field in fields)
                ended = ended or item == "--"
            elif not fields:
                raise SettingsError(
                    "a list within the arguments must contain a field: without one it is never left out"
                )
            elif any(self._fields[field.name].default is not None for field in fields):
                raise SettingsError(f"{fields[0].name} must not have a default in a list that may be left out")
            self._groups.append((group, optional))
        self._required -= {field.name for field in self._fields.values() if field.default is not None}

    @property
    def fields(self) -> list[str]:
        """The names of its fields in their order."""
        return list(self._fields)

    def fill(self, payload: Mapping[str, Any]) -> list[str]:
        """The arguments. Raises Reject with one line that names the field if the payload does not fit."""
        for name in payload:
            if name not in self._fields:
                known = ", ".join(self._fields) or "none"
                raise Reject(f"the payload must not have a field {quote(name)}; there are: {known}")
        texts = {field.name: [field.default] for field in self._fields.values() if field.default is not None}
        texts.update((name, self._fields[name].texts(value)) for name, value in payload.items())
        for name, field in self._fields.items():
            if name in self._required and name not in payload:
                raise Reject(f"the payload must have a field {name!r}: {field.expected}")
        return [text for argument in self._chosen(payload) for text in argument.fill(texts)]

    def _chosen(self, payload: Mapping[str, Any]) -> Iterator[Argument]:
        for group, optional in self._groups:
            names = [field.name for argument in group for field in argument.fields]
            missing = [name for name in names if name not in payload]
            given = [name for name in names if name in payload and name not in self._required]
            if not optional or not missing:
                yield from group
            elif given:
                raise Reject(f"the payload must have a field {missing[0]!r} when it has {given[0]!r}")

    def _argument(self, item: Any, ended: bool) -> Argument:
        if not isinstance(item, str):
            raise SettingsError(f"an argument must be a text, or a list of texts, not {item!r}")
        pieces = list(self._pieces(item))
        leading = pieces[0] if pieces else ""
        if len(pieces) > 1 and any(isinstance(piece, Field) and piece.many for piece in pieces):
            raise SettingsError(f"{quote(item)}: a list must be an argument of its own")
        if isinstance(leading, str) and len(pieces) > 1 and not leading.strip("-") and not ended:
            raise SettingsError(f"{quote(item)} would let the payload name an option: write the option's name out")
        return Argument(pieces, not ended and isinstance(leading, Field))

    def _pieces(self, item: str) -> Iterator[str | Field]:
        if "\0" in item:
            raise SettingsError("an argument must not contain the NUL character")
        for found in _TOKEN.finditer(item):
            if found["text"]:
                yield found["text"].replace("{{", "{").replace("}}", "}")
            elif found["name"]:
                yield self._field(found["name"], found["type"], bool(found["many"]), found["default"])
            else:
                raise SettingsError(f"{quote(item)} has a '{found[0]}' that is not part of a placeholder: double it")

    def _field(self, name: str, kind: str | None, many: bool, default: str | None) -> Field:
        if kind is not None and kind not in TYPES:
            raise SettingsError(f"{name} must be one of {', '.join(TYPES)}, not {kind}")
        if many and default is not None:
            raise SettingsError(f"{name} must not have a default, because it is a list")
        before = self._fields.get(name)
        found = Field(name, kind or (before.type if before else "str"), many, default)
        if before is not None:
            if (before.type, before.many) != (found.type, many):
                raise SettingsError(f"{name} must have the same type in every placeholder")
            found = found._replace(default=default if default is not None else before.default)
        if default is not None:
            _check_default(found, default)
        self._fields[name] = found
        return found


def _check_default(field: Field, default: str) -> None:
    fits = field.type != "bool" or default in ("true", "false")
    try:
        if field.type == "int":
            int(default)
        elif field.type == "float":
            fits = math.isfinite(float(default))
    except ValueError:
        fits = False
    if not fits:
        raise SettingsError(f"the default of {field.name} must be {TYPES[field.type]}, not {quote(default)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return value if isinstance(value, str) else json.dumps(value)
