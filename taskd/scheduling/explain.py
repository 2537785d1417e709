"""Explains why a task is in its state: a code for programs, and a sentence or two for people that say what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from taskd.events.end_rates import EndRates
from taskd.model.errors import quote
from taskd.model.spans import about
from taskd.model.states import TERMINAL, State
from taskd.model.tasks import DEFAULT_KIND, PROGRAM_PREFIX, Task, shown_attempt
from taskd.ports.broker import IBroker
from taskd.ports.overview import Line
from taskd.ports.store import IStore
from taskd.ports.workers import WorkerStatus
from taskd.scheduling.estimate import ENDED_LATELY, FREE_SLOTS, MEASURED_TIMES, Estimate, estimate
from taskd.scheduling.pools import Pools, WorkerPool
from taskd.scheduling.scheduler import Scheduler
from taskd.scheduling.served_kinds import Serving

MOST_POOLS = 3
"""In so many of the pools that serve a task its line is counted, those with the most slots."""

_BASES = {
    ENDED_LATELY: "as fast as your tasks have ended lately",
    MEASURED_TIMES: "by the times that workers have measured",
}


class _Place(NamedTuple):
    """The line of a task in a pool, and when it probably begins there."""

    pool: WorkerPool
    line: Line
    begins: Estimate | None

    @property
    def before(self) -> int:
        """How many tasks of the owner are before it."""
        return sum(self.line.before.values())


class Explainer:
    """Knows what the turns of this server know: the pools, and who is alive. ``rates`` is what the server has heard of
    the ends of tasks."""

    def __init__(self, store: IStore, broker: IBroker, scheduler: Scheduler, rates: EndRates) -> None:
        self._store = store
        self._broker = broker
        self._pools = scheduler.pools
        self._liveness = scheduler.liveness
        self._rates = rates

    async def explain(self, task: Task, now: datetime) -> dict[str, Any]:
        """``code``, ``message``, and the values that a client needs to say it in another language. ``now`` is the
        database's time. Raises Unavailable."""
        code, message, fields = _why(task, now, self._pools, _what_blocks(task, self._liveness.alive))
        waits_for = self._liveness.waits_for
        if code == "waiting" and waits_for is not None:
            code, message, fields = _after_failover(waits_for, fields)
        if code == "waiting" and (pools := self._pools.by_route.get(task.route)):
            place = await self._place(task, pools)
            message = _in_line(place)
            fields |= _line_fields(place)
        if not self._broker.ready and code in ("queued", "waiting"):
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

    async def _place(self, task: Task, pools: Sequence[WorkerPool]) -> _Place:
        """The place of a task in the pool in which it probably begins first. The pools are not summed up: what is
        before it in one, in routes that another does not serve, does not delay it in the other."""
        places: list[_Place] = []
        for pool in sorted(pools, key=lambda pool: -pool.slots)[:MOST_POOLS]:
            if pool.slots or not places:
                line = await self._store.count_line(task, pool.picture())
                # only while something has waited: when the owner had nothing to run, nothing of it ended
                by_minute = self._rates.by_minute_in(task.user_id, line.waits)
                places.append(_Place(pool, line, estimate(task, line, pool, by_minute)))
        return min(places, key=lambda place: (place.begins.seconds if place.begins else math.inf, place.before))


def _what_blocks(task: Task, alive: Iterable[WorkerStatus]) -> str | None:
    """What blocks the worker that holds this task; None if nothing does, or if nobody holds it."""
    if task.state in (State.QUEUED, State.RUNNING):
        for worker in alive:
            if worker.info.name == task.worker:
                return worker.stalled
    return None


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
    if task.losses and task.state is State.QUEUED:
        text = (
            f"Its worker died {_times(task.losses)} while it ran, so it runs with few others beside it: it waits for"
            " such a place, but not for long."
        )
        return "suspect", text, fields
    if task.state is State.QUEUED:
        return "queued", "A worker has the task, and begins it as soon as it has a free slot.", fields
    # Explainer replaces this text if the server assigns tasks of the queue
    known = ", ".join(pools.queues)
    text = f"This server does not assign tasks of the queue {quote(task.queue)}, only {known}: another server must."
    return "waiting", text, fields


def _after_failover(waits_for: str, fields: dict[str, Any]) -> _Why:
    text = (
        "The database has gone on from an older state, so tasks are assigned again when all workers have said what they"
        f" hold: worker {waits_for} has not yet."
    )
    return "failover", text, {**fields, "waits_for": waits_for}


def _later(task: Task, fields: dict[str, Any], but: str) -> _Why:
    fields["run_at"] = task.run_at
    if task.attempt:
        text = f"Attempt {task.attempt} of {task.max_attempts} has failed: {_reason(task)}"
        return "retrying", f"{text} The next attempt is at {_time(task.run_at)}.{but}", {**fields, "error": task.error}
    return "scheduled", f"The task is scheduled: it may run from {_time(task.run_at)} on.{but}", fields


def _in_line(place: _Place) -> str:
    """What a task waits for in a pool, and when it probably begins."""
    pool, line, begins = place
    if begins is not None and begins.basis == FREE_SLOTS:
        return "The task is just being assigned to a worker: a slot is free, and nothing is before it."
    before = f"{_some(place.before, line.more)} of your tasks {'is' if place.before == 1 else 'are'} before it"
    if not pool.slots:
        return f"The task waits for a free slot: no worker that serves it can take a task now, and {before}."
    if pool.credit.room_left:
        text = f"The task waits for earlier ones, or is just being assigned to a worker: {before}."
    else:
        slots = f"{pool.slots} {'runs' if pool.slots == 1 else 'run'} tasks of its kind"
        held = "1 task holds" if line.held == 1 else f"{line.held} tasks hold"
        held += " it" if pool.slots == 1 else " them"
        if line.held > pool.slots:
            held += " or are next"
        text = f"The task waits for a free slot: {slots}, {held} ({_some(line.held_by_owner)} of yours), and {before}."
    return f"{text} {_when(begins, line.more)}"


def _line_fields(place: _Place) -> dict[str, Any]:
    begins = place.begins
    return {
        "slots": place.pool.slots,
        "held": place.line.held,
        "held_by_you": place.line.held_by_owner,
        "before_you": place.before,
        "before_you_more": place.line.more,
        "estimate": None if begins is None else round(begins.seconds, 1),
        "basis": None if begins is None else begins.basis,
    }


def _when(begins: Estimate | None, more: bool) -> str:
    if begins is None:
        return "Nothing has been measured yet that an estimate could rest on."
    number, unit = about(begins.seconds)
    span = f"about {number} {unit if number > 1 else unit[:-1]}{' at the earliest' if more else ''}"
    return f"It probably begins in {span}, {_BASES[begins.basis]}."


def _some(number: int, more: bool = False) -> str:
    return f"more than {number:,}" if more else f"{number:,}" if number else "none"


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
