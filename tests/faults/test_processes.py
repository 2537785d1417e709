"""Daemons that are killed, stopped or drained, with quick counts; ``make faults`` uses the full counts."""

from __future__ import annotations

from tests.faults.scenarios import play
from tests.faults.stage import Services


def test_kill_9_of_workers_and_servers(own: Services) -> None:
    """No confirmed task is lost, and the tasks of a killed worker run again soon."""
    line = play("kills", own)
    assert line["begun_again"] > 0, "no killed worker had a task"


def test_a_worker_that_is_silent_for_longer_than_its_lease(own: Services) -> None:
    """SIGSTOP and SIGCONT: its tasks run elsewhere, its late outcomes do not count, and it works on."""
    assert play("frozen", own)["run_twice"] > 0, "the worker had no task"


def test_sigterm_of_workers_under_load(own: Services) -> None:
    """Tasks that outlast the grace time run elsewhere, still in their first attempt."""
    assert play("drains", own)["run_twice"] > 0, "no task outlasted the grace"


def test_one_task_that_kills_its_worker(own: Services) -> None:
    """Only this task fails, after all its attempts and with a reason."""
    play("poison", own)
