"""``kinds``: the kinds of task that workers serve now, for people and for other commands."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from msgspec import Struct

from taskd.cli.context import Context
from taskd.cli.durations import duration
from taskd.cli.errors import OK
from taskd.cli.ui.table import Cell, Table
from taskd.client.errors import Refused
from taskd.client.messages import Received
from taskd.client.retry import Resender
from taskd.model.visible import visible

_LEAST_SUMMARY = 16
"""The fewest cells for the summary; a narrow terminal drops other columns."""

_TROUBLES = ("stalled", "hung")
"""The columns that are there only if a kind has something to show in them."""


class ShownKind(Struct):
    """A kind as the server describes it. ``timeout`` is in seconds."""

    kind: str
    queues: list[str] = []
    isolation: str = ""
    timeout: float | None = None
    max_attempts: int | None = None
    summary: str | None = None
    workers: int = 0
    slots: int = 0
    hung: int = 0
    stalled: int = 0


async def kinds(ctx: Context, options: Namespace) -> int:
    """Print the kinds that workers serve, sorted by name."""
    reply = await ctx.connector.ask("kinds")
    served = _decoded(ctx, reply)
    if ctx.json:
        ctx.out.raw(*reply.body.kinds)
    elif served:
        ctx.out.lines(_table(ctx, served))
    else:
        ctx.say("no_kinds")
    return OK


async def served_kinds(ctx: Context, resender: Resender) -> set[str]:
    """The kinds that workers serve now; empty if the server is too old to know."""
    try:
        reply, _ = await resender.send("kinds", None)
    except Refused as e:
        if e.code != "unknown_action":
            raise
        return set()
    return {kind.kind for kind in _decoded(ctx, reply)}


def _decoded(ctx: Context, reply: Received) -> list[ShownKind]:
    return sorted((ctx.read(raw, ShownKind) for raw in reply.body.kinds), key=lambda kind: kind.kind)


def _table(ctx: Context, served: Sequence[ShownKind]) -> list[str]:
    rows = [{name: Cell(visible(text)) for name, text in _cells(kind).items()} for kind in served]
    for trouble in _TROUBLES:
        if all(row[trouble].text == "0" for row in rows):
            for row in rows:
                del row[trouble]
    expendable = ("slots", "attempts", "isolation", "queues", "timeout", "workers", *_TROUBLES)
    table = Table(
        {name: ctx.texts(f"col.{name}") for name in rows[0]},
        ctx.renderer.columns,
        right=("attempts", "workers", "slots", *_TROUBLES),
        expendable=[name for name in expendable if name in rows[0]],
        least=_LEAST_SUMMARY,
    )
    return table.lines(rows)


def _cells(kind: ShownKind) -> dict[str, str]:
    return {
        "kind": kind.kind,
        "queues": ", ".join(kind.queues),
        "isolation": kind.isolation,
        "timeout": "-" if kind.timeout is None else duration(kind.timeout),
        "attempts": str(kind.max_attempts or "-"),
        "workers": str(kind.workers),
        "stalled": str(kind.stalled),
        "slots": str(kind.slots),
        "hung": str(kind.hung),
        "summary": kind.summary or "",
    }
