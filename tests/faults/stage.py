"""The stage of a scenario: services that it may break, its daemons, and the checks at its end."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil
import psycopg2

from tests import services
from tests.cluster import READY, TAKES_TASKS, Cluster
from tests.daemons import Daemon
from tests.faults import audit
from tests.faults.load import Load, Spec
from tests.faults.worker import RUNS, Run, read_runs
from tests.processes import eventually, pids_with

BACK_WITHIN = 10.0
"""Seconds within which taskd must work again after PostgreSQL or RabbitMQ have started again."""

WAIT_BACK = 3 * BACK_WITHIN

AGAIN_WITHIN = 5.0
"""Seconds within which the tasks of a killed worker must be running again."""

SEEN_WITHIN = 2.0
"""Seconds after its lease within which the tasks of a silent worker must be taken back."""

MAX_GROWTH = 50.0
"""The largest allowed growth of a server's memory in MiB."""

END_SECONDS = 90.0
"""The time limit in seconds for all tasks to end after the last fault. Daemons get half of it to drain."""

BEAT = 2.5
"""Seconds within which a worker that runs again has made a beat."""

ATTEMPTS = 50
"""The max_attempts of tasks whose workers are killed, so that they do not fail for being killed too often."""

BAD_WORDS = ("Traceback", "was never awaited", "Unhandled")


class Broken(AssertionError):
    """A promise was broken. ``line`` is the line of the scenario, with its violations."""

    def __init__(self, line: dict[str, Any]) -> None:
        super().__init__(line)
        self.line = line


class Services(NamedTuple):
    """A PostgreSQL with fsync and a RabbitMQ, for these scenarios only."""

    postgres: services.Postgres
    rabbitmq: services.RabbitMQ

    def stop(self) -> None:
        """Stop both at once."""
        self.rabbitmq.kill()
        self.postgres.stop("immediate")


@functools.cache
def own_services() -> Services:
    """The services of the scenarios. They start on first use and end with this process."""
    found = Services(services.Postgres(), services.RabbitMQ())
    found.rabbitmq.launch()
    found.postgres.start()
    found.rabbitmq.wait_ready()
    return found


HANDLERS = {"PYTHONPATH": str(services.ROOT), "TASKD_HANDLERS": "tests.faults.handlers"}
"""The variables of a worker that serves the handlers of the scenarios."""


class _Cluster(Cluster):
    """A cluster whose workers have the handlers of these scenarios."""

    def _run(self, command: str, options: Sequence[str], env: dict[str, str], folder: Path) -> Daemon:
        if command != "taskworker":
            return super()._run(command, options, env, folder)
        env |= HANDLERS
        return Daemon.run([sys.executable, "-m", "tests.faults.worker", *options], env, cwd=folder)


class Stage:
    """The database, the queue and the daemons of one scenario. As a context manager it ends them with the block.

    ``thorough`` runs have the machine for themselves, so bounds hold without slack.
    """

    def __init__(self, scenario: str, folder: Path, own: Services, thorough: bool = False) -> None:
        self.scenario = scenario
        self.postgres = own.postgres
        self.rabbitmq = own.rabbitmq
        self.thorough = thorough
        self.slack = 0.0 if thorough else 10.0
        """Seconds beyond a bound: the quick counts run in the suite, beside whatever else the machine does."""
        self.servers: list[Daemon] = []
        self.workers: list[Daemon] = []
        self.violations: list[str] = []
        self.unfit: list[audit.Unfit] = []
        self.extra: dict[str, Any] = {}
        self._began = time.monotonic()
        self.database = self.postgres.create_database()
        self.folder = folder
        self._runs = folder / "runs"
        self._ended: set[Daemon] = set()
        self._loads: list[Load] = []
        self._embedded: list[Daemon] = []
        self._rss: dict[Daemon, float] = {}
        self._bad_words: Sequence[str] = BAD_WORDS
        self.cluster = _Cluster(folder, self.postgres, self.database, self.rabbitmq, **{RUNS: str(self._runs)})

    # -- daemons

    def start(
        self,
        servers: int = 1,
        workers: int = 1,
        options: Sequence[str] = ("--slots", "50"),
        server_env: Mapping[str, str] | None = None,
    ) -> None:
        """Start daemons, wait until they are ready, and start the audit."""
        for _ in range(servers):
            self.servers.append(self.cluster.launch_server(None, **(server_env or {})))
        for _ in range(workers):
            self.launch_worker(*options)
        self.await_ready()
        # a server has seen a worker that has beaten again since it was registered
        seen = "SELECT count(*) FROM workers WHERE beat > 2"
        eventually(lambda: self.rows(seen)[0][0] >= workers, 20, "servers know all workers")
        for text in audit.TRIGGERS:
            self.postgres.query(text, database=self.database)
        self._rss = {server: _mebibytes(server) for server in self.servers}

    def launch_worker(self, *options: str, **env: str) -> Daemon:
        """Start one more worker."""
        worker = self.cluster.launch_worker(*(options or ("--slots", "50")), **env)
        self.workers.append(worker)
        return worker

    def launch_embedded(self, port: int) -> Daemon:
        """Start an embedded server with the handlers of the scenarios, always on the same data. Waits until it serves.
        Its database has no audit."""
        data = self.folder / "embedded"
        data.mkdir(exist_ok=True)
        options = ["--listen", f"tcp:{port}:interface=127.0.0.1", "--data", str(data)]
        env = {RUNS: str(self._runs), "TASKD_BCRYPT_ROUNDS": "4", "TASKD_REGISTRATIONS_PER_HOUR": "0", **HANDLERS}
        server = Daemon.twistd("taskserver", options, env, cwd=data)
        self._embedded.append(server)
        server.wait_for(READY, 20)
        return server

    def await_ready(self) -> None:
        """Wait until every daemon is ready."""
        for daemons, word in ((self.servers, READY), (self.workers, TAKES_TASKS)):
            for daemon in daemons:
                daemon.wait_for(word, 60)

    def replace_server(self, server: Daemon) -> None:
        """``kill -9`` of a server, and a start of another one on its port."""
        place = self.servers.index(server)
        self.expect_end(server)
        server.kill()
        self.servers[place] = self.cluster.launch_server(self.cluster.ports[place])

    def kill_worker(self, worker: Daemon, with_watchdog: bool = False) -> audit.Killed:
        """``kill -9`` of a worker, and at the same moment of its watchdog."""
        watchdogs = self.watchdogs(worker) if with_watchdog else []
        self.expect_end(worker)
        self.workers.remove(worker)
        killed = audit.Killed(worker.pid, time.time())
        for pid in watchdogs:
            os.kill(pid, signal.SIGKILL)
        worker.kill()
        return killed

    def freeze(self, worker: Daemon) -> float:
        """SIGSTOP of a worker. Returns the time."""
        now = time.time()
        self.unfit.append(audit.Unfit(worker.pid, now))
        worker.send(signal.SIGSTOP)
        return now

    def thaw(self, worker: Daemon) -> float:
        """SIGCONT of a worker: from its first beat on it is healthy again. Returns the time."""
        now = time.time()
        worker.send(signal.SIGCONT)
        self.unfit = [u._replace(until=min(u.until, now + BEAT)) if u.pid == worker.pid else u for u in self.unfit]
        return now

    def watchdogs(self, worker: Daemon) -> list[int]:
        """The process ids of a worker's watchdog: one, if it works."""
        found = []
        for child in psutil.Process(worker.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "taskd.watchdog" in child.cmdline():
                    found.append(child.pid)
        return found

    def processes(self) -> set[int]:
        """All processes of this scenario's daemons: those that they have started or forked too."""
        return pids_with(f"{RUNS}={self._runs}")

    def replace_dead_workers(self, statuses: Collection[int], options: Sequence[str] = ()) -> int:
        """Start a worker for each that has ended with one of these statuses, as systemd does. Returns their number."""
        dead = [worker for worker in self.workers if worker.returncode is not None]
        for worker in dead:
            text = f"a worker ended with {worker.returncode}: {worker.output()[-1000:]}"
            self.must(worker.returncode in statuses, text)
            self.expect_end(worker)
            self.workers.remove(worker)
            self.launch_worker(*options)
        return len(dead)

    def expect_end(self, daemon: Daemon) -> None:
        """The scenario ends this daemon, so its end is not a violation. It may have ended a moment ago."""
        self._ended.add(daemon)
        self.unfit.append(audit.Unfit(daemon.pid, time.time() - (0.0 if daemon.returncode is None else 1.0)))

    # -- tasks

    def load(self, spec: Callable[[int], Spec], **options: Any) -> Load:
        """Start clients that submit tasks."""
        load = Load(self.cluster.ports, spec, **options)
        self._loads.append(load)
        return load.start()

    def rows(self, sql: str) -> list[Any]:
        """The rows of a query."""
        return self.cluster.rows(sql)

    def count(self, condition: str) -> int:
        """The number of tasks that meet this SQL condition."""
        return int(self.rows(f"SELECT count(*) FROM tasks WHERE {condition}")[0][0])

    def runs(self) -> list[Run]:
        """The runs that the handlers recorded."""
        return read_runs(self._runs)

    def runs_again(self) -> list[Run]:
        """The runs of tasks that had run before."""
        by_task: dict[int, list[Run]] = {}
        for run in self.runs():
            by_task.setdefault(run.task_id, []).append(run)
        return [run for runs in by_task.values() for run in runs[1:]]

    # -- checks

    def must(self, true: object, otherwise: str) -> None:
        """Record a violation unless ``true``."""
        if not true:
            self.violations.append(otherwise)

    def await_back(self, load: Load, since: float) -> float:
        """Seconds from ``since`` until a task was confirmed and one has completed; at most WAIT_BACK."""
        sql = f"SELECT min(at) FROM task_changes WHERE at > {since} AND new = 'completed'"
        found: list[float] = []

        def both() -> bool:
            confirmed = load.confirmed_after(since)
            try:
                ended = self.rows(sql)[0][0]
            except psycopg2.OperationalError:
                return False
            if confirmed is None or ended is None:
                return False
            found.append(max(confirmed, ended) - since)
            return True

        try:
            eventually(both, WAIT_BACK, "taskd works again")
        except AssertionError:
            found.append(WAIT_BACK)
        self.must(found[0] <= BACK_WITHIN, f"taskd did not work again in time: {found[0]:.1f} s or never")
        return found[0]

    def must_run_again(
        self, killed: Sequence[audit.Killed], within: float = AGAIN_WITHIN, name: str = "again", waits: float = 0.0
    ) -> None:
        """Check that the tasks of killed workers were assigned again in time, and began again. ``name`` stands in the
        line of the scenario. A begin may take ``waits`` seconds longer, for suspects that wait for a place."""
        assigned = audit.run_again(self.records().changes, killed)
        begun = audit.begun_again(self.runs(), killed)
        for what, seconds, most in (("assigned", assigned, within), ("begun", begun, within + waits)):
            again = [each for each in seconds if each != float("inf")]
            slowest = max(again, default=0.0)
            self.extra |= {f"{what}_{name}": len(again), f"{what}_{name}_s": round(slowest, 2)}
            late = f"a task of a killed worker was {what} again only after {slowest:.2f} s ({name})"
            self.must(slowest <= most + self.slack, late)
            never = len(seconds) - len(again)
            self.must(not never, f"{never} tasks of killed workers were never {what} again ({name})")

    def records(self) -> audit.Records:
        """What the triggers have recorded so far."""
        return audit.read(self.rows)

    def allow_tracebacks(self) -> None:
        """The scenario makes handlers raise exceptions, which the log of a worker shows."""
        self._bad_words = BAD_WORDS[1:]

    # -- the end

    def await_end(self, load: Load) -> None:
        """Let the clients finish, and wait until every task has ended."""
        load.stop()
        try:
            eventually(lambda: not self.count("finished_at IS NULL"), END_SECONDS, "all tasks have ended")
        except AssertionError:
            left = self.rows("SELECT state, count(*) FROM tasks WHERE finished_at IS NULL GROUP BY state")
            self.violations.append(f"not ended after {END_SECONDS:g} s: {left}")

    def finish(self, load: Load, expected: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Wait until everything has ended, check the promises, and return the line of the scenario.

        ``expected`` has figures that are not 0, and further ones that must have a value.
        Raises Broken with the line if a promise was broken.
        """
        self.await_end(load)
        self._check_memory()
        self._check_left_overs()
        self._end_daemons()
        found = self._figures(load)
        expected = expected or {}
        for name in (*audit.MUST_BE_ZERO, *(name for name in expected if name not in audit.MUST_BE_ZERO)):
            wanted = expected.get(name, 0)
            self.must(found[name] == wanted, f"{name}: {found[name]}" + (f", not {wanted}" if wanted else ""))
        self.must(found["confirmed"] == found["attempted"], "clients did not get all confirmations")
        self.violations += load.problems
        return self._judged(self._line(load, found))

    def finish_embedded(self) -> dict[str, Any]:
        """The line of a scenario that has had embedded servers only. Raises Broken with it if a promise was broken."""
        for server in self._embedded:
            self._must_be_quiet(server)
        return self._judged({"scenario": self.scenario, **self.extra})

    def _figures(self, load: Load) -> dict[str, int]:
        return audit.figures(load, self.records(), self.runs(), self.unfit)

    def _line(self, load: Load, found: dict[str, int]) -> dict[str, Any]:
        return {"scenario": self.scenario, **found, "refusals": dict(load.refusals), **self.extra}

    def _judged(self, line: dict[str, Any]) -> dict[str, Any]:
        line |= {"seconds": round(time.monotonic() - self._began, 1), "violations": self.violations}
        if self.violations:
            raise Broken(line)
        return line

    def _check_memory(self) -> None:
        # only servers that were not replaced
        grown = [_mebibytes(server) - before for server, before in self._rss.items() if server.returncode is None]
        if grown:
            self.extra["server_grew_mib"] = round(max(grown), 1)
            self.must(max(grown) < MAX_GROWTH, f"a server grew by {max(grown):.0f} MiB")

    def _check_left_overs(self) -> None:
        try:
            eventually(lambda: not self.count("held"), 30, "no worker holds anything")
        except AssertionError as e:
            self.violations.append(str(e))

    def _end_daemons(self) -> None:
        alive = [daemon for daemon in self.cluster.daemons if daemon not in self._ended]
        for daemon in alive:
            self.must(daemon.returncode is None, f"a daemon ended by itself: {daemon.output()[-1000:]}")
            # a daemon that has just started has no signal handler yet
            daemon.wait_for("taskd ")
            daemon.send(signal.SIGTERM)
        for daemon in alive:
            try:
                status = daemon.wait(END_SECONDS / 2)
            except AssertionError as e:
                self.violations.append(f"a daemon did not drain: {e}")
            else:
                self.must(status == 0, f"a daemon ended with {status}: {daemon.output()[-1000:]}")
        for daemon in self.cluster.daemons:
            self._must_be_quiet(daemon)

    def _must_be_quiet(self, daemon: Daemon) -> None:
        output = daemon.output()
        at = min((output.find(word) for word in self._bad_words if word in output), default=-1)
        self.must(at < 0, f"a daemon printed: {output[max(0, at - 300) : at + 1500]}")

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for load in self._loads:
                if not load.done:
                    load.abandon()
            if isinstance(error, AssertionError) and not isinstance(error, Broken) and self._loads:
                # a wait timed out: report the figures all the same
                self.violations.append(str(error))
                self._judged(self._line(self._loads[0], self._figures(self._loads[0])))
        finally:
            self.cluster.close()
            for server in self._embedded:
                server.dispose()
            self.postgres.drop_database(self.database)


def _mebibytes(daemon: Daemon) -> float:
    return float(psutil.Process(daemon.pid).memory_info().rss) / 2**20
