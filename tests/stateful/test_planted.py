"""The machines find deliberate defects."""

from __future__ import annotations

import pytest

from tests.stateful.machine import GAMES, SEEDS, STEPS, play
from tests.stateful.planted import DEFECTS


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(name: str) -> None:
    """A game fails, mostly one of those that the other test plays. After a change of taskd or of the rules, it may be
    one of some more seeds."""
    defect = DEFECTS[name]
    seeds = sorted(range(5 * len(SEEDS)), key=lambda seed: seed != defect.first)
    with defect.planted(), pytest.raises(AssertionError):
        for seed in seeds:
            play(defect.registration, seed, GAMES, STEPS, shorten=False)
