"""``kinds``: the kinds of task that workers serve now, for people and for other commands."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from taskd.cli.context import Context
from taskd.cli.durations import duration
from taskd.cli.exit_status import OK
from taskd.cli.ui.table import Cell, Table
from taskd.cli.ui.text import visible
from taskd.client.connection import read
from taskd.client.errors import Refused
from taskd.client.resend import Resender

COLUMNS = ("kind", "queues", "isolation", "timeout", "attempts", "workers", "slots", "summary")
_LEAST_SUMMARY = 16
"""The fewest cells for the summary; a narrow terminal drops other columns."""


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


class _Reply(Struct):
    kinds: list[Raw]


_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_kind = msgspec.json.Decoder(ShownKind).decode


async def kinds(ctx: Context, options: Namespace) -> int:
    """Print the kinds that workers serve, sorted by name."""
    reply = await ctx.connector.ask("kinds")
    raws = read(reply.line, _decode_reply, ctx.server).kinds
    served = sorted(_decode_kinds(raws, ctx.server), key=lambda kind: kind.kind)
    if ctx.json:
        ctx.out.raw(map(bytes, raws))
    elif served:
        ctx.out.lines(_table(ctx, served))
    else:
        ctx.out.line(ctx.texts("no_kinds"))
    return OK


async def served_kinds(resender: Resender, server: str) -> set[str]:
    """The kinds that workers serve now; empty if the server is too old to know."""
    try:
        reply, _ = await resender.send("kinds", None)
    except Refused as e:
        if e.code != "unknown_action":
            raise
        return set()
    return {kind.kind for kind in _decode_kinds(read(reply.line, _decode_reply, server).kinds, server)}


def _decode_kinds(raws: Sequence[Raw], server: str) -> list[ShownKind]:
    return [read(bytes(raw), _decode_kind, server) for raw in raws]


def _table(ctx: Context, served: Sequence[ShownKind]) -> list[str]:
    table = Table(
        {name: ctx.texts(f"col.{name}") for name in COLUMNS},
        ctx.renderer.columns,
        right=("attempts", "workers", "slots"),
        expendable=("slots", "attempts", "isolation", "queues", "timeout", "workers"),
        least=_LEAST_SUMMARY,
    )
    return table.lines([{name: Cell(visible(text)) for name, text in _cells(kind).items()} for kind in served])


def _cells(kind: ShownKind) -> dict[str, str]:
    return {
        "kind": kind.kind,
        "queues": ", ".join(kind.queues),
        "isolation": kind.isolation,
        "timeout": "-" if kind.timeout is None else duration(kind.timeout),
        "attempts": "-" if kind.max_attempts is None else str(kind.max_attempts),
        "workers": str(kind.workers),
        "slots": str(kind.slots),
        "summary": kind.summary or "",
    }
