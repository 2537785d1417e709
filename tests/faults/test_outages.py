"""Outages of PostgreSQL and RabbitMQ with quick counts; ``make faults`` uses the full counts."""

from __future__ import annotations

from tests.faults.scenarios import play
from tests.faults.stage import Services


def test_crashes_of_postgresql(own: Services) -> None:
    """Clients get ``unavailable`` and no false confirmation, and taskd recovers by itself."""
    play("postgres_crashes", own)


def test_a_standby_that_lagged_behind_takes_over(own: Services) -> None:
    """What runs is not begun again."""
    play("failover", own)


def test_crashes_of_rabbitmq(own: Services) -> None:
    """taskd recovers by itself."""
    play("rabbitmq_crashes", own)


def test_rabbitmq_is_down_while_tasks_are_created(own: Services) -> None:
    """Creating, listing and cancelling continue."""
    play("rabbitmq_down", own)


def test_memory_alarm_of_rabbitmq(own: Services) -> None:
    """Creating tasks continues."""
    play("memory_alarm", own)


def test_queues_are_deleted_and_messages_eaten(own: Services) -> None:
    """Workers find their tasks in the store."""
    play("queues_lost", own)
