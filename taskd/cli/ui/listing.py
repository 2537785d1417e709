"""Tables of texts that other people have written: every cell is escaped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from taskd.cli.texts.catalogue import Texts
from taskd.cli.ui.table import Cell, Table
from taskd.model.visible import visible


class Listing:
    """A table with the columns ``names``, of which a narrow terminal drops the ``expendable`` ones in their order. The
    other parameters are those of :class:`Table`."""

    def __init__(
        self,
        texts: Texts,
        columns: int | None,
        names: Sequence[str],
        right: Collection[str] = (),
        expendable: Sequence[str] = (),
        least: int = 16,
    ) -> None:
        headings = {name: texts(f"col.{name}") for name in names}
        self._table = Table(headings, columns, right=right, expendable=expendable, least=least)

    def lines(self, rows: Iterable[Mapping[str, str]]) -> list[str]:
        """The lines for one page of rows; the first page begins with the headings."""
        return self._table.lines([{name: Cell(visible(text)) for name, text in row.items()} for row in rows])


def day(at: datetime) -> str:
    """The date in the local time zone."""
    return at.astimezone().date().isoformat()
