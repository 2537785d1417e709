"""How a query for a page of tasks becomes conditions that both databases understand."""

from __future__ import annotations

from taskd.model.states import STATUS_OF, STATUSES, TERMINAL, State
from taskd.ports.tasks import TaskQuery
from taskd.store.refusals import MAX_ID, check_text
from taskd.store.rows import STATES

SCANNED_ROWS = 500
"""The most rows that a filter reads for one page, unless the page itself may be longer."""

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
    the parameters ``args``; empty when every row of these lists matches. ``before`` is the id below which the page
    begins, as a number that a database can hold. ``in_flight`` is True when only queued or running tasks can match:
    there are few of them, however long the list is. ``scans`` is True when any number of rows may have to be read to
    find those that match. ``each`` is how many rows of a list may be read: one more than the page has, if it does not
    scan. Raises BadRequest.
    """

    def __init__(self, query: TaskQuery, now: str, placeholder: str) -> None:
        self.statuses = list(STATUSES) if query.status is None else [query.status]
        self.before = MAX_ID if query.before is None else max(0, min(query.before, MAX_ID))
        conditions: list[str] = []
        self.in_flight = False
        self.args: tuple[str, ...] = ()
        if query.state is not None:
            stored = STATES.get(query.state, State.WAITING)
            self.statuses = [s for s in self.statuses if s == STATUS_OF[stored]]
            if stored not in TERMINAL:
                conditions.append(_SHOWN_STATE[query.state].format(now=now))
                self.in_flight = stored is not State.WAITING
        if query.kind is not None:
            conditions.append(f"kind = {placeholder}")
            self.args = (check_text(query.kind),)
        self.condition = " AND ".join(conditions)
        self.scans = bool(conditions) and not self.in_flight
        self.each = max(SCANNED_ROWS, query.limit + 1) if self.scans else query.limit + 1
