"""The argument template of a program: how the fields of a payload become an argv list. No shell is involved.

An argument may contain placeholders, ``{name}``, alone or inside other text (``--size={size}``). Literal braces are
doubled. ``{name:int}`` sets the type of the field: ``str`` (the default), ``int``, ``float`` or ``bool``.
``{name=value}`` sets its default. ``{name...}`` must be alone and becomes one argument for each element of a list. A
list within the list of arguments is left out if none of its fields is given:
``args = ["--fast", ["--quality", "{quality:int}"], "--", "{input}"]``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from taskd.model.errors import SettingsError, quote
from taskd.worker.handler import Reject

TYPES = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}

_TOKEN = re.compile(
    r"(?P<brace>\{\{|\}\})"
    r"|\{(?P<name>[A-Za-z_][A-Za-z0-9_-]*)(?::(?P<type>[a-z]+))?(?P<many>\.\.\.)?(?:=(?P<default>[^{}]*))?\}"
    r"|(?P<text>[^{}]+)"
)


class Field(NamedTuple):
    """A field of the payload. ``many``: it is a list. ``default`` is its text if it is missing."""

    name: str
    type: str
    many: bool
    default: str | None


class Argument(NamedTuple):
    """Literal texts and fields in their order. ``guarded``: it must not begin with a dash."""

    pieces: tuple[str | Field, ...]
    guarded: bool

    @property
    def fields(self) -> list[Field]:
        """Its fields."""
        return [piece for piece in self.pieces if isinstance(piece, Field)]


Group = tuple[Argument, ...]


class Template:
    """The arguments after a program's path. Raises SettingsError, without a location, if the template is invalid."""

    def __init__(self, args: Sequence[Any]) -> None:
        self._parts: list[Argument | Group] = []
        self._fields: dict[str, Field] = {}
        self._required: set[str] = set()
        ended = False
        for item in args:
            if isinstance(item, list):
                self._parts.append(self._group(item, ended))
            else:
                argument = self._argument(item, ended)
                self._parts.append(argument)
                self._required.update(field.name for field in argument.fields)
                ended = ended or argument.pieces == ("--",)
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
        texts = {name: _texts(self._fields[name], value) for name, value in payload.items()}
        for name in self._fields:
            if name in self._required and name not in texts:
                raise Reject(f"the payload must have a field {name!r}: {_expected(self._fields[name])}")
        return [text for argument in self._chosen(texts) for text in self._filled(argument, texts)]

    def _chosen(self, texts: Mapping[str, Sequence[str]]) -> Iterator[Argument]:
        for part in self._parts:
            if isinstance(part, Argument):
                yield part
                continue
            names = list(dict.fromkeys(field.name for argument in part for field in argument.fields))
            missing = [name for name in names if name not in texts]
            if not missing:
                yield from part
            elif any(name in texts and name not in self._required for name in names):
                given = next(name for name in names if name in texts and name not in self._required)
                raise Reject(f"the payload must have a field {missing[0]!r} when it has {given!r}")

    def _filled(self, argument: Argument, texts: Mapping[str, Sequence[str]]) -> Iterator[str]:
        first = argument.pieces[0] if argument.pieces else ""
        if isinstance(first, Field) and first.many:
            made = list(texts[first.name])
        else:
            made = ["".join(self._text(piece, texts) for piece in argument.pieces)]
        for text in made:
            if argument.guarded and text.startswith("-"):
                name = argument.fields[0].name
                raise Reject(f"{name} must not begin with '-', which the program would read as an option")
            yield text

    def _text(self, piece: str | Field, texts: Mapping[str, Sequence[str]]) -> str:
        if isinstance(piece, str):
            return piece
        return texts[piece.name][0] if piece.name in texts else self._fields[piece.name].default or ""

    def _group(self, items: Sequence[Any], ended: bool) -> Group:
        group = tuple(self._argument(item, ended) for item in items)
        fields = [field for argument in group for field in argument.fields]
        if not fields:
            raise SettingsError("a list within the arguments must contain a field: without one it is never left out")
        if any(self._fields[field.name].default is not None for field in fields):
            raise SettingsError(f"{fields[0].name} must not have a default in a list that may be left out")
        return group

    def _argument(self, item: Any, ended: bool) -> Argument:
        if not isinstance(item, str):
            raise SettingsError(f"an argument must be a text, or a list of texts, not {item!r}")
        pieces = tuple(self._pieces(item))
        leading = pieces[0] if pieces else ""
        if len(pieces) > 1 and any(isinstance(piece, Field) and piece.many for piece in pieces):
            raise SettingsError(f"{quote(item)}: a list must be an argument of its own")
        if isinstance(leading, str):
            if len(pieces) > 1 and not leading.strip("-") and not ended:
                raise SettingsError(f"{quote(item)} would let the payload name an option: write the option's name out")
            return Argument(pieces, False)
        return Argument(pieces, not ended)

    def _pieces(self, item: str) -> Iterator[str | Field]:
        if "\0" in item:
            raise SettingsError("an argument must not contain the NUL character")
        at, literal = 0, ""
        while at < len(item):
            found = _TOKEN.match(item, at)
            if found is None:
                raise SettingsError(f"{quote(item)} has a '{item[at]}' that is not part of a placeholder: double it")
            at = found.end()
            if found["name"] is None:
                literal += found["text"] or found["brace"][0]
                continue
            if literal:
                yield literal
                literal = ""
            yield self._field(found["name"], found["type"], bool(found["many"]), found["default"])
        if literal:
            yield literal

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
    fits = True
    try:
        if field.type == "int":
            int(default)
        elif field.type == "float":
            fits = math.isfinite(float(default))
        elif field.type == "bool":
            fits = default in ("true", "false")
        if not fits:
            raise ValueError
    except ValueError:
        raise SettingsError(f"the default of {field.name} must be {TYPES[field.type]}, not {quote(default)}") from None


def _texts(field: Field, value: Any) -> list[str]:
    if not field.many:
        return [_text_of(field, value)]
    if not isinstance(value, list):
        raise Reject(f"{field.name} must be {_expected(field)}")
    return [_text_of(field, each) for each in value]


def _text_of(field: Field, value: Any) -> str:
    wrong = Reject(f"{field.name} must be {_expected(field)}, not {quote(_shown(value))}")
    if field.type == "bool":
        if not isinstance(value, bool):
            raise wrong
        return "true" if value else "false"
    if isinstance(value, bool):
        raise wrong
    # a whole number has only one spelling, so it is allowed as a text
    if isinstance(value, int) and field.type in ("str", "int", "float"):
        return str(value)
    if isinstance(value, float) and field.type == "float":
        return repr(value)
    if not isinstance(value, str) or field.type != "str":
        raise wrong
    if "\0" in value:
        raise Reject(f"{field.name} must not contain the NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Reject(f"{field.name} must be valid Unicode text") from None
    return value


def _expected(field: Field) -> str:
    what = TYPES[field.type]
    return f"a list, each element {what}" if field.many else what


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    try:
        return str(value)
    except ValueError:
        return "a number of that many digits"
