"""``quota``: how much of a user's quotas is used, and their limits, which an admin sets."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from msgspec import Struct

from taskd.cli.context import Context
from taskd.cli.errors import OK, UsageError
from taskd.cli.fields import checked
from taskd.cli.ui.table import Cell, Table
from taskd.client.errors import ClientError
from taskd.model.quotas import MIB
from taskd.model.users import normalize_username

DEFAULT = "default"
"""What an option says for the default of the settings."""

MOST_COUNTED = 100_000
"""Servers count the open tasks of a user without a limit up to one more than this."""

_LIMITS = ("open", "daily", "mib")


class ShownQuota(Struct):
    """One quota as the server describes it. ``limit`` is 0 if there is none."""

    used: int
    limit: int
    default: bool = True


class ShownQuotas(Struct):
    """The reply of a server."""

    username: str
    open: ShownQuota
    daily: ShownQuota
    bytes: ShownQuota


async def quota(ctx: Context, options: Namespace) -> int:
    """Print the quotas of a user; with an option, set them before."""
    changes: dict[str, Any] = {
        name: None if given == DEFAULT else given for name in _LIMITS if (given := getattr(options, name)) is not None
    }
    fields = dict(changes)
    if options.username is not None:
        checked(normalize_username, options.username, ClientError("bad_username"))
        fields["username"] = options.username
    elif changes:
        raise UsageError("quota_whose")
    reply = await ctx.connector.ask("set_quota" if changes else "quota", **fields)
    shown = ctx.read(reply.line, ShownQuotas)
    ctx.show(reply, lambda: _table(ctx, shown))
    return OK


def _table(ctx: Context, shown: ShownQuotas) -> list[str]:
    mib = ShownQuota(round(shown.bytes.used / MIB), round(shown.bytes.limit / MIB), shown.bytes.default)
    rows = []
    for name, each in (("open", shown.open), ("daily", shown.daily), ("mib", mib)):
        what = ctx.texts(f"quota.{name}")
        most = each.limit or MOST_COUNTED
        more = name == "open" and each.used > most
        rows.append(
            {
                "used": Cell(f">{most}" if more else str(each.used)),
                "limit": Cell(str(each.limit) if each.limit else "-"),
                "quota": Cell(what if each.default else ctx.texts("quota.own", quota=what)),
            }
        )
    heads = {name: ctx.texts(f"col.{name}") for name in rows[0]}
    table = Table(heads, ctx.renderer.columns, right=("used", "limit"), expendable=(), least=0)
    return table.lines(rows)
