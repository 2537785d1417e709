"""Daemons that are killed, stopped, told to end, or end themselves, in small; ``make faults`` has the full counts."""

from __future__ import annotations

from tests.faults.scenarios import play
from tests.faults.stage import Services


def test_kill_9_of_workers_and_servers(own: Services) -> None:
    """Under load, one at a time: nothing confirmed is lost, and what a killed worker had runs again soon."""
    line = play("kills", own)
    assert line["ran_again"] > 0, "no killed worker had a task"


def test_a_worker_that_is_silent_for_longer_than_its_lease(own: Services) -> None:
    """SIGSTOP and SIGCONT: its tasks run elsewhere, what it says afterwards does not count, and it works on."""
    assert play("frozen", own)["run_twice"] > 0, "it had no task"


def test_sigterm_of_workers_under_load(own: Services) -> None:
    """Tasks that outlast the grace run elsewhere, still in their first attempt."""
    assert play("drains", own)["run_twice"] > 0, "no task outlasted the grace"


def test_one_task_that_kills_its_worker(own: Services) -> None:
    """It alone fails, after its attempts, and says why; none of its neighbours does."""
    play("poison", own)
