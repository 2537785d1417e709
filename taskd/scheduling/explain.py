"""Explains why a task is in its state: a code for programs, and a sentence or two for people that say what to do."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from taskd.model.errors import quote
from taskd.model.states import TERMINAL, State
from taskd.model.tasks import DEFAULT_KIND, PROGRAM_PREFIX, Task, shown_attempt
from taskd.ports.workers import WorkerStatus
from taskd.scheduling.pools import Pools
from taskd.scheduling.served_kinds import Serving


def what_blocks(task: Task, alive: Iterable[WorkerStatus]) -> str | None:
    """What blocks the worker that holds this task; None if nothing does, or if nobody holds it."""
    if task.state in (State.QUEUED, State.RUNNING):
        for worker in alive:
            if worker.info.name == task.worker:
                return worker.stalled
    return None


def explain(
    task: Task, now: datetime, pools: Pools, broker_ready: bool, blocked_by: str | None = None
) -> dict[str, Any]:
    """``code``, ``message``, and the values that a client needs to say it in another language. ``now`` is the
    database's time, ``blocked_by`` what blocks the worker that holds the task."""
    code, message, fields = _why(task, now, pools, blocked_by)
    if not broker_ready and code in ("queued", "waiting"):
        message += " RabbitMQ cannot be reached, so it may begin about two seconds later than it could."
    if task.returns and task.state not in TERMINAL:
        message += f" Workers that were stopping have given it back {_times(task.returns)}."
    known = {
        "kind": task.kind,
        "queue": task.queue,
        "attempt": shown_attempt(task),
        "max_attempts": task.max_attempts or None,
        "losses": task.losses,
        "returns": task.returns,
    }
    return {"code": code, "message": message, **known, **fields}


_Why = tuple[str, str, dict[str, Any]]


def _why(task: Task, now: datetime, pools: Pools, blocked_by: str | None) -> _Why:
    if task.state is State.COMPLETED:
        return "completed", "The task is done; get_task has its result.", {"finished_at": task.finished_at}
    if task.state is State.CANCELLED:
        text = "The owner has cancelled the task; retry_task runs it again."
        return "cancelled", text, {"finished_at": task.finished_at}
    if task.state is State.FAILED:
        text = f"The task has failed: {_reason(task)} get_task has all its attempts, and retry_task runs it again."
        return "failed", text, {"finished_at": task.finished_at, "error": task.error}
    if task.state is State.RUNNING:
        attempt = f"attempt {task.attempt} of {task.max_attempts}"
        text = f"A worker has been running {attempt} since {_time(task.started_at)}."
        if blocked_by:
            text += f" But this worker is blocked: {_sentence(blocked_by)}"
            return "stalled", text, {"since": task.started_at, "blocked_by": blocked_by}
        return "running", text, {"since": task.started_at}
    serving = pools.serving(task.route)
    shown = serving or Serving(0, 0, 0, 0, "", 0)
    fields: dict[str, Any] = {
        "workers": shown.workers,
        "slots": shown.slots,
        "hung": shown.hung,
        "stalled": shown.stalled,
    }
    if task.state is State.WAITING and task.run_at > now:
        return _later(task, fields, "" if serving else f" But {_no_worker(task)}")
    if task.state is State.QUEUED and blocked_by:
        text = f"The worker that holds the task is blocked: {_sentence(blocked_by)} It waits until that goes on."
        return "stalled", text, {**fields, "blocked_by": blocked_by}
    if task.state is State.WAITING and serving is None:
        text = _no_worker(task)
        return "no_worker", text[0].upper() + text[1:], fields
    if task.state is State.WAITING and shown.stalled == shown.workers:
        text = f"Every worker that serves it is blocked: {_sentence(shown.blocked_by)} It waits until one goes on."
        return "stalled", text, {**fields, "blocked_by": shown.blocked_by}
    if shown.hung and not shown.slots:
        text = (
            f"All {shown.hung} slots for it are taken by handlers that should have ended and have not: restart the"
            " workers that serve it."
        )
        return "hung", text, fields
    if task.losses:
        text = (
            f"Its worker died {_times(task.losses)} while it ran, so it runs with few others beside it: it waits for"
            " such a place, but not for long."
        )
        return "suspect", text, fields
    if task.state is State.QUEUED:
        return "queued", "A worker has the task, and begins it as soon as it has a free slot.", fields
    return _backlogged(task, fields, pools, shown)


def _later(task: Task, fields: dict[str, Any], but: str) -> _Why:
    fields["run_at"] = task.run_at
    if task.attempt:
        text = f"Attempt {task.attempt} of {task.max_attempts} has failed: {_reason(task)}"
        return "retrying", f"{text} The next attempt is at {_time(task.run_at)}.{but}", {**fields, "error": task.error}
    return "scheduled", f"The task is scheduled: it may run from {_time(task.run_at)} on.{but}", fields


def _backlogged(task: Task, fields: dict[str, Any], pools: Pools, serving: Serving) -> _Why:
    found = pools.by_route.get(task.route)
    if found is None:
        known = ", ".join(pools.queues)
        text = f"This server does not assign tasks of the queue {quote(task.queue)}, only {known}: another server must."
        return "waiting", text, fields
    if any(pool.credit.room_left for pool in found):
        return "waiting", "The task waits for earlier ones, or is just being assigned to a worker.", fields
    text = f"The task waits for a free slot: {serving.slots} run tasks of its kind, and all are taken."
    return "waiting", text, fields


def _no_worker(task: Task) -> str:
    start = "start a taskworker that serves it"
    if task.kind.startswith(PROGRAM_PREFIX):
        start += ", with --programs (or TASKD_PROGRAMS) naming a file that has a program of this name"
    elif task.kind != DEFAULT_KIND:
        start += ", with --handlers (or TASKD_HANDLERS) naming a module that has a handler of this kind"
    return f"no living worker serves the kind {quote(task.kind)} in the queue {quote(task.queue)}: {start}."


def _reason(task: Task) -> str:
    return _sentence(task.error or "no reason was given")


def _sentence(text: str) -> str:
    return f"{text.rstrip('.')}."


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _time(when: datetime | None) -> str:
    return "an unknown time" if when is None else f"{when:%Y-%m-%d %H:%M:%S} UTC"
