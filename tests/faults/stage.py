"""Where a scenario plays: services that may be broken, daemons over them, and how it ends."""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil
import psycopg2

from taskd.model.tasks import DEFAULT_KIND, Route
from tests import services
from tests.cluster import READY, TAKES_TASKS, Cluster
from tests.daemons import Daemon
from tests.faults import audit
from tests.faults.load import Load, Spec
from tests.faults.worker import KIND, RUNS, Run, read_runs
from tests.processes import eventually

BACK_WITHIN = 10.0
"""Seconds after which taskd must be at work again once PostgreSQL or RabbitMQ are back."""

WAIT_BACK = 3 * BACK_WITHIN

AGAIN_WITHIN = 5.0
"""Seconds within which the tasks of a killed worker must be running again."""

MAX_GROWTH = 50.0
"""MiB by which a server may grow."""

END_SECONDS = 90.0
"""What the tasks get to end when no more is going wrong, and twice what daemons get to drain."""

ATTEMPTS = 50
"""Of the tasks of a scenario that kills their workers: that they fail for having been killed too often is no defect."""

BAD_WORDS = ("Traceback", "was never awaited", "Unhandled")


class Broken(AssertionError):
    """A promise was broken: which, says the ``line`` of the scenario."""

    def __init__(self, line: dict[str, Any]) -> None:
        super().__init__(line)
        self.line = line


class Services(NamedTuple):
    """A PostgreSQL with fsync and a RabbitMQ, for these scenarios only."""

    postgres: services.Postgres
    rabbitmq: services.RabbitMQ

    def stop(self) -> None:
        """End both."""
        self.rabbitmq.kill()
        self.postgres.stop("immediate")


@functools.cache
def own_services() -> Services:
    """Started on first use; they end with this process."""
    found = Services(services.Postgres(), services.RabbitMQ())
    found.rabbitmq.launch()
    found.postgres.start()
    found.rabbitmq.wait_ready()
    return found


class _Cluster(Cluster):
    """Its workers have the handlers of these scenarios."""

    def _run(self, command: str, options: Sequence[str], env: dict[str, str], folder: Path) -> Daemon:
        if command != "taskworker":
            return super()._run(command, options, env, folder)
        env["PYTHONPATH"] = str(services.ROOT)
        return Daemon.run([sys.executable, "-m", "tests.faults.worker", *options], env, cwd=folder)


class Stage:
    """A database, a queue and daemons of one scenario; as a context manager they end with the block.

    ``thorough``: look at the end for what is left over as well, which takes a while.
    """

    def __init__(self, scenario: str, folder: Path, own: Services, thorough: bool = False) -> None:
        self.scenario = scenario
        self.postgres = own.postgres
        self.rabbitmq = own.rabbitmq
        self.thorough = thorough
        self.servers: list[Daemon] = []
        self.workers: list[Daemon] = []
        self.violations: list[str] = []
        self.extra: dict[str, Any] = {}
        self._began = time.monotonic()
        self._database = self.postgres.create_database()
        self._runs = folder / "runs"
        self._ended: set[Daemon] = set()
        self._loads: list[Load] = []
        self._rss: dict[Daemon, float] = {}
        self.cluster = _Cluster(folder, self.postgres, self._database, self.rabbitmq, **{RUNS: str(self._runs)})

    # -- daemons

    def start(self, servers: int = 1, workers: int = 1, options: Sequence[str] = ("--slots", "50")) -> None:
        """Start daemons, wait until they work, and begin to watch what they do."""
        for _ in range(servers):
            self.servers.append(self.cluster.launch_server())
        for _ in range(workers):
            self.launch_worker(*options)
        self.await_ready()
        self.postgres.query(audit.TRIGGER, database=self._database)
        self._rss = {server: _mebibytes(server) for server in self.servers}

    def launch_worker(self, *options: str) -> Daemon:
        """One more worker, or one in place of one that ended."""
        worker = self.cluster.launch_worker(*(options or ("--slots", "50")))
        self.workers.append(worker)
        return worker

    def await_ready(self) -> None:
        """Wait until every daemon is at work."""
        for daemons, word in ((self.servers, READY), (self.workers, TAKES_TASKS)):
            for daemon in daemons:
                daemon.wait_for(word, 60)

    def replace_server(self, server: Daemon) -> None:
        """``kill -9`` of a server, and another one on its port."""
        place = self.servers.index(server)
        self.expect_end(server)
        server.kill()
        self.servers[place] = self.cluster.launch_server(self.cluster.ports[place])

    def kill_worker(self, worker: Daemon) -> audit.Killed:
        """``kill -9`` of a worker."""
        self.expect_end(worker)
        self.workers.remove(worker)
        killed = audit.Killed(worker.pid, time.time())
        worker.kill()
        return killed

    def expect_end(self, daemon: Daemon) -> None:
        """This daemon has ended, or will: as it should."""
        self._ended.add(daemon)

    # -- tasks

    def load(self, spec: Callable[[int], Spec], **options: Any) -> Load:
        """Clients that submit, begun."""
        load = Load(self.cluster.ports, spec, **options)
        self._loads.append(load)
        return load.start()

    def rows(self, sql: str) -> list[Any]:
        """What the database holds."""
        return self.cluster.rows(sql)

    def count(self, condition: str) -> int:
        """How many tasks there are of which this is true."""
        return int(self.rows(f"SELECT count(*) FROM tasks WHERE {condition}")[0][0])

    def runs(self) -> list[Run]:
        """What the handlers noted."""
        return read_runs(self._runs)

    # -- findings

    def must(self, true: object, otherwise: str) -> None:
        """A promise."""
        if not true:
            self.violations.append(otherwise)

    def await_back(self, load: Load, since: float) -> float:
        """Seconds since then until a task has been confirmed and one has ended, both anew; WAIT_BACK when in vain."""
        sql = f"SELECT min(at) FROM audit WHERE at > {since} AND new = 'completed'"
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
            eventually(both, WAIT_BACK, "taskd is back at work")
        except AssertionError:
            found.append(WAIT_BACK)
        self.must(found[0] <= BACK_WITHIN, f"not back at work in time: {found[0]:.1f} s or never")
        return found[0]

    def must_run_again(self, killed: Sequence[audit.Killed]) -> None:
        """What these had must have been running again in time."""
        changes, _ = audit.read(self.rows)
        seconds = audit.run_again(changes, killed)
        again = [each for each in seconds if each != float("inf")]
        slowest = again[-1] if again else 0.0
        self.extra |= {"ran_again": len(again), "slowest_again_s": round(slowest, 2)}
        self.must(slowest <= AGAIN_WITHIN, f"a task of a killed worker ran again after {slowest:.1f} s only")
        self.must(again == seconds, f"{len(seconds) - len(again)} tasks of killed workers never ran again")

    # -- the end

    def await_end(self, load: Load) -> None:
        """Let the clients end what they have begun, and wait until every task has ended."""
        load.stop()
        try:
            eventually(lambda: not self.count("finished_at IS NULL"), END_SECONDS, "all tasks have ended")
        except AssertionError:
            left = self.rows("SELECT state, count(*) FROM tasks WHERE finished_at IS NULL GROUP BY state")
            self.violations.append(f"not ended after {END_SECONDS:g} s: {left}")

    def finish(self, load: Load, expected: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Judge what has happened, once all has ended, and give the line of the scenario. ``expected`` are figures
        that are not 0 for good reason. Raises Broken with that line."""
        self.await_end(load)
        self._check_memory()
        if self.thorough:
            self._check_left_overs()
        self._end_daemons()
        found = self._figures(load)
        for name in audit.MUST_BE_ZERO:
            wanted = (expected or {}).get(name, 0)
            self.must(found[name] == wanted, f"{name}: {found[name]}" + (f", not {wanted}" if wanted else ""))
        self.must(found["confirmed"] == found["attempted"], "clients were left without a confirmation")
        self.violations += load.problems
        line = self._line(load, found)
        if self.violations:
            raise Broken(line)
        return line

    def _figures(self, load: Load) -> dict[str, int]:
        changes, rows = audit.read(self.rows)
        return audit.figures(load, changes, rows, self.runs())

    def _line(self, load: Load, found: dict[str, int]) -> dict[str, Any]:
        line = {"scenario": self.scenario, **found, "refusals": dict(load.refusals), **self.extra}
        return line | {"seconds": round(time.monotonic() - self._began, 1), "violations": self.violations}

    def _check_memory(self) -> None:
        # those that were not replaced
        grown = [_mebibytes(server) - before for server, before in self._rss.items() if server.returncode is None]
        if grown:
            self.extra["server_grew_mib"] = round(max(grown), 1)
            self.must(max(grown) < MAX_GROWTH, f"a server grew by {max(grown):.0f} MiB")

    def _check_left_overs(self) -> None:
        empty = "SELECT count(*) FROM outbox WHERE published_at IS NULL OR published_at <> 'infinity'"
        try:
            eventually(lambda: self.rows(empty) == [(0,)], 30, "the outbox is empty")
            eventually(self._queue_is_empty, 30, "the queue is empty")
        except AssertionError as e:
            self.violations.append(str(e))

    def _queue_is_empty(self) -> bool:
        counts = dict(line.split() for line in self.rabbitmq.ctl("list_queues", "name", "messages").splitlines())
        return all(counts.get(Route(self.cluster.queue, kind).name) == "0" for kind in (DEFAULT_KIND, KIND))

    def _end_daemons(self) -> None:
        alive = [daemon for daemon in self.cluster.daemons if daemon not in self._ended]
        for daemon in alive:
            self.must(daemon.returncode is None, f"a daemon ended by itself: {daemon.output()[-1000:]}")
            # one that has only just begun has no handler for the signal yet
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
            output = daemon.output()
            at = min((output.find(word) for word in BAD_WORDS if word in output), default=-1)
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
                # it waited for something in vain: what there is to be said of it all the same
                self.violations.append(str(error))
                raise Broken(self._line(self._loads[0], self._figures(self._loads[0]))) from error
        finally:
            self.cluster.close()
            self.postgres.drop_database(self._database)


def _mebibytes(daemon: Daemon) -> float:
    return float(psutil.Process(daemon.pid).memory_info().rss) / 2**20
