"""Lists that the server sends page by page."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from msgspec import Raw

from taskd.cli.context import Context
from taskd.cli.errors import OK
from taskd.protocol.limits import DEFAULT_PAGE, MAX_PAGE


def most_of(options: Namespace) -> float:
    """How many rows ``--limit`` and ``--all`` ask for."""
    return math.inf if options.all else options.limit or DEFAULT_PAGE


async def print_pages(
    ctx: Context,
    action: str,
    rows: str,
    filters: Mapping[str, Any],
    most: float,
    lines: Callable[[Sequence[Raw]], Sequence[str]],
) -> int:
    """Print a list from as many pages as necessary, up to ``most`` rows. Returns the exit status.

    ``rows`` is the field of a reply that has the rows, and ``lines`` turns those of one page into text. With ``--json``
    each row is one line. Raises ClientError.
    """
    connection, (answer,) = await ctx.connector.send((action, {**filters, "limit": min(most, MAX_PAGE)}))
    with closing(connection):
        empty = True
        while True:
            page = (await answer).body
            found: list[Raw] = getattr(page, rows)
            empty = empty and not found
            if ctx.json:
                ctx.out.raw(*found)
            elif found:
                ctx.out.lines(lines(found))
            most -= len(found)
            if page.cursor is None or most <= 0:
                break
            answer = connection.request(action, **filters, limit=min(most, MAX_PAGE), cursor=page.cursor)
    if not ctx.json:
        if empty:
            ctx.say(f"no_{rows}")
        elif page.cursor is not None:
            ctx.note("more")
    return OK
