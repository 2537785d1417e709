"""Some games of each machine. They are the same in each run; ``python -m tests.stateful`` plays others."""

from __future__ import annotations

import pytest

from taskd.protocol import actions
from tests.stateful.machine import MACHINES, play
from tests.stateful.model import ACTIONS

GAMES = 60
STEPS = 40


@pytest.mark.parametrize("registration", sorted(MACHINES))
def test_the_server_does_what_the_model_says(registration: str) -> None:
    """The error shows what was done in the game that failed; it is shortened by
    ``python -m tests.stateful --first 0 --games 60 --steps 40``."""
    play(registration, 0, GAMES, STEPS, shorten=False)


def test_the_model_knows_every_action() -> None:
    """Else the machines would leave out a new one."""
    assert sorted(ACTIONS) == sorted(actions.ACTIONS)
