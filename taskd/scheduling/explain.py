"""Why a task is where it is, in a word for programs and a sentence or two for people that say what to do."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from taskd.model.errors import quote
from taskd.model.states import State
from taskd.model.tasks import DEFAULT_KIND, PROGRAM_PREFIX, Task
from taskd.scheduling.routes import Routes
from taskd.scheduling.window import Windows


def explain(task: Task, now: datetime, routes: Routes, windows: Windows, broker_ready: bool) -> dict[str, Any]:
    """``code``, ``message``, and what a client needs to say it in its own words."""
    code, message, fields = _why(task, now, routes, windows, broker_ready)
    known = {
        "kind": task.kind,
        "queue": task.queue,
        "attempt": task.attempt,
        "max_attempts": task.max_attempts or None,
    }
    return {"code": code, "message": message, **known, **fields}


_Why = tuple[str, str, dict[str, Any]]


def _why(task: Task, now: datetime, routes: Routes, windows: Windows, broker_ready: bool) -> _Why:
    if task.state is State.COMPLETED:
        return "completed", "It is done; get_task has its result.", {"finished_at": task.finished_at}
    if task.state is State.CANCELLED:
        text = "It was cancelled by its owner; retry_task puts it back."
        return "cancelled", text, {"finished_at": task.finished_at}
    if task.state is State.FAILED:
        text = f"It has failed: {_reason(task)} get_task has all its attempts, and retry_task puts it back."
        return "failed", text, {"finished_at": task.finished_at, "error": task.error}
    if task.state is State.RUNNING:
        text = f"A worker runs attempt {task.attempt} of {task.max_attempts} since {_time(task.started_at)}."
        return "running", text, {"since": task.started_at}
    serving = routes.serving(task.route)
    fields: dict[str, Any] = {"workers": serving.workers if serving else 0, "slots": serving.slots if serving else 0}
    if task.state is State.WAITING and task.run_at > now:
        return _later(task, fields, "" if serving else f" But {_no_worker(task)}")
    if serving is None:
        text = _no_worker(task)
        return "no_worker", text[0].upper() + text[1:], fields
    if not broker_ready:
        return "broker_down", "RabbitMQ is away; it goes on by itself as soon as it is back.", fields
    if task.state is State.QUEUED:
        text = f"It is handed out, and runs as soon as a worker is free; {serving.workers} serve it at the moment."
        return "queued", text, fields
    return _in_line(task, fields, routes, windows)


def _later(task: Task, fields: dict[str, Any], but: str) -> _Why:
    fields["run_at"] = task.run_at
    if task.attempt:
        text = f"Attempt {task.attempt} of {task.max_attempts} has failed: {_reason(task)}"
        return "retrying", f"{text} It is tried again at {_time(task.run_at)}.{but}", {**fields, "error": task.error}
    return "scheduled", f"It is to run later: it begins at {_time(task.run_at)}, not before.{but}", fields


def _in_line(task: Task, fields: dict[str, Any], routes: Routes, windows: Windows) -> _Why:
    window = windows.by_route.get(task.route)
    if window is None:
        known = ", ".join(routes.queues)
        text = f"This server hands out nothing of the queue {quote(task.queue)}, only of {known}: another one must."
        return "waiting", text, fields
    fields |= {"queued": window.queued, "window": window.limit}
    if not window.room:
        text = f"Its turn comes as those before it are done: {window.queued} tasks are handed out, and no more may be."
        return "waiting", text, fields
    return "waiting", "Its turn comes in a moment: it stands behind others, or is just being handed out.", fields


def _no_worker(task: Task) -> str:
    start = "start a taskworker that does"
    if task.kind.startswith(PROGRAM_PREFIX):
        start += ", with --programs (or TASKD_PROGRAMS) naming a file that has a program of this name"
    elif task.kind != DEFAULT_KIND:
        start += ", with --handlers (or TASKD_HANDLERS) naming a module that has a handler of this kind"
    return f"no living worker serves the kind {quote(task.kind)} in the queue {quote(task.queue)}: {start}."


def _reason(task: Task) -> str:
    return f"{(task.error or 'no reason was given').rstrip('.')}."


def _time(when: datetime | None) -> str:
    return "an unknown time" if when is None else f"{when:%Y-%m-%d %H:%M:%S} UTC"
