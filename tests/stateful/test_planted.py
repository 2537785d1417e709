"""The machines find deliberate defects."""

from __future__ import annotations

import pytest

from tests.stateful.machine import play
from tests.stateful.planted import DEFECTS

GAMES = 300


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(name: str) -> None:
    """One of the first games fails."""
    defect = DEFECTS[name]
    with defect.planted(), pytest.raises(AssertionError):
        play(defect.registration, 0, GAMES, 40, shorten=False)
