"""``kinds``: what the workers serve now; and whether a word names one of those kinds."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from taskd.cli.context import Context
from taskd.cli.durations import duration
from taskd.cli.ui.rendering import cut, pad, visible, width
from taskd.client.connection import Received, read
from taskd.client.errors import OK

COLUMNS = ("kind", "queues", "isolation", "timeout", "attempts", "workers", "slots", "summary")
_NUMBERS = frozenset({"attempts", "workers", "slots"})
_EXPENDABLE = ("slots", "attempts", "isolation", "queues", "timeout", "workers")
"""Columns that a narrow terminal gives up, in this order."""

_LEAST_SUMMARY = 16


class ShownKind(Struct):
    """One kind as the server describes it. ``timeout`` is in seconds."""

    kind: str
    queues: list[str] = []
    isolation: str = ""
    timeout: float | None = None
    max_attempts: int | None = None
    summary: str | None = None
    workers: int = 0
    slots: int = 0


class _Reply(Struct):
    kinds: list[Raw]


_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_kind = msgspec.json.Decoder(ShownKind).decode


def read_kinds(reply: Received, server: str) -> list[ShownKind]:
    """What a reply to ``kinds`` says. Raises ConnectionTrouble."""
    return [read(bytes(raw), _decode_kind, server) for raw in read(reply.line, _decode_reply, server).kinds]


async def kinds(ctx: Context, options: Namespace) -> int:
    """Print the kinds that workers serve, in order of their names."""
    reply = await ctx.ask("kinds")
    served = sorted(read_kinds(reply, ctx.server), key=lambda kind: kind.kind)
    if ctx.json:
        ctx.out.raw(map(bytes, read(reply.line, _decode_reply, ctx.server).kinds))
    elif served:
        ctx.out.lines(_table(ctx, served))
    else:
        ctx.out.line(ctx.texts("no_kinds"))
    return OK


def _table(ctx: Context, served: Sequence[ShownKind]) -> list[str]:
    """Aligned rows under a heading, as wide as the terminal at most."""
    rows = [{name: ctx.texts(f"col.{name}") for name in COLUMNS}, *map(_cells, served)]
    widths = {name: max(width(row[name]) for row in rows) for name in COLUMNS}
    names, columns = list(COLUMNS), ctx.renderer.columns

    def room() -> int:
        return 0 if columns is None else columns - sum(widths[name] + 2 for name in names[:-1])

    for name in _EXPENDABLE:
        if columns is None or room() >= _LEAST_SUMMARY:
            break
        names.remove(name)
    lines = []
    for row in rows:
        words = [
            " " * (widths[name] - width(row[name])) + row[name] if name in _NUMBERS else pad(row[name], widths[name])
            for name in names[:-1]
        ]
        last = row[names[-1]]
        lines.append("  ".join([*words, last if columns is None else cut(last, room())]).rstrip())
    return lines


def _cells(kind: ShownKind) -> dict[str, str]:
    return {
        "kind": visible(kind.kind),
        "queues": visible(", ".join(kind.queues)),
        "isolation": visible(kind.isolation),
        "timeout": "-" if kind.timeout is None else duration(kind.timeout),
        "attempts": "-" if kind.max_attempts is None else str(kind.max_attempts),
        "workers": str(kind.workers),
        "slots": str(kind.slots),
        "summary": visible(kind.summary or ""),
    }
