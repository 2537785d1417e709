"""All scenarios, with their counts in small and in full."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults import commits, outages, processes
from tests.faults.proxy import Moment
from tests.faults.stage import Services, Stage


class Scenario(NamedTuple):
    """``play`` gets a stage and the counts, ``quick`` (None: not at all) or ``full``."""

    play: Callable[..., dict[str, Any]]
    quick: dict[str, Any] | None
    full: dict[str, Any]


_CUTS = (Moment.BEFORE, Moment.DURING, Moment.AFTER)

SCENARIOS: dict[str, Scenario] = {
    "kills": Scenario(
        processes.kills,
        {"tasks": 400, "workers": 4, "servers": 3, "rate": 50},
        {"tasks": 10_000, "workers": 30, "servers": 30, "rate": 150},
    ),
    "frozen": Scenario(
        processes.frozen,
        {"seconds": [5], "rate": 20},
        # the last one is longer than the heartbeats of RabbitMQ: the worker has lost its channel as well
        {"seconds": [5, 5, 10, 40], "rate": 40},
    ),
    "drains": Scenario(processes.drains, {"times": 2, "rate": 40}, {"times": 10, "rate": 60}),
    "poison": Scenario(processes.poison, {"good": 200}, {"good": 1000}),
    "postgres_crashes": Scenario(
        outages.postgres_crashes,
        {"pauses": [0, 7], "rate": 40},
        {"pauses": [0, 0, 0.5, 0.5, 1, 1, 2, 5, 7, 15], "rate": 100},
    ),
    "rabbitmq_crashes": Scenario(outages.rabbitmq_crashes, {"times": 1, "rate": 40}, {"times": 5, "rate": 100}),
    "rabbitmq_down": Scenario(
        outages.rabbitmq_down,
        {"seconds": 5, "tasks": 200},
        {"seconds": 60, "tasks": 2000},
    ),
    "memory_alarm": Scenario(outages.memory_alarm, {"seconds": 3, "rate": 40}, {"seconds": 30, "rate": 100}),
    "queue_lost": Scenario(outages.queue_lost, {"messages": 150}, {"messages": 2500}),
    "commits_cut": Scenario(
        commits.commits_cut,
        {"times": 1, "moments": _CUTS, "rate": 40},
        {"times": 5, "moments": _CUTS, "rate": 80},
    ),
    "answers_lost": Scenario(
        commits.commits_cut,
        # PostgresConnection gives a statement up after twelve seconds: too long for the tests
        None,
        {"times": 1, "moments": (Moment.SILENT,), "rate": 40},
    ),
}


def play(name: str, own: Services, full: bool = False, keep: Path | None = None) -> dict[str, Any]:
    """Play one scenario; its line. Raises Broken with the line when a promise was broken.

    What the daemons print is in the folder ``keep`` afterwards.
    """
    scenario = SCENARIOS[name]
    counts = scenario.full if full else scenario.quick
    with contextlib.ExitStack() as stack:
        if keep is None:
            temporary = tempfile.TemporaryDirectory(prefix="taskd-faults-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(temporary))
        else:
            folder = keep / name
            folder.mkdir(parents=True)
        stage = stack.enter_context(Stage(name, folder, own, thorough=full))
        return scenario.play(stage, **(counts or {}))
