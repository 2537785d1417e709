"""How a query for a page of tasks becomes conditions that both databases understand."""

from __future__ import annotations

from taskd.model.states import STATUS_OF, STATUSES, TERMINAL, State
from taskd.ports.tasks import TaskQuery
from taskd.store.limits import MAX_ID, SCANNED_ROWS
from taskd.store.rows import STATES
from taskd.store.text import check_text

# The rows of a state as readers see it; `{now}` is the database's clock.
_SHOWN_STATE = {
    "scheduled": "state = 'waiting' AND attempt = 0 AND run_at > {now}",
    "retrying": "state = 'waiting' AND attempt > 0",
    "waiting": "state = 'waiting' AND attempt = 0 AND run_at <= {now}",
    "queued": "state = 'queued'",
    "running": "state = 'running'",
}


class Filter:
    """Which rows belong to a page, and how to find them.

    ``statuses`` are the lists to read; none when no row can match. ``condition`` is SQL that a row must satisfy, with
    the parameters ``args``; empty when every row of these lists matches. ``in_flight`` is True when only queued or
    running tasks can match: there are few of them, however long the list is. ``scans`` is True when any number of rows
    may have to be read to find those that match. Raises BadRequest.
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
                conditions.append(_SHOWN_STATE[query.state].format(now=now))
                self.in_flight = stored is not State.WAITING
        if query.kind is not None:
            conditions.append(f"kind = {placeholder}")
            self.args = (check_text(query.kind),)
        self.statuses = statuses
        self.condition = " AND ".join(conditions)
        self.scans = bool(conditions) and not self.in_flight


def before_id(query: TaskQuery) -> int:
    """The id below which a page begins, as a number that a database can hold."""
    return MAX_ID if query.before is None else max(0, min(query.before, MAX_ID))


def scan_limit(query: TaskQuery) -> int:
    """How many rows a filter may read for this page."""
    return max(SCANNED_ROWS, query.limit + 1)
