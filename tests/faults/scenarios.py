"""The table of all scenarios, with their quick and full counts."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults import clocks, commits, culprits, liveness, outages, processes
from tests.faults.proxy import Moment
from tests.faults.stage import Services, Stage


class Scenario(NamedTuple):
    """``play`` gets a stage and one of the counts, ``quick`` or ``full``. No quick run if ``quick`` is None."""

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
        # the last pause outlasts the heartbeats of RabbitMQ, so the worker loses its channel too
        {"seconds": [5, 5, 10, 40], "rate": 40},
    ),
    "drains": Scenario(processes.drains, {"times": 2, "rate": 40}, {"times": 10, "rate": 60}),
    "poison": Scenario(processes.poison, {"good": 200}, {"good": 1000}),
    "postgres_crashes": Scenario(
        outages.postgres_crashes,
        {"pauses": [0, 7], "rate": 40},
        {"pauses": [0, 0, 0.5, 0.5, 1, 1, 2, 5, 7, 15], "rate": 100},
    ),
    "failover": Scenario(
        outages.failover,
        {"tasks": 20, "delay": 8, "seconds": 15},
        {"tasks": 200, "delay": 15, "seconds": 40},
    ),
    "rabbitmq_crashes": Scenario(outages.rabbitmq_crashes, {"times": 1, "rate": 40}, {"times": 5, "rate": 100}),
    "rabbitmq_down": Scenario(
        outages.rabbitmq_down,
        {"seconds": 5, "tasks": 200},
        {"seconds": 60, "tasks": 2000},
    ),
    "memory_alarm": Scenario(outages.memory_alarm, {"seconds": 3, "rate": 40}, {"seconds": 30, "rate": 100}),
    "queues_lost": Scenario(
        outages.queues_lost,
        {"times": 2, "rate": 40, "policy": 2},
        {"times": 10, "rate": 100, "policy": 20},
    ),
    "commits_cut": Scenario(
        commits.commits_cut,
        {"times": 1, "moments": _CUTS, "rate": 40},
        {"times": 5, "moments": _CUTS, "rate": 80},
    ),
    "answers_lost": Scenario(
        commits.commits_cut,
        # PostgresConnection gives a statement up after twelve seconds, which is too long for the quick run
        None,
        {"times": 1, "moments": (Moment.SILENT,), "rate": 40},
    ),
    "broker_restart": Scenario(
        liveness.broker_restart,
        {"tasks": 30, "seconds": 18, "lease": 5},
        {"tasks": 60, "seconds": 45, "lease": 10},
    ),
    "connections_closed": Scenario(
        liveness.connections_closed,
        {"times": 4, "tasks": 20, "seconds": 16},
        {"times": 12, "tasks": 60, "seconds": 60},
    ),
    "server_killed_after_batch": Scenario(
        liveness.server_killed_after_batch,
        {"times": 1, "batch": 10, "seconds": 4, "alarm": 3},
        {"times": 10, "batch": 20, "seconds": 6, "alarm": 3},
    ),
    "consumer_timeout": Scenario(
        liveness.consumer_timeout,
        {"timeout": 3, "tasks": 20, "seconds": 12},
        {"timeout": 20, "tasks": 40, "seconds": 70},
    ),
    "tables_locked": Scenario(
        liveness.tables_locked,
        {"locks": ["tasks"], "lease": 3, "tasks": 50, "seconds": 14},
        {"locks": ["tasks", "workers", "tasks", "workers, tasks"], "lease": 12, "tasks": 100, "seconds": 100},
    ),
    "worker_clock": Scenario(
        clocks.worker_clock,
        {"shifts": [-3600, 3600], "tasks": 20, "seconds": 6},
        {"shifts": [-3600, 3600, -86_400, 0], "tasks": 60, "seconds": 20},
    ),
    "server_clock": Scenario(
        clocks.server_clock,
        {"shifts": [-3600, 3600], "tasks": 15, "delay": 4},
        {"shifts": [-3600, 3600, -86_400, 0], "tasks": 60, "delay": 15},
    ),
    "reactor_blocked": Scenario(
        culprits.reactor_blocked, {"seconds": 5, "neighbours": 20}, {"seconds": 25, "neighbours": 40}
    ),
    "unbegun_behind_a_block": Scenario(
        culprits.unbegun_behind_a_block, {"seconds": 8, "tasks": 20}, {"seconds": 12, "tasks": 400}
    ),
    "stalled_too_long": Scenario(
        culprits.stalled_too_long, {"stall": 5, "neighbours": 20}, {"stall": 15, "neighbours": 40}
    ),
    "kill_with_last_attempts": Scenario(
        culprits.kill_with_last_attempts, {"tasks": 8, "seconds": 5}, {"tasks": 20, "seconds": 15}
    ),
    "poison_beside_innocents": Scenario(
        culprits.poison_beside_innocents, {"good": 30, "rate": 10}, {"good": 1000, "rate": 30}
    ),
    "forks": Scenario(culprits.forks, {"times": 1, "neighbours": 10}, {"times": 10, "neighbours": 50}),
    "forks_embedded": Scenario(culprits.forks_embedded, {"times": 1}, {"times": 5}),
    "restarts_under_a_long_task": Scenario(
        culprits.restarts_under_a_long_task,
        {"times": 4, "every": 0.5, "seconds": 12},
        {"times": 8, "every": 5, "seconds": 20},
    ),
}


def play(name: str, own: Services, full: bool = False, keep: Path | None = None) -> dict[str, Any]:
    """Run one scenario and return its line. Raises Broken with the line if a promise was broken.

    The output of the daemons is kept in the folder ``keep``, if given.
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
