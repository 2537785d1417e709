"""``python -m bench.connections``: which figures miss a bound, and the patience of its honest clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.connection_clients import Honest
from bench.connections import missed
from bench.swarm import Swarm, address

IDLE = {"case": "idle", "kib_each": 7.5, "cpu_percent": 0.2}
LOGINS = {"case": "logins", "refused": {}, "ratio": 1.1}
FLOOD = {"case": "flood", "known_refused": {}, "new_refused": {}, "known_s": {"number": 9, "max": 1.2}, "ratio": 1.2}
READERS = {"case": "readers", "readers_mib": 70.0, "limit_mib": 64}


@pytest.mark.parametrize("row", [IDLE, LOGINS, FLOOD, READERS], ids=lambda row: row["case"])
def test_good_figures_miss_no_bound(row: dict[str, Any]) -> None:
    assert missed(row) == []


@pytest.mark.parametrize(
    ("row", "change", "text"),
    [
        (IDLE, {"kib_each": 9.2}, "kib_each is 9.2, above 9"),
        (IDLE, {"cpu_percent": 3.0}, "cpu_percent is 3, above 1"),
        (LOGINS, {"ratio": 1.31}, "ratio is 1.31, above 1.3"),
        (LOGINS, {"refused": {"cut": 2}}, "refused: {'cut': 2}"),
        (LOGINS, {"ratio": None}, "no ratio"),
        (FLOOD, {"known_s": {"number": 9, "max": 2.5}}, "known_s is 2.5, above 2"),
        (FLOOD, {"known_s": {"number": 0}}, "no known_s"),
        (FLOOD, {"known_refused": {"cut": 1}}, "known_refused: {'cut': 1}"),
        (FLOOD, {"new_refused": {"cut": 1}}, "new_refused: {'cut': 1}"),
        (FLOOD, {"ratio": 1.6}, "ratio is 1.6, above 1.5"),
        (READERS, {"readers_mib": 97.0}, "readers_mib is 97, above 96"),
    ],
)
def test_each_missed_bound_is_named(row: dict[str, Any], change: dict[str, Any], text: str) -> None:
    assert missed({**row, **change}) == [text]


def test_addresses_of_different_groups_and_numbers_differ() -> None:
    found = {address(group, number) for group in (1, 2) for number in range(1000)}
    assert len(found) == 2000
    assert address(2, 250) == "127.2.1.1"


class FakeSwarm(Swarm):
    """Without a loop: the timers are called by hand."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append((seconds, call))


class Client(Honest):
    """Without a socket."""

    def __init__(self, swarm: FakeSwarm) -> None:
        super().__init__(swarm, "127.3.0.1", "ana")
        self.sent = 0
        self.is_open = False

    @property
    def connected(self) -> bool:
        return self.is_open

    def open(self) -> None:
        self.is_open = True
        self.opened()

    def send(self, **request: Any) -> None:
        assert request["action"] == "login"
        self.sent += 1

    def close(self) -> None:
        self.is_open = False

    def put_off(self, seconds: float) -> None:
        message = f"try again in {seconds} seconds"
        self.received({"ok": False, "code": "rate_limited", "message": message, "retry_after": seconds})

    def end_by_server(self) -> None:
        self.is_open = False
        self.lost()


def test_an_honest_client_comes_again_when_it_was_put_off() -> None:
    swarm = FakeSwarm()
    client = Client(swarm)
    client.begin()
    client.put_off(4)
    [(seconds, again)] = swarm.timers
    assert 4 <= seconds <= 4.4
    assert client.sent == 1
    again()
    assert client.sent == 2
    client.received({"ok": True})
    assert client.outcome == "ok"


def test_an_honest_client_connects_again_if_the_server_closes_while_it_waits() -> None:
    swarm = FakeSwarm()
    client = Client(swarm)
    client.begin()
    client.put_off(5)
    client.end_by_server()
    assert client.outcome is None
    swarm.timers[0][1]()
    assert client.is_open
    assert client.sent == 2


def test_an_honest_client_is_refused_for_good_after_its_patience() -> None:
    swarm = FakeSwarm()
    client = Client(swarm)
    client.begin()
    client.put_off(200)
    swarm.timers[0][1]()
    client.put_off(101)
    assert client.outcome == "rate_limited: try again in 101 seconds"


def test_a_connection_that_is_cut_without_an_answer_is_a_refusal() -> None:
    client = Client(FakeSwarm())
    client.begin()
    client.end_by_server()
    assert client.outcome == "cut"
