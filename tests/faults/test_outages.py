"""Outages of PostgreSQL and RabbitMQ with quick counts; ``make faults`` uses the full counts."""

from __future__ import annotations

from tests.faults.scenarios import play
from tests.faults.stage import Services


def test_crashes_of_postgresql(own: Services) -> None:
    """Clients get ``unavailable`` and no false confirmation, and taskd recovers by itself."""
    play("postgres_crashes", own)


def test_crashes_of_rabbitmq(own: Services) -> None:
    """taskd recovers by itself."""
    play("rabbitmq_crashes", own)


def test_rabbitmq_is_down_while_tasks_are_created(own: Services) -> None:
    """Creating, listing and cancelling continue."""
    play("rabbitmq_down", own)


def test_memory_alarm_of_rabbitmq(own: Services) -> None:
    """Creating tasks continues."""
    play("memory_alarm", own)


def test_a_queue_is_purged_and_another_one_deleted(own: Services) -> None:
    """The tasks in them are dispatched again."""
    play("queue_lost", own)
