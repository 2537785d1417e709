"""What many connections cost, and what strangers who flood a server do to its users: ``python -m bench.connections``.

Prints one line of JSON for each case. The exit status is 1 if a bound is missed.

- ``idle``: connections that are logged in and silent, each with a session of its own. ``kib_each``: the growth of the
  server's memory for each; ``cpu_percent``: percent of a core that they cost more than none; ``connect_s``: seconds
  until all were logged in.
- ``logins``: honest users log in at once, as taskclient does it. None may be refused for good, and ``last_s`` may be
  1.3 times ``ideal_s`` at most, which is what the hashes take if they use all threads all the time.
- ``flood``: many addresses guess passwords and register as fast as they can, over as many connections as a server lets
  each have. ``tries``: whose password was ``wrong``, that ``registered``, that a limit has ``refused``, and whose
  connection was ``cut`` without an answer. A device that is known logs in again and again: ``known_s``, each under 2
  seconds. ``connecting_s`` is the longest of its logins that began before all attackers had connected, and has no
  bound: more connect in that second than the kernel holds for the server, and who finds no place tries again after a
  second. Users come from new addresses with the right passwords: ``new_s`` may be 1.5 times ``ideal_s`` at most, a
  hash for each address.
- ``readers``: clients watch but never read, while tasks of theirs with large texts and results are created and end.
  First each is a user of its own, then twice as many are of one user. ``readers_mib``: how much more the server's
  memory grows than by the same tasks ``without`` readers; the settings bound it. ``latency``: how long another user's
  ``new_task`` takes meanwhile. ``still_connected``: how many of the connections the server has not closed.

``hash_s`` is the time of a hash while as many are computed at once as the server has threads, and ``hash_alone_s`` that
of one alone: means of before and after the load, by the benchmark itself. On a machine without other work they differ
little. Memory is the resident size of the server's process.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bcrypt
import psutil

from bench.accounts import token
from bench.connection_clients import IDLERS, NEWCOMERS, READERS
from bench.harness import (
    HOST,
    PASSWORD,
    START_SECONDS,
    Deployment,
    Failed,
    Figures,
    Meter,
    Process,
    Services,
    connections,
    emit,
    folder,
    milliseconds,
    quantile,
    run_benchmark,
    run_python,
    wait_ready,
    wait_report,
    wait_until,
)
from taskd import __version__
from taskd.api.hash_queue import default_threads
from taskd.config import DEFAULT_LIMITS
from taskd.model.limits import LISTED_RESULT_BYTES, MAX_TASK_CHARS
from taskd.model.quotas import MIB
from tests.daemons import LineClient

KIB_EACH = 9.0
CPU_PERCENT = 1.0
LAST_RATIO = 1.3
NEW_RATIO = 1.5
KNOWN_SECONDS = 2.0
"""The bounds."""

EACH = 100
"""Idle connections of a user, and sessions: a user has no more."""

PER_PROCESS = 5000
"""Connections of one client process."""

LOGINS_OF_USER = 5
LOGINS_OF_ADDRESS = 40
HASHES = 7
REGISTER_EVERY = 8
"""One of so many connections of an attacker registers."""

KNOWN_PAUSE = 1.0
"""Seconds between the logins of the known device."""

FEEDERS = 50
"""Connections that create tasks for those that do not read. Of one user, there may be no more than 256 in all."""

END_SECONDS = 5.0

UNREAD_OVERHEAD = 1.5
"""What a byte that waits costs at most, with the buffers that the settings do not count."""

LARGE = {
    "task": "€" * MAX_TASK_CHARS,
    "kind": "bench.large",
    "payload": {"bytes": LISTED_RESULT_BYTES - 2},
}


class Server:
    """The deployment of one case, with accounts, and what its server costs."""

    def __init__(self, options: argparse.Namespace, services: Services | None, stack: contextlib.ExitStack) -> None:
        self.place: Path = stack.enter_context(folder())
        self.limit: float = options.limit
        self._rounds: int = options.rounds
        self._stack = stack
        self.threads = default_threads()
        env = {
            "TASKD_BCRYPT_ROUNDS": str(options.rounds),
            "TASKD_HANDLERS": "bench.connection_handlers",
            # the limits are what is measured
            "TASKD_REGISTRATIONS_PER_HOUR": "",
            "TASKD_USER_CONNECTIONS": "",
        }
        self._deployment = Deployment(self.place, services, env=env)
        stack.callback(self._deployment.stop)

    def start(self, users: int, sessions: int) -> None:
        """Make accounts, and start the server."""
        arguments = users, sessions, self._rounds
        maker = run_python(self.place, "accounts", "-m", "bench.accounts", *arguments, env=self._deployment.settings())
        if maker.wait(self.limit):
            raise Failed(f"no accounts: {maker.output()[-2000:]}")
        self._deployment.start()
        self.process = psutil.Process(self._deployment.daemons[0].pid)

    @property
    def port(self) -> int:
        return self._deployment.ports[0]

    @property
    def pids(self) -> dict[str, list[int]]:
        """The process ids by role."""
        return self._deployment.pids

    def clients(self, role: str, **job: Any) -> Process:
        """A process with clients of this role. It is ended with the case."""
        name = f"{role}-{len(list(self.place.glob(f'{role}-*')))}"
        line = "-m", "bench.connection_clients", role, json.dumps({"port": self.port, **job})
        process = run_python(self.place, name, *line)
        self._stack.callback(process.dispose)
        return process

    def connect(self, token: str) -> LineClient:
        """A connection logged in with the token of a session. It is closed with the case."""
        client = self._stack.enter_context(LineClient(self.port, HOST, START_SECONDS))
        if not (login := client.request("login", token=token))["ok"]:
            raise Failed(f"no login: {login}")
        return client

    def connected(self, group: int) -> int:
        """How many connections there are from addresses of this group."""
        found = [c for c in connections(self.process) if c.raddr and c.status == psutil.CONN_ESTABLISHED]
        return sum(c.raddr.ip.startswith(f"127.{group}.") for c in found)

    def memory(self) -> int:
        """Bytes."""
        return int(self.process.memory_info().rss)

    def check(self) -> None:
        """Raise Failed if a daemon has ended."""
        self._deployment.check_alive()


class Load:
    """What a load costs the server, from the creation of this object on. ``look`` must be called now and then."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = self._peak = server.memory()
        self._meter = Meter(server.pids)
        self._began = time.monotonic()

    def look(self) -> None:
        """Notice a new peak of the memory."""
        self._peak = max(self._peak, self._server.memory())

    def figures(self) -> Figures:
        """The figures so far. Clients count as others."""
        used, took = self._meter.used(), time.monotonic() - self._began
        return {
            "growth_mib": round((self._peak - self._before) / MIB, 1),
            "server_cpu_percent": round(100 * used["server"] / took, 1),
            "others_cpu": self._meter.others(sum(used.values())),
        }


class Hashes:
    """The time of a hash on this machine as it is now, by several measurements; one at the beginning."""

    def __init__(self, rounds: int, threads: int) -> None:
        self._hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(rounds))
        self._threads = threads
        self._alone: list[float] = []
        self._seconds: list[float] = []
        self.measure()

    def measure(self) -> None:
        """Measure once more."""
        self._alone.append(self._median(1))
        self._seconds.append(self._median(self._threads))

    @property
    def seconds(self) -> float:
        """The mean time of a hash among as many as there are threads."""
        return statistics.mean(self._seconds)

    def figures(self) -> Figures:
        """The means."""
        return {
            "threads": self._threads,
            "hash_s": round(self.seconds, 3),
            "hash_alone_s": round(statistics.mean(self._alone), 3),
        }

    def _median(self, at_once: int) -> float:
        with ThreadPoolExecutor(at_once) as pool:
            checks = [pool.submit(self._check) for _ in range(HASHES * at_once)]
            return quantile([each.result() for each in checks], 0.5)

    def _check(self) -> float:
        began = time.monotonic()
        bcrypt.checkpw(PASSWORD.encode(), self._hashed)
        return time.monotonic() - began


def idle(server: Server, options: argparse.Namespace) -> Figures:
    """Silent connections."""
    count = options.connections
    users = -(-count // EACH)
    server.start(users, min(count, EACH))
    before, cost = server.memory(), _cost(server, options.seconds)
    began = time.monotonic()
    jobs = _shares(users, -(-users * EACH // PER_PROCESS))
    left = count
    processes = []
    for first, share in jobs:
        some = min(left, share * EACH)
        left -= some
        processes.append(
            server.clients("resume", group=IDLERS, connections=some, users=share, sessions=EACH, first_user=first)
        )
    for process in processes:
        wait_report(process, server.limit)
    connect_s = time.monotonic() - began
    time.sleep(options.seconds)
    grown = server.memory() - before
    later = _cost(server, options.seconds)
    _all_run(processes)
    return {
        "connections": count,
        "kib_each": round(grown / count / 1024, 2),
        "cpu_percent": round(later["cpu_percent"] - cost["cpu_percent"], 2),
        "without": cost,
        "with": later,
        "connect_s": round(connect_s, 1),
    }


def _cost(server: Server, seconds: float) -> Figures:
    meter, began = Meter(server.pids), time.monotonic()
    time.sleep(seconds)
    used, took = meter.used(), time.monotonic() - began
    return {"cpu_percent": round(100 * used["server"] / took, 2), "others_cpu": meter.others(sum(used.values()))}


def logins(server: Server, options: argparse.Namespace) -> Figures:
    """Honest logins at once."""
    count = options.logins
    users, addresses = -(-count // LOGINS_OF_USER), -(-count // LOGINS_OF_ADDRESS)
    server.start(users, 0)
    hashes = Hashes(options.rounds, server.threads)
    load = Load(server)
    limit = _patience(server, count * hashes.seconds / server.threads)
    job = {"group": NEWCOMERS, "logins": count, "users": users, "addresses": addresses, "limit": limit}
    found = wait_report(server.clients("login", **job), limit + START_SECONDS)
    figures, seconds = load.figures(), found["seconds"]
    hashes.measure()
    ideal = count * hashes.seconds / server.threads
    return {
        "logins": count,
        "refused": found["refused"],
        "pauses": found["pauses"],
        **hashes.figures(),
        "ideal_s": round(ideal, 1),
        "last_s": round(max(seconds), 1) if seconds else None,
        "ratio": round(max(seconds) / ideal, 2) if seconds else None,
    } | figures


def flood(server: Server, options: argparse.Namespace) -> Figures:
    """Attackers, a known device and newcomers."""
    addresses, newcomers = options.attackers, options.newcomers
    server.start(newcomers + 1, 0)
    hashes = Hashes(options.rounds, server.threads)
    device = server.clients("known", user=newcomers, pause=KNOWN_PAUSE)
    wait_ready([device])
    load = Load(server)
    each = DEFAULT_LIMITS.strangers
    attackers = [
        server.clients("attack", addresses=share, connections=each, register_every=REGISTER_EVERY, first=first)
        for first, share in _shares(addresses, -(-addresses * each // PER_PROCESS))
    ]
    wait_ready(attackers, server.limit)
    connected = time.monotonic()
    time.sleep(options.seconds)
    hashed = addresses + newcomers + 1
    limit = _patience(server, hashed * hashes.seconds / server.threads)
    job = {"group": NEWCOMERS, "logins": newcomers, "users": newcomers, "addresses": newcomers, "limit": limit}
    found = _await(server.clients("login", **job), load, limit + START_SECONDS)
    device.send(signal.SIGTERM)
    again = _await(device, load, server.limit)
    figures = load.figures()
    tries: Counter[str] = Counter()
    for process in attackers:
        process.send(signal.SIGTERM)
    for process in attackers:
        tries.update(wait_report(process, server.limit)["tries"])
    for process in attackers:
        process.wait(10)
    hashes.measure()
    ideal = hashed * hashes.seconds / server.threads
    new = found["seconds"]
    return {
        "attackers": addresses,
        "connections": addresses * each,
        "newcomers": newcomers,
        **hashes.figures(),
        "known_s": _spread([seconds for began, seconds in again["seconds"] if began >= connected]),
        "connecting_s": _spread([seconds for began, seconds in again["seconds"] if began < connected]),
        "known_refused": again["refused"],
        "new_s": _spread(new),
        "new_refused": found["refused"],
        "ideal_s": round(ideal, 1),
        "ratio": round(max(new) / ideal, 2) if new else None,
        "tries": dict(sorted(tries.items())),
    } | figures


def readers(server: Server, options: argparse.Namespace) -> Figures:
    """Clients of as many users that do not read."""
    users = options.readers
    return _watch(server, options, users, users) | {"limit_mib": DEFAULT_LIMITS.unread // MIB}


def readers_of_one(server: Server, options: argparse.Namespace) -> Figures:
    """Twice as many clients of one user."""
    return _watch(server, options, 2 * options.readers, 1) | {"limit_mib": DEFAULT_LIMITS.user_unread // MIB}


def _watch(server: Server, options: argparse.Namespace, readers: int, users: int) -> Figures:
    server.start(users + 1, 1)
    other = server.connect(token(users, 0))
    tasks = options.tasks * options.readers
    load = Load(server)
    latency = _feed(server, other, load, tasks, users)
    without = {"latency": _latency(latency), "growth_mib": load.figures()["growth_mib"]}
    job = {"group": READERS, "connections": readers, "users": users, "sessions": 1, "watch": True}
    watchers = server.clients("resume", **job)
    wait_report(watchers, server.limit)
    latency = _feed(server, other, load, tasks, users)
    left = server.connected(READERS)
    watchers.send(signal.SIGTERM)
    row: Figures = {"readers": readers, "users": users, "tasks": tasks, "still_connected": left, "without": without}
    row |= {"latency": _latency(latency)} | load.figures()
    return row | {"readers_mib": round(row["growth_mib"] - without["growth_mib"], 1)}


def _feed(server: Server, other: LineClient, load: Load, tasks: int, users: int) -> list[float]:
    """Let users create large tasks. Returns how long another user's submissions take until these tasks have ended."""
    feeding = users if users > 1 else FEEDERS
    feeders = server.clients("feed", users=users, feeders=feeding, tasks=-(-tasks // feeding), request=LARGE)
    took: list[float] = []
    deadline, end = time.monotonic() + server.limit, float("inf")
    while time.monotonic() < end:
        took.append(_submit(other))
        load.look()
        server.check()
        if feeders.returncode is not None:
            # all are created, and end soon
            wait_report(feeders, 1)
            end = min(end, time.monotonic() + END_SECONDS)
        elif time.monotonic() > deadline:
            raise Failed(f"not within {server.limit:g} s: all tasks are created")
        time.sleep(0.02)
    return took


def _submit(client: LineClient) -> float:
    began = time.monotonic()
    if not (reply := client.request("new_task", task="t", payload={"seconds": 0}))["ok"]:
        raise Failed(f"not created: {reply}")
    return time.monotonic() - began


def _latency(seconds: Sequence[float]) -> Figures:
    return milliseconds(seconds) | {"max_ms": round(max(seconds) * 1e3, 1)}


def _spread(seconds: Sequence[float]) -> Figures:
    if not seconds:
        return {"number": 0}
    return {
        "number": len(seconds),
        "p50": round(quantile(seconds, 0.5), 2),
        "max": round(max(seconds), 2),
    }


def _shares(count: int, processes: int) -> list[tuple[int, int]]:
    """The first and the number of those of each process."""
    bounds = [count * n // processes for n in range(processes + 1)]
    return [(first, end - first) for first, end in itertools.pairwise(bounds)]


def _await(process: Process, load: Load, limit: float) -> Any:
    """What a process reports. Meanwhile, the memory of the server is looked at."""

    def ended() -> bool:
        load.look()
        return process.returncode is not None

    wait_until(ended, limit, "clients have logged in", pause=0.1)
    return wait_report(process, 1)


def _patience(server: Server, ideal: float) -> float:
    """Seconds after which logins are given up that take ``ideal`` seconds at best."""
    return max(server.limit, 2 * ideal)


def _all_run(processes: Sequence[Process]) -> None:
    for process in processes:
        if process.returncode is not None:
            raise Failed(f"a process of the benchmark failed: {process.output()[-2000:]}")


# -- bounds


def missed(row: Mapping[str, Any]) -> list[str]:
    """What a line of figures says about missed bounds, a short text for each."""
    case = row["case"]
    if case == "idle":
        return [*_above(row, "kib_each", KIB_EACH), *_above(row, "cpu_percent", CPU_PERCENT)]
    if case == "logins":
        return [*_refused(row, "refused"), *_above(row, "ratio", LAST_RATIO)]
    if case == "flood":
        return [
            *_refused(row, "known_refused"),
            *_refused(row, "new_refused"),
            *_above(row["known_s"], "max", KNOWN_SECONDS, "known_s"),
            *_above(row, "ratio", NEW_RATIO),
        ]
    return _above(row, "readers_mib", row["limit_mib"] * UNREAD_OVERHEAD)


def _refused(row: Mapping[str, Any], name: str) -> list[str]:
    return [f"{name}: {row[name]}"] if row[name] else []


def _above(row: Mapping[str, Any], name: str, bound: float, shown: str = "") -> list[str]:
    value = row.get(name)
    if value is None:
        return [f"no {shown or name}"]
    return [f"{shown or name} is {value:g}, above {bound:g}"] if value > bound else []


# -- the command line

CASES: dict[str, Sequence[Callable[[Server, argparse.Namespace], Figures]]] = {
    "idle": (idle,),
    "logins": (logins,),
    "flood": (flood,),
    "readers": (readers, readers_of_one),
}
"""What is measured, each on a server of its own: a process keeps memory that it has freed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the options say. Returns the exit status."""
    options = _options(arguments)
    return run_benchmark(lambda stack: _play_cases(options, stack))


def _play_cases(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    _check_files(options)
    services = None if options.embedded else Services.start(stack)
    mode = "embedded" if services is None else "distributed"
    found: list[str] = []
    for case in options.cases:
        for measure in CASES[case]:
            with contextlib.ExitStack() as inner:
                server = Server(options, services, inner)
                row = {"system": "taskd", "version": __version__, "mode": mode, "case": case}
                row |= measure(server, options)
                server.check()
            emit(row)
            found += [f"{case}: {text}" for text in missed(row)]
    if found:
        raise Failed("; ".join(found))


def _check_files(options: argparse.Namespace) -> None:
    """Raises Failed if a server cannot have so many connections here."""
    needed = {"idle": options.connections, "flood": options.attackers * DEFAULT_LIMITS.strangers}
    most = max((needed.get(case, 0) for case in options.cases), default=0) + 1000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and most > hard:
        raise Failed(
            f"the limit of open files is {hard}, and {most} are needed: raise it (ulimit -Hn), or measure less"
        )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.connections", description=(__doc__ or "").partition(":")[0])
    add = parser.add_argument
    add("cases", nargs="*", default=list(CASES), metavar="CASE", help=f"{', '.join(CASES)}; all of them")
    add("--connections", type=int, default=10_000, metavar="N", help="idle connections (10000)")
    add("--logins", type=int, default=1000, metavar="N", help="honest logins at once (1000)")
    add("--attackers", type=int, default=200, metavar="N", help="addresses that attack (200)")
    add("--newcomers", type=int, default=20, metavar="N", help="users from new addresses (20)")
    add("--readers", type=int, default=100, metavar="N", help="clients that do not read (100)")
    add("--tasks", type=int, default=150, metavar="N", help="large tasks of each of them (150)")
    add("--rounds", type=int, default=12, metavar="N", help="cost of a hash (12)")
    add("--seconds", type=float, default=20.0, metavar="S", help="for an idle server, and until a flood has begun (20)")
    add("--embedded", action="store_true", help="one server on SQLite with its own worker")
    add("--limit", type=float, default=300.0, metavar="SECONDS", help="for each wait (300)")
    options = parser.parse_args(arguments)
    if unknown := [case for case in options.cases if case not in CASES]:
        parser.error(f"there is no case {unknown[0]}: choose from {', '.join(CASES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
