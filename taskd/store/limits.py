"""Numbers that both databases share."""

from __future__ import annotations

from collections.abc import Iterable

MAX_ID = 2**63 - 1
"""The greatest id that a database can hold. A request may name any number; no task has a greater one."""

OUTBOX_KEEP_SECONDS = 60
"""How long an outbox row that was repeated or adopted is kept after all its messages were confirmed. An earlier run of
the same batch may still be delayed in the network or in a stopped backend; it must find that its id is taken."""

FAILED_ATTEMPTS_LISTED = 100
"""The most failed attempts of one task that are listed. A task can be retried any number of times."""

SCANNED_ROWS = 500
"""The most rows that a filter reads for one page, unless the page itself may be longer."""


def valid_ids(ids: Iterable[int]) -> list[int]:
    """Those of the ids that a task or a user can have."""
    return [i for i in ids if 0 < i <= MAX_ID]
