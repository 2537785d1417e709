"""Scenarios in which the system's clock of one daemon is set while everything runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.faketime import SystemClock
from tests.faults.processes import Line, lasting
from tests.faults.stage import Stage
from tests.faults.worker import KIND
from tests.processes import eventually

LATE = 2.0
"""Seconds that anything may begin or end later than it should: due tasks are looked for once a second."""

TIMEOUT = 3.0
"""The time limit of the tasks that never end by themselves, in seconds."""


def worker_clock(stage: Stage, *, shifts: Sequence[float], tasks: int, seconds: float) -> Line:
    """The clock of one of two workers is set under running tasks. Each takes as long as it should and starts once, and
    time limits keep their length."""
    clock = SystemClock(stage.folder)
    stage.start(workers=1)
    stage.launch_worker(**clock.env())
    stage.await_ready()
    fitting, hanging = lasting(seconds, seconds), lasting(600, 600, timeout=TIMEOUT, max_attempts=1)
    half = tasks // 2
    load = stage.load(lambda n: hanging(n) if n % tasks < half else fitting(n), total=tasks * len(shifts))
    for n, shift in enumerate(shifts):
        load.allow(tasks * (n + 1))
        eventually(lambda: stage.count("state = 'running'") >= tasks, 20, "all tasks run")
        clock.set(shift)
        eventually(lambda: not stage.count("finished_at IS NULL"), seconds + 15, "all tasks have ended")
    stage.await_end(load)
    limits = dict(stage.rows(f"SELECT id, coalesce(timeout, {seconds}) FROM tasks"))
    off = [(run.until or 0.0) - run.at - limits[run.task_id] for run in stage.runs()]
    stage.extra |= {"shifts": list(shifts), "shortest_off_s": round(min(off), 2), "longest_off_s": round(max(off), 2)}
    stage.must(
        min(off) >= -0.1 and max(off) <= LATE + stage.slack,
        f"tasks took {min(off):.1f} to {max(off):.1f} s more than asked",
    )
    errors = {error for (error,) in stage.rows("SELECT error FROM tasks WHERE state = 'failed'")}
    stage.must(errors == {f"took longer than {TIMEOUT:g} s"}, f"errors: {errors}")
    return stage.finish(load, {"failed": half * len(shifts), "run_twice": 0, "losses": 0, "spent": 0})


def server_clock(stage: Stage, *, shifts: Sequence[float], tasks: int, delay: float) -> Line:
    """The clock of a server is set while tasks run, wait for their time, and are submitted with a delay."""
    clock = SystemClock(stage.folder)
    stage.start(server_env=clock.env())
    plain = lasting(1, 2 * delay)
    load = stage.load(
        lambda n: plain(n) if n % 3 == 0 else lasting(0, 0.1)(n) | {"delay": delay},
        total=2 * tasks * len(shifts),
    )
    for n, shift in enumerate(shifts):
        # half of them are there when the clock is set
        load.allow(tasks * (2 * n + 1))
        load.await_confirmed(tasks * (2 * n + 1))
        clock.set(shift)
        time.sleep(0.2)
        load.allow(tasks * (2 * n + 2))
        load.await_confirmed(tasks * (2 * n + 2))
        eventually(lambda: not stage.count("finished_at IS NULL"), 3 * delay + 15, "all tasks have ended")
    stage.await_end(load)
    delayed = dict(stage.rows(f"SELECT id, run_at > created_at FROM tasks WHERE kind = '{KIND}'"))
    stored = {change.task_id: change.at for change in stage.records().changes if change.old is None}
    late = [run.at - stored[run.task_id] - delay * delayed[run.task_id] for run in stage.runs()]
    stage.extra |= {"shifts": list(shifts), "earliest_s": round(min(late), 2), "latest_s": round(max(late), 2)}
    stage.must(
        min(late) >= -0.1 and max(late) <= LATE + stage.slack, f"tasks began {min(late):.1f} to {max(late):.1f} s late"
    )
    stage.must(sum(delayed.values()) > len(delayed) / 3, "hardly any task has a delay")
    return stage.finish(load, {"run_twice": 0, "losses": 0, "spent": 0})
