"""Explains why a task is in its state: a code for programs, and a sentence or two for people that say what to do."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from taskd.model.errors import quote
from taskd.model.states import TERMINAL, State
from taskd.model.tasks import DEFAULT_KIND, PROGRAM_PREFIX, Task
from taskd.ports.store import IStore
from taskd.ports.workers import WorkerStatus
from taskd.scheduling.routes import Routes
from taskd.scheduling.served_kinds import Serving
from taskd.scheduling.window import Windows


async def what_blocks(task: Task, alive: Iterable[WorkerStatus], store: IStore) -> str | None:
    """What blocks the worker that runs this task; None if nothing does, or if nothing runs it. Raises Unavailable."""
    if task.state is State.RUNNING:
        for worker in alive:
            if worker.stalled and any(held.task_id == task.id for held in await store.held_by(worker.info.name)):
                return worker.stalled
    return None


def explain(
    task: Task, now: datetime, routes: Routes, windows: Windows, broker_ready: bool, blocked_by: str | None = None
) -> dict[str, Any]:
    """``code``, ``message``, and the values that a client needs to say it in another language. ``now`` is the
    database's time, ``blocked_by`` what blocks the worker that runs the task."""
    code, message, fields = _why(task, now, routes, windows, broker_ready, blocked_by)
    if task.returns and task.state not in TERMINAL:
        message += f" Workers that were stopping have given it back {_times(task.returns)}."
    known = {
        "kind": task.kind,
        "queue": task.queue,
        "attempt": task.attempt,
        "max_attempts": task.max_attempts or None,
        "losses": task.losses,
        "returns": task.returns,
    }
    return {"code": code, "message": message, **known, **fields}


_Why = tuple[str, str, dict[str, Any]]


def _why(
    task: Task, now: datetime, routes: Routes, windows: Windows, broker_ready: bool, blocked_by: str | None
) -> _Why:
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
    serving = routes.serving(task.route)
    shown = serving or Serving(0, 0, 0, 0, "", 0)
    fields: dict[str, Any] = {
        "workers": shown.workers,
        "slots": shown.slots,
        "hung": shown.hung,
        "stalled": shown.stalled,
    }
    if task.state is State.WAITING and task.run_at > now:
        return _later(task, fields, "" if serving else f" But {_no_worker(task)}")
    if serving is None:
        text = _no_worker(task)
        return "no_worker", text[0].upper() + text[1:], fields
    if not broker_ready:
        return "broker_down", "RabbitMQ cannot be reached; the task continues by itself as soon as it can.", fields
    if serving.stalled == serving.workers:
        text = f"Every worker that serves it is blocked: {_sentence(serving.blocked_by)} It waits until one goes on."
        return "stalled", text, {**fields, "blocked_by": serving.blocked_by}
    if serving.hung and not serving.slots:
        text = (
            f"All {serving.hung} slots for it are taken by handlers that should have ended and have not: restart the"
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
        text = f"The task is in the broker. It runs as soon as a worker has a free slot; {serving.workers} serve it."
        return "queued", text, fields
    return _backlogged(task, fields, routes, windows)


def _later(task: Task, fields: dict[str, Any], but: str) -> _Why:
    fields["run_at"] = task.run_at
    if task.attempt:
        text = f"Attempt {task.attempt} of {task.max_attempts} has failed: {_reason(task)}"
        return "retrying", f"{text} The next attempt is at {_time(task.run_at)}.{but}", {**fields, "error": task.error}
    return "scheduled", f"The task is scheduled: it may run from {_time(task.run_at)} on.{but}", fields


def _backlogged(task: Task, fields: dict[str, Any], routes: Routes, windows: Windows) -> _Why:
    window = windows.by_route.get(task.route)
    if window is None:
        known = ", ".join(routes.queues)
        text = f"This server does not dispatch the queue {quote(task.queue)}, only {known}: another server must."
        return "waiting", text, fields
    fields |= {"queued": window.queued, "window": window.limit}
    if not window.room:
        text = f"The task waits for earlier ones: {window.queued} tasks are in the broker, which is the limit."
        return "waiting", text, fields
    return "waiting", "The task waits for earlier ones, or is just being dispatched.", fields


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
