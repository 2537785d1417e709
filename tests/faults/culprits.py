"""Scenarios in which handlers block, kill or leave their worker: only the culprit pays for it."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psutil

from taskd.events.publisher import RETURNS_TOLD
from tests.cluster import user
from tests.daemons import Daemon, free_port
from tests.faults import handlers
from tests.faults.audit import pid_of
from tests.faults.liveness import KILLED_WITHIN
from tests.faults.load import Load, Spec
from tests.faults.processes import Line, await_busy, lasting, running
from tests.faults.stage import END_SECONDS, Stage
from tests.faults.worker import KIND
from tests.processes import eventually

NAMED_WITHIN = 2.0
"""Seconds within which a blocked reactor is known, and what blocks it."""

BEGUN_ELSEWHERE = 4.0
"""Seconds of standstill within which another worker begins what a blocked one has not begun."""

STALL_KILL = 2.0
"""Seconds after TASKD_STALL within which a blocked worker has ended."""


def reactor_blocked(stage: Stage, *, seconds: float, neighbours: int) -> Line:
    """An async handler sleeps, and a regular expression in a thread holds the interpreter lock, both for longer than
    the lease. No neighbour loses anything. The log and the store say what blocks."""
    stage.start()
    beside = lasting(2 * seconds + 6, 2 * seconds + 8)
    kinds = "block", "hold"
    blocking: list[Spec] = [{"task": kind, "kind": kind, "payload": {"seconds": seconds}} for kind in kinds]
    # several blocks at the same time could not be told apart
    load = stage.load(then(neighbours, beside, blocking), total=neighbours + len(blocking))
    load.allow(neighbours)
    await_busy(stage, stage.workers[0], load, neighbours)
    for n, kind in enumerate(kinds):
        load.allow(neighbours + n + 1)
        ended = functools.partial(stage.count, f"finished_at IS NOT NULL AND kind = '{kind}'")
        eventually(ended, 3 * seconds + 20, "the handler that blocks has ended")
        _must_be_named(stage, stage.workers[0], kind)
    stage.await_end(load)
    return stage.finish(load, {"run_twice": 0, "losses": 0, "spent": 0})


def _must_be_named(stage: Stage, worker: Daemon, kind: str) -> None:
    """``stalled`` was stored soon and is empty again, and one line of the log names kind, task and line."""
    [(task_id,)] = stage.rows(f"SELECT id FROM tasks WHERE kind = '{kind}'")
    began = next(run.at for run in stage.runs() if run.task_id == task_id)
    stalls = [change for change in stage.records().workers if change.stalled is not None and change.at > began]
    stage.must(stalls, f"nothing tells that {kind} blocks its worker")
    if stalls:
        after = stalls[0].at - began
        stage.extra[f"{kind}_named_s"] = round(after, 2)
        text = stalls[-1].stalled or ""
        # the handler that holds the lock first finds out how long it has to
        slack = 1.0 if kind == "hold" else 0.0
        stage.must(after <= NAMED_WITHIN + slack + stage.slack, f"{kind} was named only after {after:.1f} s")
        stage.must(kind in text and str(task_id) in text, f"{kind} {task_id} is not named: {text!r}")
        still = "SELECT FROM workers WHERE stalled IS NOT NULL"
        eventually(lambda: not stage.rows(still), 5, "the worker is not stalled")
    named = [line for line in worker.output().splitlines() if _names(line, kind, task_id)]
    stage.must(named, f"no line of the log names {kind}, {task_id} and the line")


def _names(line: str, kind: str, task_id: int) -> bool:
    at = re.search(r"handlers\.py\D{1,12}(\d+)", line)
    return bool(at and int(at[1]) in handlers.lines_of(kind) and kind in line and re.search(rf"\b{task_id}\b", line))


def unbegun_behind_a_block(stage: Stage, *, seconds: float, tasks: int) -> Line:
    """An async handler sleeps, and more is assigned to its worker before anybody knows of that. The other worker begins
    this soon, while the first one is still blocked. Nothing runs twice."""
    stage.start(workers=2, options=("--slots", "20"))
    blocking: list[Spec] = [{"task": "block", "kind": "block", "payload": {"seconds": seconds}}]
    short = lasting(0.0, 0.1)
    load = stage.load(lambda n: short(n) if n else dict(blocking[0]), total=1 + tasks)
    load.allow(1)
    eventually(stage.runs, 20, "the handler blocks")
    load.allow(1 + tasks)
    stage.await_end(load)
    [block] = [run for run in stage.runs() if run.until is not None and run.until - run.at >= seconds]
    given_back = {
        change.task_id: change.at
        for change in stage.records().changes
        if (change.old, change.new, pid_of(change.holder)) == ("queued", "waiting", block.worker)
        and change.at < block.at + seconds
    }
    begun = [run.at - block.at for run in stage.runs() if run.task_id in given_back]
    slowest = max(begun, default=float("inf"))
    stage.extra |= {"given_back": len(given_back), "slowest_begin_s": round(slowest, 2)}
    stage.must(given_back, "the blocked worker held nothing that it had not begun")
    stage.must(slowest < seconds, f"what was behind the block began only after {slowest:.1f} s, with its end")
    stage.must(slowest <= BEGUN_ELSEWHERE + stage.slack, f"what was behind the block began after {slowest:.1f} s")
    return stage.finish(load, {"run_twice": 0, "losses": 0, "spent": 0})


def stalled_too_long(stage: Stage, *, stall: float, neighbours: int) -> Line:
    """A handler blocks for longer than TASKD_STALL. Its worker is ended, and it alone loses attempts."""
    stage.cluster.env["TASKD_STALL"] = f"{stall:g}"
    stage.start(workers=2)
    beside = lasting(stall / 2, 2 * stall)
    blocking = [{"task": "block", "kind": "block", "payload": {"seconds": 120}, "max_attempts": 2}]
    load = stage.load(then(neighbours, beside, blocking), total=neighbours + 1)
    deaths = restart_until_done(stage, load, [-9])
    [(task_id, state, error)] = stage.rows("SELECT id, state, error FROM tasks WHERE kind = 'block'")
    blocked = [run for run in stage.runs() if run.task_id == task_id]
    gone = {pid_of(change.name): change.at for change in stage.records().workers if change.state == "gone"}
    slowest = max(gone.get(run.worker, float("inf")) - run.at for run in blocked)
    stage.extra |= {"deaths": deaths, "slowest_kill_s": round(slowest, 2), "error": error}
    stage.must(len(blocked) == 2 and state == "failed", f"the block ran {len(blocked)} times and is {state}")
    stage.must(slowest <= stall + STALL_KILL + stage.slack, f"a blocked worker was ended only after {slowest:.1f} s")
    return stage.finish(load, {"failed": 1, "spent": 2})


def kill_with_last_attempts(stage: Stage, *, tasks: int, seconds: float) -> Line:
    """``kill -9`` under tasks on their last attempt, with free slots elsewhere: they run again side by side."""
    options = "--slots", "100"
    stage.start(options=options)
    spec = lasting(seconds, seconds, max_attempts=2)

    def failing_once(n: int) -> Spec:
        found = spec(n)
        return found | {"payload": found["payload"] | {"fails": 1}}

    load = stage.load(failing_once, total=tasks)
    eventually(lambda: stage.count("state = 'running' AND attempt = 2") == tasks, 30, "all are on their last attempt")
    stage.launch_worker(*options)
    stage.await_ready()
    killed = stage.kill_worker(stage.workers[0])
    stage.await_end(load)
    ended = max(change.at for change in stage.records().changes) - killed.at
    stage.extra["all_ended_s"] = round(ended, 2)
    stage.must(
        ended <= seconds + KILLED_WITHIN + 2 + stage.slack,
        f"{tasks} tasks of {seconds} s ended only after {ended:.1f} s",
    )
    stage.must_run_again([killed], KILLED_WITHIN)
    return stage.finish(load, {"losses": tasks, "spent": 0})


def poison_beside_innocents(stage: Stage, *, good: int, rate: float) -> Line:
    """Three tasks kill their workers, each in its way. They fail with a record, and nobody else loses an attempt."""
    options = "--slots", "100"
    stage.start(workers=2, options=options)
    well = lasting(0.2, 2)
    ways = ("exit", "kill", "crash")

    def spec(n: int) -> Spec:
        at = {good // 4: 0, good // 3: 1, good // 2: 2}.get(n)
        return well(n) if at is None else {"task": "poison", "kind": "poison", "payload": {"how": ways[at]}}

    load = stage.load(spec, total=good + len(ways), rate=rate)
    deaths = restart_until_done(stage, load, [1, -9, -11], options)
    poisons = stage.rows("""
        SELECT t.payload->>'how', t.state, t.attempt, count(a.*), t.error
        FROM tasks t LEFT JOIN task_attempts a ON a.task_id = t.id WHERE t.kind = 'poison' GROUP BY t.id ORDER BY 1
    """)
    for how, state, attempt, records, error in poisons:
        stage.must(state == "failed" and attempt == records == 3, f"{how}: {state}, {attempt}, {records} records")
        stage.must(error and "worker" in error, f"the error of {how} does not name the worker: {error!r}")
    [(spent, slowest)] = stage.rows(f"""
        SELECT count(*) FILTER (WHERE attempt <> 1), extract(epoch FROM max(finished_at - created_at))::float
        FROM tasks WHERE kind = '{KIND}'
    """)
    stage.extra |= {"deaths": deaths, "slowest_innocent_s": round(slowest, 1)}
    stage.must(spent == 0, f"{spent} innocents have spent an attempt")
    return stage.finish(load, {"failed": len(ways), "spent": 3 * len(ways)})


def forks(stage: Stage, *, times: int, neighbours: int) -> Line:
    """Handlers fork. Nothing of the worker lives on in the children, whatever they do."""
    # those of children that raise
    stage.allow_tracebacks()
    stage.start()
    worker = stage.workers[0]
    before = stage.processes()
    fork = [
        {"task": f"{kind} {how}", "kind": kind, "payload": {"how": how}}
        for _ in range(times)
        for kind in ("fork_thread", "fork_async")
        for how in handlers.FORKS
    ]
    load = stage.load(then(neighbours, lasting(1, 4), fork), total=neighbours + len(fork))
    load.await_confirmed(neighbours + len(fork))
    stage.await_end(load)
    try:
        eventually(lambda: stage.processes() <= before, 10, "no copy of the worker lives on")
    except AssertionError as e:
        stage.violations.append(f"{e}: {sorted(stage.processes() - before)}")
    eventually(lambda: _sessions(stage) == _connections(stage, before), 5, "no copy has a session in PostgreSQL")
    stage.must(worker.returncode is None, "the worker has ended")
    children = [int(pid) for (pid,) in stage.rows("SELECT result::text FROM tasks WHERE kind LIKE 'fork%'")]
    stage.must(len(set(children)) == len(fork), "a parent did not return the process id of its child")
    stage.extra["forks"] = len(fork)
    return stage.finish(load, {"run_twice": 0, "losses": 0, "spent": 0})


def _sessions(stage: Stage) -> int:
    sql = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{stage.database}' AND pid <> pg_backend_pid()"
    return int(stage.rows(sql)[0][0])


def _connections(stage: Stage, pids: Iterable[int]) -> int:
    """How many connections to PostgreSQL these processes have."""
    found = [c for pid in pids for c in psutil.Process(pid).net_connections("tcp4")]
    return sum(c.status == psutil.CONN_ESTABLISHED and c.raddr.port == stage.postgres.port for c in found)


def forks_embedded(stage: Stage, *, times: int) -> Line:
    """The embedded server is killed while children of its handlers live: its restart is not refused."""
    port = free_port()
    for kind in ("fork_thread", "fork_async") * times:
        server = stage.launch_embedded(port)
        with user(port, "ana") as client:
            task = client.request("new_task", task="t", kind=kind, payload={"how": "linger"})
            done = client.request("wait", task_ids=[task["task_id"]], timeout=10)
            stage.must(done.get("done"), f"{kind} has not ended: {done}")
            server.kill()
            stage.must(stage.processes(), "the child of the handler has ended too early")
            since = time.monotonic()
            # the client's connection was closed with the server: no copy of the server holds it
            try:
                client.read_line(2)
            except TimeoutError:
                stage.violations.append("a copy of the server holds a client's connection")
            except ConnectionError:
                pass
        again = stage.launch_embedded(port)
        stage.extra["slowest_start_s"] = max(
            round(time.monotonic() - since, 2), stage.extra.get("slowest_start_s", 0.0)
        )
        with user(port, "ana") as client:
            stage.must(client.request("get_task", task_id=task["task_id"])["ok"], "the task is not there")
        stage.must(again.terminate() == 0, "the embedded server did not stop in order")
    try:
        eventually(lambda: not stage.processes(), 10, "no copy of the embedded server lives on")
    except AssertionError as e:
        stage.violations.append(f"{e}: {sorted(stage.processes())}")
    return stage.finish_embedded()


def restarts_under_a_long_task(stage: Stage, *, times: int, every: float, seconds: float) -> Line:
    """The worker is restarted under a task that takes longer. ``returns`` grows, and from the third one on the owner
    gets events."""
    options = "--grace", "0"
    stage.start(options=options)
    load = stage.load(lasting(seconds, seconds), total=1, clients=1)
    with user(stage.cluster.ports[0], "user0") as client:
        stage.must(client.request("watch")["ok"], "no watch")
        for n in range(times):
            old = stage.workers[0]
            eventually(functools.partial(running, stage, old), 20, "the task runs")
            time.sleep(every)
            new = stage.launch_worker(*options)
            new.wait_for("worker takes tasks", 60)
            stage.workers.remove(old)
            stage.expect_end(old)
            stage.must(old.terminate() == 0, "a worker did not drain")
            eventually(functools.partial(running, stage, new), 10, "the task runs on the next worker")
            [(returns, attempt)] = stage.rows("SELECT returns, attempt FROM tasks")
            stage.must(
                (returns, attempt) == (n + 1, 1), f"after {n + 1} restarts: {returns} returns, {attempt} attempts"
            )
        [(task_id,)] = stage.rows("SELECT id FROM tasks")
        shown = client.request("get_task", task_id=task_id)["task"]
        stage.must(shown.get("returns") == times, f"show says {shown.get('returns')} returns")
        stage.await_end(load)
        told = _returns_told(client)
        stage.must(told == list(range(RETURNS_TOLD, times + 1)), f"the owner heard of the returns {told}")
        stage.extra |= {"returns": returns, "told": told}
    return stage.finish(load, {"losses": 0, "spent": 0, "run_twice": 1})


def _returns_told(client: Any) -> list[int]:
    told: list[int] = []
    while True:
        try:
            event = client.event(1.0)
        except TimeoutError:
            return told
        if event["event"] == "returned":
            told.append(event["returns"])


# -- what these scenarios share


def then(first: int, beside: Callable[[int], Spec], others: Sequence[Spec]) -> Callable[[int], Spec]:
    """``first`` tasks of one kind, then these others."""
    return lambda n: beside(n) if n < first else dict(others[n - first])


def restart_until_done(stage: Stage, load: Load, statuses: Sequence[int], options: Sequence[str] = ()) -> int:
    """Start workers as systemd does until all tasks have ended. Returns how many had ended."""
    deaths = 0
    deadline = time.monotonic() + END_SECONDS
    while (not load.done or stage.count("finished_at IS NULL")) and time.monotonic() < deadline:
        deaths += stage.replace_dead_workers(statuses, options)
        time.sleep(0.1)
    # the last death may have ended the last task in no time
    deaths += stage.replace_dead_workers(statuses, options)
    stage.await_ready()
    return deaths
