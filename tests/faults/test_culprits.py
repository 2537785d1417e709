"""Handlers that block, kill or leave their worker, with quick counts; ``make faults`` uses the full counts."""

from __future__ import annotations

from tests.faults.scenarios import play
from tests.faults.stage import Services


def test_handlers_that_block_the_worker(own: Services) -> None:
    """They are named, and their neighbours lose nothing."""
    play("reactor_blocked", own)


def test_a_handler_that_blocks_for_too_long(own: Services) -> None:
    """Its worker is ended, and it alone loses attempts."""
    assert play("stalled_too_long", own)["deaths"] == 2


def test_what_stands_behind_a_block(own: Services) -> None:
    """Another worker begins it within seconds, and nothing runs twice."""
    assert play("unbegun_behind_a_block", own)["given_back"] > 0


def test_a_worker_that_dies_under_last_attempts(own: Services) -> None:
    """They run again side by side."""
    play("kill_with_last_attempts", own)


def test_three_tasks_that_kill_their_workers(own: Services) -> None:
    """They fail, and nobody else loses an attempt."""
    play("poison_beside_innocents", own)


def test_handlers_that_fork(own: Services) -> None:
    """No copy of the worker lives on."""
    play("forks", own)


def test_handlers_of_an_embedded_server_that_fork(own: Services) -> None:
    """The server can be started again while a child lives."""
    play("forks_embedded", own)


def test_restarts_of_the_worker_under_a_long_task(own: Services) -> None:
    """The task is given back unspent, and its owner gets an event."""
    play("restarts_under_a_long_task", own)
