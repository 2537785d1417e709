"""Shared by the benchmarks: private services, real daemons, CPU time of processes, figures as lines of JSON."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.daemons import TWISTD, Daemon, LineClient
from tests.processes import Process, clean_environment, eventually, free_port
from tests.programs import how_to_get, missing
from tests.services import HOST, ROOT, Postgres, RabbitMQ, unique

__all__ = ["HOST", "Failed", "Process", "eventually"]

START_SECONDS = 60.0
PASSWORD = "a password for benchmarks"

Figures = dict[str, Any]


class Failed(Exception):
    """The run has no valid figures. The message is one line."""


def run_benchmark(measure: Callable[[contextlib.ExitStack], object]) -> int:
    """Call ``measure`` with a stack of what must stop in any case. Returns the exit status: 1, with one line on
    standard error, if the run has no valid figures."""
    try:
        with contextlib.ExitStack() as stack:
            measure(stack)
    except (Failed, AssertionError) as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    return 0


# -- CPU time


def tree_seconds(pid: int) -> float:
    """User and system seconds of a process and its descendants, including those that ended and were waited for."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                t = process.cpu_times()
                # The times of a parent include those of descendants that have ended and were waited for.
                total += t.user + t.system + t.children_user + t.children_system
    return total


class Meter:
    """Measures the CPU seconds of groups of process trees, from its creation on."""

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        self._groups = groups
        self._before = self._read()
        self._busy = _busy_seconds()
        self._start = time.monotonic()

    def used(self) -> dict[str, float]:
        """CPU seconds of each group since the start."""
        return {name: now - self._before[name] for name, now in self._read().items()}

    def others(self, measured: float) -> float:
        """The share of the machine's CPU time since the start that was used beside the ``measured`` CPU seconds.

        With more than a tenth, the run says little about speed.
        """
        available = (time.monotonic() - self._start) * (psutil.cpu_count() or 1)
        return round(max(0.0, _busy_seconds() - self._busy - measured) / available, 3)

    def _read(self) -> dict[str, float]:
        return {name: sum(map(tree_seconds, pids)) for name, pids in self._groups.items()}


def _busy_seconds() -> float:
    """Busy seconds of all processors. Time taken by a hypervisor counts as busy."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def micros_a_task(used: Mapping[str, float], tasks: int) -> dict[str, float]:
    """CPU microseconds for each task by group, and their sum as ``total``."""
    each = {name: round(seconds / tasks * 1e6, 1) for name, seconds in used.items()}
    return each | {"total": round(sum(used.values()) / tasks * 1e6, 1)}


def listener(port: int) -> int:
    """The process id of the child of this process that listens on a port."""
    for child in psutil.Process().children():
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections(child)):
            return child.pid
    raise Failed(f"no process of this run listens on port {port}")


def connections(process: psutil.Process) -> Sequence[Any]:
    """The TCP connections of a process as psutil sees them."""
    # Before psutil 6 the method had another name.
    method = getattr(process, "net_connections", None) or process.connections
    return list(method(kind="tcp"))


# -- figures


def quantile(values: Sequence[float], q: float) -> float:
    """The quantile ``q`` of the values by the nearest-rank method."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def milliseconds(seconds: Sequence[float], prefix: str = "") -> Figures:
    """Median and 99th percentile in milliseconds."""
    return {
        f"{prefix}p50_ms": round(quantile(seconds, 0.5) * 1e3, 2),
        f"{prefix}p99_ms": round(quantile(seconds, 0.99) * 1e3, 2),
    }


def medians(rows: Sequence[Figures]) -> Figures:
    """The median of each figure over several runs. Values that are not numbers come from the first run."""
    found: Figures = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows if name in row]
        if isinstance(first, Mapping):
            found[name] = medians(values)
        elif isinstance(first, int | float) and not isinstance(first, bool):
            middle = round(statistics.median(values), 3)
            found[name] = int(middle) if isinstance(first, int) and middle == int(middle) else middle
        else:
            found[name] = first
    return found


def emit(row: Figures) -> None:
    """Print one line of JSON and flush it."""
    print(json.dumps(row), flush=True)


def emit_all(rows: Sequence[Figures]) -> None:
    """Print the line of medians, if there were several runs."""
    if len(rows) > 1:
        emit({"median_of": len(rows), **medians(rows)})


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder."""
    with tempfile.TemporaryDirectory(prefix="taskd-bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


# -- services and daemons


class Services:
    """PostgreSQL and RabbitMQ for this run alone, with their default settings: durable and not tuned."""

    def __init__(self) -> None:
        absent = [name for name in missing() if name in ("postgres", "rabbitmq")]
        if absent:
            raise Failed(f"not installed: {', '.join(absent)}; {how_to_get(absent)}")
        self.postgres = Postgres()
        self.rabbitmq = RabbitMQ()
        self.rabbitmq.launch()
        self.postgres.start()
        self.rabbitmq.wait_ready()
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            if self.postgres.query(f"SHOW {setting}") != [("on",)]:
                raise Failed(f"PostgreSQL runs with {setting} off: its figures would mean nothing")
        self.pids = {"postgres": [listener(self.postgres.port)], "rabbitmq": [listener(self.rabbitmq.port)]}

    @classmethod
    def start(cls, stack: contextlib.ExitStack) -> Services:
        """Start both; the stack stops them. Raises Failed if one is not installed."""
        services = cls()
        stack.callback(services.stop)
        return services

    def stop(self) -> None:
        """Stop both."""
        self.rabbitmq.kill()
        self.postgres.stop("immediate")


class Deployment:
    """taskd as it is deployed: servers and workers with their own database and queue, or one embedded server.

    If ``profiles`` is given, cProfile writes the statistics of each daemon into this folder. It slows the daemons down
    by half or more.
    """

    def __init__(
        self,
        place: Path,
        services: Services | None,
        *,
        servers: int = 1,
        workers: int = 1,
        slots: int | None = None,
        profiles: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.place = place
        self.services = services
        self.data = place / "data"
        self.ports = [free_port() for _ in range(servers)]
        self._workers = workers if services else 0
        self._profiles = profiles
        self._servers: list[Daemon] = []
        self._worker_daemons: list[Daemon] = []
        self.database = ""
        # limits that the loads would meet; the quotas are counted all the same
        self._env = {"TASKD_REGISTRATIONS_PER_HOUR": "0", "TASKD_QUOTA_OPEN": "1000000000"}
        self._env |= {"TASKD_QUOTA_DAILY": "1000000000", "TASKD_USER_CONNECTIONS": "100000"}
        self._env |= {"TASKD_DATA": str(self.data)} | ({"TASKD_SLOTS": str(slots)} if slots else {})
        self._env |= env or {}

    @property
    def daemons(self) -> list[Daemon]:
        """All servers and workers."""
        return [*self._servers, *self._worker_daemons]

    @property
    def pids(self) -> dict[str, list[int]]:
        """The process ids of the daemons and the services by role."""
        daemons = {"server": [d.pid for d in self._servers]}
        if self.services is None:
            return daemons
        return daemons | {"worker": [d.pid for d in self._worker_daemons]} | self.services.pids

    def settings(self) -> Mapping[str, str]:
        """The variables of the daemons. The database is there; its tables may not be."""
        if self.services is not None and not self.database:
            self.database = self.services.postgres.create_database()
            self._env |= self.services.postgres.env(self.database)
            self._env |= self.services.rabbitmq.env(unique("bench"))
        return self._env

    def start(self) -> None:
        """Start everything and wait until the servers answer."""
        self.settings()
        for port in self.ports:
            self._servers.append(self._daemon("taskserver", "--listen", f"tcp:{port}:interface={HOST}"))
            # One after the other, as the first one creates the tables.
            self._wait_for(self._servers[-1], port)
        self._worker_daemons = [self._daemon("taskworker") for _ in range(self._workers)]

    def stop(self) -> None:
        """Send SIGTERM and wait until all have drained. One that does not is killed and named on standard error."""
        for daemon in reversed(self.daemons):
            try:
                status = daemon.terminate()
            except AssertionError as e:
                print(f"bench: killed a daemon that did not stop: {e}", file=sys.stderr)
            else:
                if status != 0:
                    print(f"bench: a daemon ended with {status}: {daemon.output()[-2000:]}", file=sys.stderr)
        if self.services is not None and self.database:
            self.services.postgres.drop_database(self.database)

    def check_alive(self) -> None:
        """Raise Failed if a daemon has ended."""
        for daemon in self.daemons:
            if daemon.returncode is not None:
                raise Failed(f"a daemon ended with {daemon.returncode}: {daemon.output()[-2000:]}")

    def client(self, username: str, server: int = 0, watch: bool = False) -> tuple[LineClient, int]:
        """A connection logged in as a user, who is registered on first use, and the user's id."""
        client = LineClient(self.ports[server], HOST, START_SECONDS)
        done = client.request("register", username=username, password=PASSWORD)
        if not done["ok"] and done["status"] != "in_use":
            raise Failed(f"no registration: {done}")
        login = client.request("login", username=username, password=PASSWORD)
        if not login["ok"]:
            raise Failed(f"no login: {login}")
        if watch and not (answer := client.request("watch"))["ok"]:
            raise Failed(f"no watch: {answer}")
        return client, login["user_id"]

    def _daemon(self, command: str, *arguments: str) -> Daemon:
        twistd = Path(sys.executable).with_name(TWISTD[0])
        options = [*TWISTD[1:]]
        if self._profiles is not None:
            file = self._profiles.resolve() / f"{command}-{len(self.daemons)}.prof"
            options += [f"--profile={file}", "--savestats", "--profiler=cprofile"]
        return Daemon.run([str(twistd), *options, command, *arguments], self._env, cwd=self.place)

    def _wait_for(self, daemon: Daemon, port: int) -> None:
        def answers() -> bool:
            self.check_alive()
            try:
                with LineClient(port, HOST, START_SECONDS) as client:
                    # This request reads the store, so its reply proves that the store can be reached.
                    login = client.request("login", username="nobody", password="at all")
                    return bool(login["status"] == "wrong_credentials")
            except OSError:
                return False

        try:
            eventually(answers, START_SECONDS)
        except AssertionError:
            raise Failed(f"the server on port {port} does not answer: {daemon.output()[-2000:]}") from None


def time_tasks(client: LineClient, count: int) -> list[float]:
    """Submit no-op tasks, each after the end of the one before. Returns the seconds until each had ended."""
    took = []
    for _ in range(count):
        began = time.monotonic()
        task_id = client.request("new_task", task="t", payload={"seconds": 0})["task_id"]
        if not client.request("wait", task_ids=[task_id])["done"]:
            raise Failed("a new task did not end")
        took.append(time.monotonic() - began)
    return took


def run_python(place: Path, name: str, *command: str | int, env: Mapping[str, str] | None = None) -> Process:
    """Run ``python COMMAND`` in the root of the project, with its output in ``place/name``. ``env`` has variables that
    configure taskd."""
    line = [sys.executable, *map(str, command)]
    return Process(line, place / name, env=clean_environment(PYTHONUNBUFFERED="1", **(env or {})), cwd=ROOT)


def wait_ready(processes: Sequence[Process], limit: float = START_SECONDS) -> None:
    """Wait until each has printed the line ``ready``. Raises Failed if one ends before."""

    def ready() -> bool:
        for process in processes:
            if process.returncode is not None:
                raise Failed(f"a process of the benchmark ended too early: {process.output()[-2000:]}")
        return all("ready\n" in process.output() for process in processes)

    eventually(ready, limit, "the benchmark's own processes are ready")


def report(process: Process) -> Any:
    """The JSON in the last line that a process printed, or None if it has not printed it yet."""
    output = process.output()
    last = output[:-1].rpartition("\n")[2]
    return json.loads(last) if last.startswith("{") and output.endswith("}\n") else None


def wait_report(process: Process, limit: float) -> Any:
    """Wait for the JSON that a process prints. Raises Failed if the process fails."""

    def reported() -> bool:
        if process.returncode not in (None, 0):
            raise Failed(f"a process of the benchmark failed: {process.output()[-2000:]}")
        return report(process) is not None

    eventually(reported, limit, "a process of the benchmark reports")
    return report(process)


def wait_until(condition: Callable[[], bool], limit: float, what: str, pause: float = 0.01) -> float:
    """Poll until the condition is true. Returns the monotonic time then. Raises Failed after ``limit`` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"not within {limit:g} s: {what}")
        time.sleep(pause)
    return time.monotonic()
