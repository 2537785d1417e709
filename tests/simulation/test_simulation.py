"""Some hundred games of the simulation, and a check that a seed always plays the same game."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from zope.interface.verify import verifyObject

from taskd.ports.broker import IBroker, IHints
from taskd.ports.handler import ITaskHandler
from taskd.ports.store import IStore
from tests.simulation.processes import Handler
from tests.simulation.world import World, play

ROOT = Path(__file__).resolve().parents[2]
GAMES = 300
EACH = 50


@pytest.mark.parametrize("first", range(0, GAMES, EACH))
def test_invariants_hold(first: int) -> None:
    """A failed game prints the command that repeats it."""
    for seed in range(first, first + EACH):
        play(seed)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_plays_the_same_game_again(seed: int) -> None:
    """The two logs have the same events."""
    first, second = play(seed), play(seed)
    assert first.log == second.log
    assert first.steps == second.steps
    assert len(first.log) > 50


def test_a_seed_plays_the_same_game_in_another_process() -> None:
    """Sets of strings have another order in each process: the game must not depend on it."""
    command = [sys.executable, "-m", "tests.simulation", "--first", "7", "--seeds", "1", "--verbose"]
    games = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        games.append([line for line in found.stdout.splitlines() if " games in " not in line])
    assert games[0] == games[1]
    assert len(games[0]) > 50


def test_other_seeds_play_other_games() -> None:
    """The seed decides the game."""
    assert play(1).log != play(2).log


def test_the_simulated_parts_provide_their_interfaces() -> None:
    """The simulated parts provide the interfaces of taskd."""
    world = World(0)
    world._start_server()
    world._start_worker(3)
    verifyObject(IStore, world.servers[0].store)
    verifyObject(IBroker, world.servers[0].broker)
    verifyObject(ITaskHandler, Handler(world.workers[0], "rare"))
    hints = world.workers[0].broker.receive_hints("name", lambda orders: None, lambda: None)
    verifyObject(IHints, hints)
    world.close()
