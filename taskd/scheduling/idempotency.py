"""Idempotency keys: of several requests for a task with the same key, one stores it, and all get its id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from taskd.model.errors import Conflict, quote
from taskd.model.tasks import NewTask
from taskd.ports.tasks import Keyed


class Created(NamedTuple):
    """A stored task. ``duplicate``: an earlier request with the same key has stored it."""

    task_id: int
    duplicate: bool = False


def check_fingerprints(tasks: Sequence[NewTask], known: Mapping[str, Keyed]) -> None:
    """Raises Conflict if a key stands for another task, among the stored ones or within this request."""
    fingerprints = {key: found.fingerprint for key, found in known.items()}
    for task in tasks:
        if task.key is not None and fingerprints.setdefault(task.key, task.fingerprint or "") != task.fingerprint:
            raise Conflict(f"the key {quote(task.key)} stands for another task already; use a new one", field="key")


def to_be_stored(tasks: Sequence[NewTask], known: Mapping[str, Keyed]) -> list[NewTask]:
    """The tasks without a key, and one for each key that is not known."""
    seen = set(known)
    fresh = []
    for task in tasks:
        if task.key is None or task.key not in seen:
            fresh.append(task)
        if task.key is not None:
            seen.add(task.key)
    return fresh


def answers(tasks: Sequence[NewTask], known: Mapping[str, Keyed], stored: Iterable[Created]) -> list[Created]:
    """What became of each task of a request: known, stored now, or the same as an earlier one of the request."""
    fresh = iter(stored)
    duplicates = {key: Created(found.task_id, True) for key, found in known.items()}
    created = []
    for task in tasks:
        if task.key is None:
            created.append(next(fresh))
        elif task.key in duplicates:
            created.append(duplicates[task.key])
        else:
            created.append(next(fresh))
            duplicates[task.key] = Created(created[-1].task_id, True)
    return created
