"""How a page of a task list is found: filters, bounds and the columns that both databases select."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from taskd.model.limits import LISTED_RESULT_BYTES
from taskd.model.states import STATUS_OF, STATUSES, TERMINAL, State
from taskd.ports.tasks import TaskQuery
from taskd.store.texts import check_storable

T = TypeVar("T")

KEEP_SECONDS = 60
"""An outbox row that was taken over or stored by a repetition outlives its settling by this much, so that
a straggling first run of the batch, stuck in a network or a stopped backend, still finds its number taken."""

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
"""The columns of a row in the order of :class:`taskd.model.tasks.Task`."""

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
