"""Some games of each machine: the same in each run. ``python -m tests.stateful`` plays others."""

from __future__ import annotations

import pytest

from taskd.protocol import actions
from tests.stateful.machine import GAMES, MACHINES, SEEDS, STEPS, play
from tests.stateful.model import ACTIONS


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("registration", sorted(MACHINES))
def test_the_server_does_what_the_model_says(registration: str, seed: int) -> None:
    """A failure shows the steps of the game. ``python -m tests.stateful --only REGISTRATION --first SEED`` shortens
    them."""
    play(registration, seed, GAMES, STEPS, shorten=False)


def test_the_model_knows_every_action() -> None:
    """Else the machines would leave out a new one."""
    assert sorted(ACTIONS) == sorted(actions.ACTIONS)
