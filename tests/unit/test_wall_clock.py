"""taskd.store.wall_clock: the time of the embedded store."""

from __future__ import annotations

import time

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent

from taskd.store.wall_clock import WARN_EVERY, WallClock

NOON = 1_740_830_400.0


class Machine:
    """A machine whose clock can be set."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.offset = NOON
        self.wall = WallClock(lambda: self.clock.seconds() + self.offset, self.clock.seconds)

    def warnings(self) -> list[str]:
        """What the log says when the time is asked for once."""
        with capturedLogs() as events:
            self.wall()
        return [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]


def test_time_passes_from_the_time_of_the_start() -> None:
    """It begins with the system's time, wherever the other clock began."""
    machine = Machine()
    assert machine.wall() == NOON
    machine.clock.advance(90)
    assert machine.wall() == NOON + 90
    assert machine.warnings() == []


def test_setting_the_system_clock_moves_nothing() -> None:
    """Neither back nor forward."""
    machine = Machine()
    for step in (-3600, 3600, 86_400):
        machine.offset = NOON + step
        before = machine.wall()
        machine.clock.advance(1)
        assert machine.wall() == before + 1


def test_a_difference_is_logged_once_an_hour() -> None:
    """The line says what follows."""
    machine = Machine()
    machine.offset -= 3600
    [line] = machine.warnings()
    assert "set back by 3600 seconds" in line and "until the next start" in line
    machine.clock.advance(WARN_EVERY - 1)
    assert machine.warnings() == []
    machine.offset = NOON + 120
    machine.clock.advance(1)
    [line] = machine.warnings()
    assert "set forward by 120 seconds" in line


def test_small_corrections_are_not_logged() -> None:
    """NTP slews, and steps a little."""
    machine = Machine()
    machine.offset += 59
    assert machine.warnings() == []


def test_without_parameters_it_is_the_system_time() -> None:
    """As the embedded server uses it."""
    assert abs(WallClock()() - time.time()) < 5
