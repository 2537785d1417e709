"""taskd.testing: handlers, and a whole server in memory, as docs/handlers.md shows them."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from taskd.model.errors import SettingsError
from taskd.ports.handler import ITaskContext
from taskd.testing import Lab, run_handler
from taskd.worker import Backoff, Reject, Retry, handler

clock = Clock()


@handler("greet")
async def greet(task: ITaskContext) -> str:
    """Say hello, politely."""
    return f"Hello, {task.payload.get('name', task.user)}!"


@handler("slow", backoff=Backoff(first=8, jitter=0), max_attempts=2)
async def slow(task: ITaskContext) -> None:
    """Take ten seconds, and fail."""
    await task.progress(0.5, "half way")
    await deferLater(clock, 10)
    task.log("that was it")
    raise ValueError("no such colour")


@handler("child", isolation="process")
def child(task: ITaskContext) -> int:
    """Count."""
    task.progress(1)
    return int(task.payload["n"]) + 1


@handler("paper")
def paper(task: ITaskContext) -> None:
    """Never prints."""
    if task.attempt == 1:
        raise Retry("out of paper", after=300)
    raise Reject("still out of paper")


@handler("ever")
async def ever(task: ITaskContext) -> None:
    """Never ends."""
    await Deferred()


def test_the_result_of_a_handler_is_returned() -> None:
    ran = run_handler(greet, {"name": "Ada"})
    assert (ran.state, ran.result, ran.error) == ("completed", "Hello, Ada!", None)
    assert run_handler(greet, user="bob").result == "Hello, bob!"
    assert run_handler(child, {"n": 4}).result == 5


def test_output_and_failures_of_a_handler_are_recorded() -> None:
    ran = run_handler(slow, clock=clock)
    assert (ran.state, ran.error, ran.delay) == ("waiting", "ValueError: no such colour", 8.0)
    assert (ran.progress, ran.log) == ([(0.5, "half way")], ["that was it"])
    assert "in slow" in (ran.trace or "")
    assert run_handler(slow, clock=clock, attempt=2).state == "failed"


def test_retry_and_reject_are_recorded() -> None:
    ran = run_handler(paper)
    assert (ran.state, ran.error, ran.delay, ran.trace) == ("waiting", "out of paper", 300.0, None)
    ran = run_handler(paper, attempt=2)
    assert (ran.state, ran.error, ran.delay) == ("failed", "still out of paper", None)


def test_a_handler_that_does_not_end_is_an_error() -> None:
    with pytest.raises(AssertionError, match="has not ended after 5 seconds"):
        run_handler(ever, seconds=5)


def test_an_invalid_handler_is_refused() -> None:
    broken: Any = handler("x")(lambda task: None)
    broken.max_attempts = 0
    with pytest.raises(SettingsError, match="max_attempts"):
        run_handler(broken)


def test_a_client_sees_the_result() -> None:
    with Lab([greet, child]) as lab:
        ana = lab.client("ana")
        ana.ask("watch")
        task_id = ana.ask("new_task", task="hello", kind="greet")["task_id"]
        lab.advance(1)
        assert ana.ask("get_task", task_id=task_id)["task"]["result"] == "Hello, ana!"
        assert [e["task"]["state"] for e in ana.events()] == ["queued", "completed"]
        other = ana.ask("new_task", task="count", kind="child", payload={"n": 1})["task_id"]
        assert ana.ask("wait", task_ids=[other])["tasks"][0]["result"] == 2


def test_time_passes_only_by_advance() -> None:
    with Lab(lease=10) as lab:
        ana = lab.client()
        later = ana.ask("new_task", task="later", delay=100, payload={"seconds": 5})["task_id"]
        lab.advance(90)
        assert ana.ask("get_task", task_id=later)["task"]["state"] == "scheduled"
        lab.advance(12)
        assert ana.ask("get_task", task_id=later)["task"]["state"] == "running"
        lab.advance(6)
        assert ana.ask("get_task", task_id=later)["task"]["state"] == "completed"


def test_a_failed_task_is_retried_and_its_attempts_are_shown() -> None:
    lab = Lab([slow], clock=clock)
    with lab:
        ana = lab.client()
        task_id = ana.ask("new_task", task="t", kind="slow")["task_id"]
        lab.advance(11)
        found = ana.ask("get_task", task_id=task_id)["task"]
        assert (found["state"], found["error"]) == ("retrying", "ValueError: no such colour")
        lab.advance(20)
        found = ana.ask("get_task", task_id=task_id)["task"]
        assert (found["status"], [a["attempt"] for a in found["attempts"]]) == ("Fallida", [1, 2])
        assert "no such colour" in found["attempts"][0]["traceback"]
