"""What both stores share: columns, filters, the dispatcher's sharing rule, the care of texts, refusals, pauses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from taskd.errors import BadRequest, Conflict, NotFound, Unavailable
from taskd.model import LISTED_RESULT_BYTES, STATUS_OF, STATUSES, TERMINAL, State, Task
from taskd.ports import KindInfo, TaskQuery, WorkerInfo

T = TypeVar("T")

KEEP_SECONDS = 60
"""An outbox row that was taken over or stored by a repetition outlives its settling by this much, so that
a straggling first run of the batch, stuck in a network or a stopped backend, still finds its number taken."""

MIN_DELAY = 0.1
MAX_DELAY = 5.0
"""Seconds between attempts to reach the database: doubled from first to last, less a random part of up to a half."""

MAX_ID = 2**63 - 1
"""The greatest id that a database can hold. Readers may ask for any number; a greater one is nobody's task."""

LAST_FAILED = 100
"""How many failed attempts of a task are shown: a task that is tried again and again has any number of them."""

LOOK_AT = 500
"""The most rows that a filter looks at for one page, unless the page is to be longer itself."""

COLUMNS = (
    "id",
    "user_id",
    "task",
    "kind",
    "queue",
    "state",
    "created_at",
    "run_at",
    "payload",
    "attempt",
    "max_attempts",
    "dispatch",
    "version",
    "started_at",
    "finished_at",
    "result",
    "error",
    "timeout",
    "progress",
    "note",
)
"""The columns of a row in the order of :class:`taskd.model.Task`."""

_SHORT = LISTED_RESULT_BYTES + 1
"""A list shows that a result is too large for it, not the result: 500 of 256 KiB would be 128 MiB."""

STATES = {state.value: state for state in State}

# What a reader's word for a state means; `{now}` is the database's clock.
_SHOWN = {
    "scheduled": "state = 'waiting' AND attempt = 0 AND run_at > {now}",
    "retrying": "state = 'waiting' AND attempt > 0",
    "waiting": "state = 'waiting' AND attempt = 0 AND run_at <= {now}",
    "queued": "state = 'queued'",
    "running": "state = 'running'",
}


def columns(alias: str = "", listed: bool = False) -> str:
    """A select list for :data:`COLUMNS`; ``listed`` leaves out the payload and cuts a large result."""
    dot = f"{alias}." if alias else ""
    names = {name: dot + name for name in COLUMNS}
    if listed:
        names["payload"] = "'{}'"
        names["result"] = f"substr(CAST({dot}result AS text), 1, {_SHORT})"
    return ", ".join(names.values())


class Filter:
    """How a page is found: which statuses to walk, and what of them to keep.

    ``condition`` is SQL over the rows, empty when every row is kept; ``in_flight`` says that the wanted rows are
    among the few in flight, whatever the length of the list; ``walked`` that any number of rows may have to be looked
    at to find them. A filter that nothing can pass has no statuses. Raises BadRequest.
    """

    def __init__(self, query: TaskQuery, now: str, placeholder: str) -> None:
        statuses = list(STATUSES) if query.status is None else [query.status]
        conditions: list[str] = []
        self.in_flight = False
        self.args: tuple[str, ...] = ()
        if query.state is not None:
            stored = STATES.get(query.state, State.WAITING)
            statuses = [s for s in statuses if s == STATUS_OF[stored]]
            if stored not in TERMINAL:
                conditions.append(_SHOWN[query.state].format(now=now))
                self.in_flight = stored is not State.WAITING
        if query.kind is not None:
            conditions.append(f"kind = {placeholder}")
            self.args = (check_storable(query.kind),)
        self.statuses = statuses
        self.condition = " AND ".join(conditions)
        self.walked = bool(conditions) and not self.in_flight


def end_of(query: TaskQuery) -> int:
    """The id below which a page begins, as a number that a database can hold."""
    return MAX_ID if query.before is None else max(0, min(query.before, MAX_ID))


def look_at(query: TaskQuery) -> int:
    """How many rows a filter may look at for this page."""
    return max(LOOK_AT, query.limit + 1)


def possible(ids: Iterable[int]) -> list[int]:
    """Those of the ids that a task can have."""
    return [i for i in ids if 0 < i <= MAX_ID]


def share(limit: int, users: int) -> int:
    """How many tasks each of this many users may have now; when there are less than one for each, one for some."""
    return max(1, limit // users)


def in_turns(rows: Iterable[tuple[int, T]]) -> list[T]:
    """Values of (user id, value) in round-robin order: everybody's first, then everybody's second, ..."""
    ranks: dict[int, int] = {}
    ranked: list[tuple[int, int, T]] = []
    for user, value in rows:
        rank = ranks[user] = ranks.get(user, -1) + 1
        ranked.append((rank, user, value))
    ranked.sort(key=lambda r: r[:2])
    return [value for _, _, value in ranked]


def storable(text: str | None) -> str:
    """A text as both databases take it, without NUL and lone surrogates: what a handler says may hold anything."""
    return (text or "").replace("\0", "").encode("utf-8", "replace").decode()


def chunk_text(lines: Sequence[str]) -> str:
    """The text of a chunk of a log, from which :func:`chunk_lines` makes its lines again."""
    return "\n".join([storable(line) for line in lines])


def chunk_lines(text: str) -> list[str]:
    """The lines of a chunk of a log."""
    return text.split("\n")


def encode_worker(worker: WorkerInfo) -> tuple[str, str, str, int]:
    """A row of ``workers``: its name, queues and kinds as JSON, slots."""
    return worker.name, _json(worker.queues).decode(), _json(worker.kinds).decode(), worker.slots


def decode_workers(rows: Iterable[tuple[str, str, str, int]]) -> list[WorkerInfo]:
    """Workers from their rows, by name."""
    return [WorkerInfo(name, _queues(queues), _kinds(kinds), slots) for name, queues, kinds, slots in sorted(rows)]


_json = msgspec.json.Encoder().encode
_queues = msgspec.json.Decoder(list[str]).decode
_kinds = msgspec.json.Decoder(list[KindInfo]).decode


def no_such_task(task_id: int) -> NotFound:
    """What a user gets for a foreign id and for a missing one."""
    return NotFound(f"you have no task {task_id}", field="task_id")


def too_late(task: Task) -> Conflict:
    """Why this task cannot be cancelled."""
    return Conflict(f"task {task.id} is {task.state.value}: too late to cancel it", field="task_id")


def no_need(task: Task) -> Conflict:
    """Why this task cannot be tried again."""
    text = f"task {task.id} is {task.state.value}: only a failed or cancelled task can be tried again"
    return Conflict(text, field="task_id")


RETRIABLE = frozenset({State.FAILED, State.CANCELLED})
"""The states from which an owner may have a task tried again."""


def check_storable(text: str) -> str:
    """The text, unchanged. Raises BadRequest for NUL and lone surrogates, which no database takes."""
    if "\0" in text:
        raise BadRequest("text must not contain the NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest("text must be valid Unicode") from None
    return text


def delay(failures: int, jitter: Callable[[], float] = random.random) -> float:
    """Seconds to wait after this many failures in a row, the last one not counted."""
    return min(MAX_DELAY, MIN_DELAY * 2.0 ** min(failures, 10)) * (1 - jitter() / 2)


def closed() -> Unavailable:
    """What a call gets once its store has been stopped."""
    return Unavailable("the store is closed")


class Pauses:
    """Growing pauses between attempts, which stop() ends."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._failures = 0
        self._pause: Deferred[None] | None = None
        self.stopped = False

    async def pause(self) -> None:
        """Wait before the next attempt. Raises Unavailable once stopped."""
        if not self.stopped:
            self._pause = deferLater(self._clock, delay(self._failures))
            self._failures += 1
            try:
                await self._pause
            except CancelledError:
                if not self.stopped:
                    raise
        if self.stopped:
            raise closed()

    def stop(self) -> None:
        """Whoever pauses gets Unavailable, now and later."""
        self.stopped = True
        if self._pause is not None:
            self._pause.cancel()
