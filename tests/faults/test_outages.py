"""PostgreSQL and RabbitMQ crash, are away, take nothing or forget, in small; ``make faults`` has the full counts."""

from __future__ import annotations

from tests.faults.scenarios import play
from tests.faults.stage import Services


def test_crashes_of_postgresql(own: Services) -> None:
    """No false confirmation, ``unavailable`` meanwhile, and at work again by itself."""
    play("postgres_crashes", own)


def test_crashes_of_rabbitmq(own: Services) -> None:
    """At work again by itself."""
    play("rabbitmq_crashes", own)


def test_rabbitmq_is_away_while_tasks_are_created(own: Services) -> None:
    """Creating, listing and cancelling go on."""
    play("rabbitmq_down", own)


def test_rabbitmq_takes_no_messages(own: Services) -> None:
    """A memory alarm: creating goes on."""
    play("memory_alarm", own)


def test_a_queue_is_purged_and_another_one_deleted(own: Services) -> None:
    """What was in them is dispatched again."""
    play("queue_lost", own)
