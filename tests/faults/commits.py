"""The scenario in which connections to PostgreSQL are cut around a COMMIT."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.faults.processes import Line, lasting
from tests.faults.proxy import Moment, Proxy
from tests.faults.stage import ATTEMPTS, Stage

STATEMENTS = "create_tasks", "assign", "look", "complete"
"""Statements that must be safe to repeat. The server sends the first two, the worker the others."""

HIT_SECONDS = 20.0


def commits_cut(stage: Stage, *, times: int, moments: Sequence[Moment], rate: float) -> Line:
    """Cut the connection of each statement at each of these moments, ``times`` times."""
    with Proxy(stage.postgres.port) as proxy:
        stage.cluster.env |= {"POSTGRES_PORT": str(proxy.port)}
        # a little fewer slots than the tasks ask for, so that some tasks wait, and the dispatcher has work
        least, most = 0.02, 0.15
        stage.start(options=("--slots", str(int(rate * (least + most) / 2 * 0.9))))
        load = stage.load(lasting(least, most, max_attempts=ATTEMPTS), rate=rate)
        load.await_confirmed(int(rate))
        slowest = 0.0
        for _ in range(times):
            for moment in moments:
                for statement in STATEMENTS:
                    proxy.arm(statement, moment)
                    hit = proxy.wait_hit(HIT_SECONDS)
                    stage.must(hit, f"{statement} was not executed within {HIT_SECONDS:g} s")
                    if hit:
                        slowest = max(slowest, stage.await_back(load, time.time()))
        wanted = times * len(moments) * len(STATEMENTS)
        stage.must(proxy.cuts == wanted, f"{proxy.cuts} cuts, not {wanted}")
        stage.extra |= {"cuts": proxy.cuts, "slowest_back_s": round(slowest, 2)}
        return stage.finish(load)
