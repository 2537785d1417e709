"""Clocks that are set under load, with quick counts; ``make faults`` uses the full counts."""

from __future__ import annotations

from tests import services
from tests.faults.scenarios import play
from tests.faults.stage import Services


def test_the_clock_of_a_worker(own: Services) -> None:
    """Nothing is lost, and sleeps and time limits keep their length."""
    services.require("faketime")
    play("worker_clock", own)


def test_the_clock_of_a_server(own: Services) -> None:
    """Delays keep their length."""
    services.require("faketime")
    play("server_clock", own)
