"""``list``, ``show``, ``explain``, ``cancel`` and ``retry``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

from msgspec import Raw, Struct

from taskd.cli.context import Context
from taskd.cli.errors import OK, exit_status
from taskd.cli.paging import most_of, print_pages
from taskd.cli.ui.rendering import moment
from taskd.client.errors import Refused
from taskd.client.messages import Received
from taskd.model.spans import about
from taskd.model.visible import visible
from taskd.protocol.views import Moment

LIST_COLUMNS = ("id", "status", "state", "kind", "age", "text")


async def list_tasks(ctx: Context, options: Namespace) -> int:
    """Print tasks, newest first, from as many pages as necessary."""
    filters: dict[str, Any] = {
        name: value for name in ("status", "state", "kind", "username") if (value := getattr(options, name)) is not None
    }
    table = ctx.renderer.table(LIST_COLUMNS)

    def lines(tasks: Sequence[Raw]) -> list[str]:
        return table.lines(ctx.renderer.rows(map(ctx.view, tasks), ctx.now()))

    return await print_pages(ctx, "get_tasks", "tasks", filters, most_of(options), lines)


async def show(ctx: Context, options: Namespace) -> int:
    """Print everything about one task."""
    reply = await ctx.connector.ask("get_task", task_id=options.task_id)
    ctx.show(reply, lambda: ctx.renderer.details(ctx.view(reply.body.task)))
    return OK


class Explanation(Struct):
    """The reply to ``explain``. A field that does not apply is missing or null."""

    code: str = ""
    message: str = ""
    kind: str | None = None
    queue: str | None = None
    attempt: int | None = None
    max_attempts: int | None = None
    run_at: Moment | None = None
    since: Moment | None = None
    error: str | None = None
    blocked_by: str | None = None
    waits_for: str | None = None
    losses: int = 0
    returns: int = 0
    slots: int = 0
    held: int | None = None
    held_by_you: int = 0
    before_you: int = 0
    before_you_more: bool = False
    estimate: float | None = None
    basis: str | None = None


async def explain(ctx: Context, options: Namespace) -> int:
    """Print why a task is in its state."""
    reply = await ctx.connector.ask("explain", task_id=options.task_id)
    ctx.show(reply, lambda: [reason(ctx, options.task_id, reply)])
    return OK


def reason(ctx: Context, task_id: int, reply: Received) -> str:
    """The reply to ``explain``, in the user's language. Raises ConnectionFailed."""
    why = ctx.read(reply.line, Explanation)
    fields = {
        "kind": why.kind,
        "queue": why.queue,
        "attempt": why.attempt and ctx.renderer.attempt(why.attempt, why.max_attempts),
        "run_at": why.run_at and moment(why.run_at),
        "since": why.since and moment(why.since),
        "error": why.error and why.error.rstrip("."),
        "waits_for": why.waits_for,
        "blocked_by": why.blocked_by and why.blocked_by.rstrip("."),
        "losses": why.losses and ctx.renderer.times(why.losses),
        "show": ctx.command("show", str(task_id)),
        "retry": ctx.command("retry", str(task_id)),
    }
    text = ctx.texts.reason(why.code, why.message, **fields)
    if text == visible(why.message):
        return text
    if why.code == "waiting" and why.held is not None:
        text = _line(ctx, why)
    if why.returns and why.code not in ("completed", "failed", "cancelled"):
        text += " " + ctx.texts("given_back", times=ctx.renderer.times(why.returns))
    return text


def _line(ctx: Context, why: Explanation) -> str:
    """What is before a waiting task, and when it probably begins, in the user's language."""
    t = ctx.texts
    if why.basis == "free_slots":
        return t("line.free")
    before = t("line.more", n=why.before_you) if why.before_you_more else str(why.before_you)
    if not why.slots:
        return t("line.closed", queue=why.queue, before=before)
    text = t("line.slots", queue=why.queue, slots=why.slots, held=why.held, yours=why.held_by_you, before=before)
    if why.estimate is None:
        return f"{text} {t('line.unknown')}"
    number, unit = about(why.estimate)
    span = t(f"span.{unit if number > 1 else unit[:-1]}", n=number)
    if why.before_you_more:
        span = t("line.earliest", span=span)
    basis = why.basis if why.basis in ("ended_lately", "measured_times") else "begins"
    return f"{text} {t(f'line.{basis}', span=span)}"


async def cancel(ctx: Context, options: Namespace) -> int:
    """Cancel each task that can be cancelled."""
    return await _change_each(ctx, options.task_ids, "cancel_task", "cancelled")


async def retry(ctx: Context, options: Namespace) -> int:
    """Run each task again that can be retried."""
    return await _change_each(ctx, options.task_ids, "retry_task", "retried")


async def _change_each(ctx: Context, task_ids: Iterable[int], action: str, done: str) -> int:
    ids = list(dict.fromkeys(task_ids))
    connection, answers = await ctx.connector.send(*((action, {"task_id": task_id}) for task_id in ids))
    status = OK
    with closing(connection):
        for task_id, answer in zip(ids, answers, strict=True):
            try:
                ctx.report(await answer, done, id=task_id)
            except Refused as e:
                ctx.reporter.report(e)
                status = exit_status(e)
    return status
