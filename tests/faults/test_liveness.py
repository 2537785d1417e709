"""Faults around workers that live, with quick counts; ``make faults`` uses the full counts."""

from __future__ import annotations

from tests.faults.scenarios import play
from tests.faults.stage import Services


def test_restart_of_rabbitmq_beside_workers_that_die(own: Services) -> None:
    """Nothing is taken from the healthy ones; the tasks of the dead and the frozen one run again in time."""
    play("broker_restart", own)


def test_rabbitmq_closes_all_connections(own: Services) -> None:
    """No attempt is lost."""
    play("connections_closed", own)


def test_a_message_that_comes_twice(own: Services) -> None:
    """After the death of a server and a memory alarm no task runs on two workers."""
    play("server_killed_after_batch", own)


def test_tasks_longer_than_the_consumer_timeout(own: Services) -> None:
    """No attempt is lost."""
    play("consumer_timeout", own)


def test_a_table_that_is_locked_for_longer_than_the_lease(own: Services) -> None:
    """Nothing is taken back."""
    play("tables_locked", own)
