"""What both stores share: columns, filters, the dispatcher's sharing rule, the care of texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from taskd.errors import BadRequest
from taskd.model import LISTED_RESULT_BYTES, STATUS_OF, STATUSES, TERMINAL, State
from taskd.ports import TaskQuery

T = TypeVar("T")

KEEP_SECONDS = 60
"""An outbox row that was taken over or stored by a repetition outlives its settling by this much, so that
a straggling first run of the batch, stuck in a network or a stopped backend, still finds its number taken."""

LOOK_AT = 5000
"""The most rows that a filter may look at and throw away for one page."""

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

    ``condition`` is SQL over the walked rows, empty when every row is kept; ``in_flight`` says that the
    wanted rows are among the few in flight, whatever the length of the list. A filter that nothing can pass
    has no statuses.
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
            self.args = (query.kind,)
        self.statuses = statuses
        self.condition = " AND ".join(conditions)


def share(limit: int, users: int) -> int:
    """How many tasks each of this many users may have of a turn."""
    return -(-limit // users)


def in_turns(rows: Iterable[tuple[int, T]]) -> list[T]:
    """Values of (user id, value) in round-robin order: everybody's first, then everybody's second, ..."""
    ranks: dict[int, int] = {}
    ranked: list[tuple[int, int, T]] = []
    for user, value in rows:
        rank = ranks[user] = ranks.get(user, -1) + 1
        ranked.append((rank, user, value))
    ranked.sort(key=lambda r: r[:2])
    return [value for _, _, value in ranked]


def storable_error(error: str | None) -> str | None:
    """One line that both databases take: a handler's message may hold anything."""
    if not error:
        return None
    return error.replace("\0", "").encode("utf-8", "replace").decode() or None


def check_storable(text: str) -> str:
    """The text, unchanged. Raises BadRequest for NUL and lone surrogates, which no database takes."""
    if "\0" in text:
        raise BadRequest("text must not contain the NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest("text must be valid Unicode") from None
    return text
