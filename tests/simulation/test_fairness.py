"""Whose task is next, while nothing fails; and each of the checks finds a deliberate defect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest

from taskd.scheduling import costs
from taskd.scheduling.dispatcher import Dispatcher
from taskd.store.sqlite import turn
from taskd.worker import begins
from taskd.worker.begins import Begins
from taskd.worker.held import HeldTask
from taskd.worker.slots import SlotPool
from tests.simulation.fairness import HORIZON, Game
from tests.slot_time import jain

LENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds that a task of each of ten users takes."""

WINDOW = 5.0
"""Shares are those of so many seconds."""

ON_ITS_WAY = 0.15
"""Seconds until a free slot is known, a turn is taken, and the worker has looked: HORIZON and 50 ms."""

GIVEN_BACK = 1.0
"""Seconds that unbegun tasks wait for a slot, at most."""


def shares_are_equal(slots: int = 100) -> None:
    """Users with tasks of 0.01 to 10 seconds get the same slot time, and little waits in the worker."""
    with Game(slots=slots, weights=[1.0] * len(LENGTHS)) as game:
        for user, seconds in enumerate(LENGTHS):
            game.submit(user, [seconds] * round(3 * slots / seconds))
        since, until = game.now + max(LENGTHS), game.now + max(LENGTHS) + WINDOW + 2
        game.run(since)
        while game.now < until:
            ended, at = game.ends, game.now
            game.run(at + 0.5)
            in_flight, rate = game.in_flight(), (game.ends - ended) / 0.5
            most = game.slots + rate * HORIZON + game.servers
            assert in_flight <= most, f"{in_flight} in flight, {rate:.0f} end in a second"
        for start in (since, since + 1, since + 2):
            had = game.slot_seconds(start, start + WINDOW)
            found = [had.get(user, 0.0) for user in range(len(LENGTHS))]
            assert jain(found) >= 0.99, [round(seconds / WINDOW, 2) for seconds in found]
            assert sum(found) >= 0.98 * game.slots * WINDOW, "slots idle"
        assert game.assignments <= 1.05 * game.begins + game.in_flight()


def shares_follow_weights() -> None:
    """Three users get slot time by their weights, also the one with the least."""
    weights = (1.0, 2.0, 4.0)
    had = [0.0] * len(weights)
    for seed in range(2):
        with Game(slots=70, weights=weights, seed=seed) as game:
            for user in range(len(weights)):
                lengths = game.stream(f"lengths {user}")
                game.submit(user, [lengths.uniform(0.5, 1.5) for _ in range(1500)])
            since = game.now + 5.0
            game.run(since + 15.0)
            for user, seconds in game.slot_seconds(since, game.now).items():
                had[user] += seconds
    total = sum(had)
    assert total >= 0.98 * 2 * 70 * 15.0, "slots idle"
    errors = [had[user] / total * sum(weights) / weight - 1 for user, weight in enumerate(weights)]
    assert max(map(abs, errors)) <= 0.015, f"off by {errors}"


def a_newcomer_does_not_wait() -> None:
    """A newcomer behind 3,000 tasks begins with the next free slot."""
    for seed in range(6):
        with Game(slots=4, weights=[1.0, 1.0], seed=seed) as game:
            game.submit(0, [0.2] * 3000)
            game.run(game.now + 3.0 + game.stream("arrival").random())
            game.submit(1, [0.01])
            waited = game.first_begin(1, 5.0) - game.arrived
            assert waited <= 0.2 + ON_ITS_WAY, f"seed {seed}: {waited:.3f} s"
            assert game.assignments <= 1.05 * game.begins + game.in_flight()


def a_newcomer_after_a_burst() -> None:
    """Tasks of 10 ms become tasks of 10 s: a newcomer begins with the next free slot, or a second later."""
    for seed in range(4):
        with Game(slots=4, weights=[1.0, 1.0], seed=seed) as game:
            game.submit(0, [0.01] * 1000 + [10.0] * 100)
            game.run_until_older(0.3)
            changed = game.now
            game.run(game.now + game.stream("arrival").uniform(0, 2.0))
            game.submit(1, [0.01])
            began = game.first_begin(1, 60.0)
            free = min(span.ended for span in game.spans if span.ended > game.arrived)
            assert free - changed > 5
            assert began <= free + GIVEN_BACK + ON_ITS_WAY, f"seed {seed}: {began - free:.3f} s after a slot was free"


def a_newcomer_before_waiting_tasks() -> None:
    """Tasks of 10 ms become tasks of up to 0.9 s, and many of them wait in the worker: the newcomer is before them."""
    for seed in range(4):
        with Game(slots=4, weights=[1.0, 1.0], seed=seed) as game:
            lengths = game.stream("lengths")
            game.submit(0, [0.01] * 1000 + [lengths.uniform(0.3, 0.9) for _ in range(100)])
            game.run_until_older(0.15)
            assert game.in_flight() > 5 * game.slots
            game.submit(1, [0.01])
            waited = game.first_begin(1, 10.0) - game.arrived
            assert waited <= GIVEN_BACK, f"seed {seed}: {waited:.3f} s"


GAMES: tuple[Callable[[], None], ...] = (
    shares_are_equal,
    shares_follow_weights,
    a_newcomer_does_not_wait,
    a_newcomer_after_a_burst,
    a_newcomer_before_waiting_tasks,
)


@pytest.mark.parametrize("game", GAMES, ids=lambda game: game.__name__)
def test_shares(game: Callable[[], None]) -> None:
    """Each of the games keeps its bounds."""
    game()


def _does_nothing(*_: Any) -> None:
    pass


async def _does_nothing_soon(*_: Any) -> None:
    pass


def _on_fewer_slots() -> None:
    shares_are_equal(50)


def _whole_slot(seconds: float, slots: int) -> float:
    return 1.0


def _unweighted(self: Any) -> float:
    return round(self.load, 9)


def _without_half(self: Any) -> float:
    return round(self.load / self._weight, 9)


def _oldest(self: SlotPool) -> HeldTask:
    user = min(self._waiting, key=lambda user: self._waiting[user][0].since)
    held = self._waiting[user].popleft()
    if not self._waiting[user]:
        del self._waiting[user]
    return held


class Defect(NamedTuple):
    """The attribute ``name`` of ``owner`` is replaced by ``broken``, and the game finds it."""

    owner: Any
    name: str
    broken: Any
    game: Callable[[], None]
    finds: str


DEFECTS: Mapping[str, Defect] = {
    "every task counts a whole slot": Defect(costs, "cost_of", _whole_slot, _on_fewer_slots, "jain"),
    "too much is on its way": Defect(costs, "HORIZON", 0.5, _on_fewer_slots, "in flight"),
    "a turn ignores weights": Defect(turn._User, "share", _unweighted, shares_follow_weights, "off by"),
    "little weight gets too much": Defect(turn._User, "share", _without_half, shares_follow_weights, "off by"),
    "servers ignore ends": Defect(Dispatcher, "_ended", _does_nothing, shares_follow_weights, "slots idle"),
    "a worker gives back too early": Defect(begins, "GIVE_BACK_AFTER", 0.02, a_newcomer_does_not_wait, "1.05"),
    "a worker gives nothing back": Defect(
        Begins, "_give_back_old", _does_nothing_soon, a_newcomer_after_a_burst, "after a slot was free"
    ),
    "a worker begins the oldest": Defect(SlotPool, "_next", _oldest, a_newcomer_before_waiting_tasks, "seed"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The game of the defect violates its bound."""
    defect = DEFECTS[name]
    monkeypatch.setattr(defect.owner, defect.name, defect.broken)
    with pytest.raises(AssertionError, match=defect.finds):
        defect.game()
