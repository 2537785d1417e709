"""What PostgreSQL changes in a task that is given back. Imports nothing: the watchdog uses it, too."""

from __future__ import annotations

OPEN = "(t.state IN ('queued', 'running'))"


def given_back(stopping: str) -> str:
    """The SET clause for a task ``t`` that its worker holds. ``stopping`` tells whether the worker stops.

    A cancelled task stays as it is, and so does one that was retried since.
    """
    return f"""held = false, state = CASE WHEN {OPEN} THEN 'waiting' ELSE t.state END,
        attempt = t.attempt - {OPEN}::int, version = t.version + {OPEN}::int,
        returns = t.returns + (t.state = 'running' AND {stopping})::int,
        worker = CASE WHEN NOT {OPEN} THEN t.worker END,
        started_at = CASE WHEN NOT {OPEN} THEN t.started_at END,
        progress = CASE WHEN NOT {OPEN} THEN t.progress END, note = CASE WHEN NOT {OPEN} THEN t.note END"""
