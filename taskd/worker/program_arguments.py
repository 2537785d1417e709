"""The argument template of a program: how the fields of a payload become an argv list. No shell is involved.

An argument may contain placeholders, ``{name}``, alone or inside other text (``--size={size}``). Literal braces are
doubled. ``{name:int}`` sets the type of the field: ``int``, ``float``, ``bool``, ``name`` (of a file, without a path),
``path`` (of a file below the root of the program) or ``str``. Without a type it is a text; in an argument with a
literal slash it is one part of the path, and cannot lead out of the folder. ``str`` is any text, also there.

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
from taskd.worker.forkserver.messages import Path
from taskd.worker.handler import Reject

TYPES = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "name": "a name without a path",
    "path": "a path",
}

# a whole number has only one spelling, so it is allowed as a text
_CLASSES: dict[str, tuple[type, ...]] = {"str": (str, int), "int": (int,), "float": (int, float), "bool": (bool,)}
_CLASSES |= {"name": (str, int), "path": (str,)}

_NO_NAMES = ("", ".", "..")
"""As the last part of a path they name a folder, which may lie outside of the one before them."""

_TOKEN = re.compile(
    r"(?P<text>(?:[^{}]|\{\{|\}\})+)"
    r"|\{(?P<name>[A-Za-z_][A-Za-z0-9_-]*)(?::(?P<type>[a-z]+))?(?P<many>\.\.\.)?(?:=(?P<default>[^{}]*))?\}"
    r"|[{}]"
)


class Field(NamedTuple):
    """A field of the payload. ``many``: it is a list. ``default`` is its text if it is missing. ``free``: this
    placeholder says ``:str``, and takes any text also beside a slash."""

    name: str
    type: str
    many: bool
    default: str | None
    free: bool = False

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
        if self.type == "name" and ("/" in text or text in _NO_NAMES):
            raise Reject(f"{self.name} must be {TYPES['name']}, not {quote(text)}")
        if self.type == "path" and not text:
            raise Reject(f"{self.name} must not be empty")
        return text


class Argument(NamedTuple):
    """Literal texts and fields in their order. ``guarded``: it must not begin with a dash. ``is_path``: what its fields
    are part of must be parts of a path."""

    pieces: Sequence[str | Field]
    guarded: bool
    is_path: bool

    @property
    def fields(self) -> list[Field]:
        """Its fields."""
        return [piece for piece in self.pieces if isinstance(piece, Field)]

    def fill(self, texts: Mapping[str, Sequence[str]]) -> Sequence[str | Path]:
        """One argument, or one for each element of a list. Raises Reject if one begins with a dash and must not, or
        leads out of its folder."""
        parts = [[piece] if isinstance(piece, str) else texts[piece.name] for piece in self.pieces]
        last = self.pieces[-1] if self.pieces else ""
        path = last if isinstance(last, Field) and last.type == "path" else None
        if path is not None:
            # the path itself is absolute when it has been resolved
            before = "".join(part[0] for part in parts[:-1])
            filled: Sequence[str] = [before or "/"]
        else:
            filled = parts[0] if len(parts) == 1 else ["".join(part[0] for part in parts)]
        if self.is_path:
            self._check_parts(texts, self.pieces[:-1] if path is not None else self.pieces)
        if self.guarded and any(text.startswith("-") for text in filled):
            name = self.fields[0].name
            raise Reject(f"{name} must not begin with '-', which the program would read as an option")
        return filled if path is None else [Path(path.name, before, text) for text in parts[-1]]

    def _check_parts(self, texts: Mapping[str, Sequence[str]], pieces: Sequence[str | Field]) -> None:
        """The parts of the path between literal slashes: none that has a field may lead out of its folder, except by
        ``:str``, which the author of the template has allowed it."""
        part, named, free = "", "", False
        for piece in [*pieces, "/"]:
            if isinstance(piece, Field):
                text = texts[piece.name][0]
                if "/" in text and not piece.free:
                    raise Reject(f"{piece.name} must not contain '/': it is one part of a path")
                part, named, free = part + text, piece.name, free or piece.free
                continue
            first, *others = piece.split("/")
            part += first
            if others:
                if named and not free and part in _NO_NAMES:
                    raise Reject(f"{named} must not make {quote(part)} a part of a path")
                part, named, free = others[-1], "", False


class Template:
    """The arguments after a program's path. Raises SettingsError, without a location, if the template is invalid.

    A :class:`Path` among the arguments is to be resolved, below the root, where the program is started.
    """

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

    @property
    def paths(self) -> list[str]:
        """The names of those fields that are paths below the root."""
        return [field.name for field in self._fields.values() if field.type == "path"]

    def fill(self, payload: Mapping[str, Any]) -> list[str | Path]:
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
        return [each for argument in self._chosen(payload) for each in argument.fill(texts)]

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
        for before, piece in zip(["", *pieces], pieces, strict=False):
            if isinstance(piece, Field) and piece.type == "path":
                _check_path_place(item, piece, before, pieces)
        named = any(isinstance(piece, Field) and piece.type == "name" for piece in pieces)
        is_path = named or any(isinstance(piece, str) and "/" in piece for piece in pieces)
        return Argument(pieces, not ended and isinstance(leading, Field), is_path and not _is_list(pieces))

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
        found = Field(name, kind or (before.type if before else "str"), many, default, kind == "str")
        if before is not None:
            if (before.type, before.many) != (found.type, many):
                raise SettingsError(f"{name} must have the same type in every placeholder")
            found = found._replace(default=default if default is not None else before.default)
        if default is not None:
            _check_default(found, default)
        self._fields[name] = found
        return found


def _is_list(pieces: Sequence[str | Field]) -> bool:
    return len(pieces) == 1 and isinstance(pieces[0], Field) and pieces[0].many


def _check_path_place(item: str, field: Field, before: str | Field, pieces: Sequence[str | Field]) -> None:
    """It becomes an absolute path: what follows would change which file it is, and a folder before it means nothing."""
    if field is not pieces[-1] or (isinstance(before, str) and before.endswith("/")):
        raise SettingsError(f"{quote(item)}: a path must be at the end of its argument, and not after a '/'")


def _check_default(field: Field, default: str) -> None:
    fits = field.type != "bool" or default in ("true", "false")
    try:
        if field.type == "int":
            int(default)
        elif field.type == "float":
            fits = math.isfinite(float(default))
        elif field.type == "name":
            fits = "/" not in default and default not in _NO_NAMES
        elif field.type == "path":
            fits = bool(default)
    except ValueError:
        fits = False
    if not fits:
        raise SettingsError(f"the default of {field.name} must be {TYPES[field.type]}, not {quote(default)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return value if isinstance(value, str) else json.dumps(value)
