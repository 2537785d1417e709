"""``overview``: how many tasks there are by queue and kind, and how fast they end."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from msgspec import Struct

from taskd.cli.context import Context
from taskd.cli.durations import duration
from taskd.cli.errors import OK
from taskd.cli.ui.table import Cell, Table
from taskd.model.visible import visible

_COUNTS = ("waiting", "delayed", "queued", "running", "slots", "hung")
_NUMBERS = (*_COUNTS, "rate", "oldest")

_EXPENDABLE = ("hung", "rate", "oldest", "delayed", "queued", "slots", "running")
"""The columns that a narrow terminal drops, in this order."""

_LEAST_OLDEST = 8
"""The fewest cells for the last column."""


class ShownRoute(Struct):
    """A queue and kind as the server describes it. ``more`` names the fields that are at least what they say."""

    queue: str
    kind: str
    waiting: int = 0
    delayed: int = 0
    queued: int = 0
    running: int = 0
    slots: int = 0
    hung: int = 0
    rate: float = 0.0
    oldest: float | None = None
    more: list[str] = []


async def overview(ctx: Context, options: Namespace) -> int:
    """Print the counts by queue and kind."""
    reply = await ctx.connector.ask("overview")
    routes = [ctx.read(raw, ShownRoute) for raw in reply.body.routes]
    ctx.show(reply, lambda: _table(ctx, routes) if routes else [ctx.texts("no_work")])
    if routes and not ctx.json:
        if reply.body.more:
            ctx.note("more_routes")
        ctx.note("rate_all" if reply.body.scope == "all" else "rate_own", time=duration(round(reply.body.rate_seconds)))
    return OK


def _table(ctx: Context, routes: Sequence[ShownRoute]) -> list[str]:
    rows = [{name: Cell(visible(text)) for name, text in _cells(route).items()} for route in routes]
    if not any(route.hung for route in routes):
        for row in rows:
            del row["hung"]
    table = Table(
        {name: ctx.texts(f"col.{name}") for name in rows[0]},
        ctx.renderer.columns,
        right=_NUMBERS,
        expendable=[name for name in _EXPENDABLE if name in rows[0]],
        least=_LEAST_OLDEST,
    )
    return table.lines(rows)


def _cells(route: ShownRoute) -> dict[str, str]:
    counts = {name: f"{'>' if name in route.more else ''}{getattr(route, name)}" for name in _COUNTS}
    oldest = "-" if route.oldest is None else duration(round(route.oldest))
    return {
        "queue": route.queue,
        "kind": route.kind,
        **counts,
        "rate": f"{route.rate:g}",
        "oldest": f"{'>' if 'oldest' in route.more else ''}{oldest}",
    }
