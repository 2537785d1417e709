"""Tables with aligned columns that fit the width of the terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from taskd.cli.ui.text import cut, pad, paint, width


class Cell(NamedTuple):
    """Visible text and its colour, a parameter of SGR."""

    text: str
    colour: str | None = None


class Table:
    """Rows below a line of ``headings``, which names the columns. Later pages keep the widths of the first.

    The last column takes the room that is left of ``columns`` cells, if given. While that is less than ``least``, the
    table drops the columns of ``expendable``, in their order. ``right`` ones are aligned to the right.
    """

    def __init__(
        self,
        headings: Mapping[str, str],
        columns: int | None,
        *,
        right: Collection[str],
        expendable: Sequence[str],
        least: int,
    ) -> None:
        self._headings = {name: Cell(text) for name, text in headings.items()}
        self._columns = columns
        self._right = right
        self._expendable = expendable
        self._least = least
        self._names = list(headings)
        self._widths: dict[str, int] = {}

    def lines(self, rows: Sequence[Mapping[str, Cell]]) -> list[str]:
        """The lines for one page of rows; the first page begins with the headings."""
        first = not self._widths
        for row in (self._headings, *rows):
            for name in self._names:
                self._widths[name] = max(self._widths.get(name, 0), width(row[name].text))
        if first:
            self._fit()
        return [self._line(row) for row in ([self._headings, *rows] if first else rows)]

    def _fit(self) -> None:
        for name in self._expendable:
            if self._columns is None or self._room(self._columns) >= self._least:
                return
            if name in self._names:
                self._names.remove(name)

    def _room(self, columns: int) -> int:
        return columns - sum(self._widths[name] + 2 for name in self._names[:-1])

    def _line(self, row: Mapping[str, Cell]) -> str:
        words = []
        for name in self._names[:-1]:
            text, colour = row[name]
            room = self._widths[name]
            aligned = " " * (room - width(text)) + text if name in self._right else pad(text, room)
            words.append(paint(aligned, colour))
        last = row[self._names[-1]].text
        words.append(last if self._columns is None else cut(last, self._room(self._columns)))
        return "  ".join(words).rstrip()
