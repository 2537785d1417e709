"""Whose turn it is, in a whole embedded server with its worker, on a clock: taskd.testing."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import pytest

from taskd.scheduling.costs import HORIZON
from taskd.testing import STEP, Lab, LabClient

SLACK = 0.2
"""Seconds that assigning and finding a task may take."""


def add(client: LabClient, count: int, seconds: float) -> list[int]:
    """Create tasks that take so long. Returns their ids."""
    spec = {"task": "t", "payload": {"seconds": seconds}}
    ids: list[int] = []
    while len(ids) < count:
        ids += client.ask("new_tasks", tasks=[spec] * min(1000, count - len(ids)))["task_ids"]
    return ids


def finished(client: LabClient, ids: list[int]) -> list[dict[str, Any]]:
    """The tasks, once all have ended."""
    tasks: list[dict[str, Any]] = []
    for start in range(0, len(ids), 500):
        reply = client.ask("wait", task_ids=ids[start : start + 500], timeout=600, seconds=700)
        assert reply["done"], Counter(task["state"] for task in reply["tasks"])
        tasks += reply["tasks"]
    return tasks


def began_after(task: dict[str, Any]) -> float:
    """The seconds from its creation to its begin."""
    created, started = (datetime.fromisoformat(str(task[key])[:-1]) for key in ("created_at", "started_at"))
    return (started - created).total_seconds()


@pytest.mark.parametrize(("seconds", "slots"), [(0.05, 10), (0.5, 4), (1.0, 10), (1.0, 1)])
def test_a_newcomer_begins_with_the_next_free_slot_behind_thousands_of_another(seconds: float, slots: int) -> None:
    """The means of short tasks are known by then."""
    with Lab(slots=slots) as lab:
        add(lab.client("ana"), 3000, seconds)
        lab.advance(5)
        eva = lab.client("eva")
        [task] = finished(eva, add(eva, 1, seconds))
        assert began_after(task) <= seconds + SLACK


def test_a_task_of_an_idle_system_begins_at_once() -> None:
    """Without a turn: its creation assigns it."""
    with Lab() as lab:
        lab.advance(5)
        ana = lab.client()
        [task] = finished(ana, add(ana, 1, 0.0))
        assert began_after(task) <= STEP


@pytest.mark.parametrize(("seconds", "count", "slots"), [(0.05, 600, 10), (0.3, 30, 1), (0.9, 60, 10), (2.0, 30, 10)])
def test_slots_are_kept_busy_and_nothing_is_assigned_twice(seconds: float, count: int, slots: int) -> None:
    """An assignment that no slot is free for in time would be given back."""
    with Lab(slots=slots) as lab:
        ana = lab.client()
        began = lab.clock.seconds()
        tasks = finished(ana, add(ana, count, seconds))
        assert lab.clock.seconds() - began <= 1.2 * count * seconds / slots + 1
        assert {task["version"] for task in tasks} <= {3, 4}, "created, assigned, perhaps marked, ended"


def test_users_share_the_slots_whatever_their_tasks_take() -> None:
    """Ten seconds in which four users have more than enough of short, middle and long tasks."""
    with Lab(slots=20) as lab:
        users = {seconds: lab.client(name) for name, seconds in (("a", 0.1), ("e", 0.2), ("l", 1.0), ("m", 3.0))}
        for seconds, client in users.items():
            add(client, 1500, seconds)
        lab.advance(5)
        work = []
        for client in users.values():
            client.ask("watch", limit=1)
            client.events()
        lab.advance(15)
        for seconds, client in users.items():
            ended = [event for event in client.events() if event["task"]["state"] == "completed"]
            work.append(len(ended) * seconds)
        jain = sum(work) ** 2 / len(work) / sum(each**2 for each in work)
        assert jain > 0.99, work
        assert sum(work) > 0.9 * 15 * 20 * (1 - HORIZON), work
