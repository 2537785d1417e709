"""Tables with aligned columns that fit the width of the terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from taskd.cli.ui.text import cut, pad, paint, width


class Cell(NamedTuple):
    """Visible text and its colour, a parameter of SGR."""

    text: str
    colour: str | None = None


@dataclass
class Table:
    """Rows below a line of ``headings``, which names the columns. Later pages keep the widths of the first.

    The last column takes the room that is left of ``columns`` cells, if given. While that is less than ``least``, the
    table drops the columns of ``expendable``, in their order. ``right`` ones are aligned to the right.
    """

    headings: Mapping[str, str]
    columns: int | None
    right: Collection[str]
    expendable: Sequence[str]
    least: int
    _widths: dict[str, int] = field(default_factory=dict)
    """The width of each column that is shown."""

    def lines(self, rows: Sequence[Mapping[str, Cell]]) -> list[str]:
        """The lines for one page of rows; the first page begins with the headings."""
        first = not self._widths
        if first:
            self._widths = {name: width(heading) for name, heading in self.headings.items()}
            rows = [{name: Cell(heading) for name, heading in self.headings.items()}, *rows]
        for row in rows:
            for name, known in self._widths.items():
                self._widths[name] = max(known, width(row[name].text))
        if first and self.columns is not None:
            for name in self.expendable:
                if self._room(self.columns) < self.least:
                    self._widths.pop(name, None)
        return [self._line(row) for row in rows]

    def _room(self, columns: int) -> int:
        *others, _ = self._widths.values()
        return columns - sum(room + 2 for room in others)

    def _line(self, row: Mapping[str, Cell]) -> str:
        *others, last = self._widths
        words = []
        for name in others:
            text, colour = row[name]
            room = self._widths[name]
            aligned = " " * (room - width(text)) + text if name in self.right else pad(text, room)
            words.append(paint(aligned, colour))
        text = row[last].text
        words.append(text if self.columns is None else cut(text, self._room(self.columns)))
        return "  ".join(words).rstrip()
