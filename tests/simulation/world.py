"""A game: its world is set up, played step by step, and checked at the end."""

from __future__ import annotations

import dataclasses
import gc
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from itertools import count
from types import MappingProxyType
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from taskd.events.watch_hub import Wait, Watch
from taskd.model.tokens import token_hash
from taskd.ports.accounts import NewSession
from taskd.server.line_connection import LineConnection
from tests.simulation import faults
from tests.simulation.broker import SimBroker
from tests.simulation.clients import Client, User
from tests.simulation.clock import START, SimClock
from tests.simulation.database import Database, at_once
from tests.simulation.holders import Holders
from tests.simulation.plan import Plan, Rates, draw
from tests.simulation.processes import SESSION_SECONDS, Process, ServerProcess, WorkerProcess
from tests.simulation.referee import (
    DRAIN_ENDS,
    EVERY_END,
    NO_ERROR,
    NOTHING_HELD,
    NOTHING_KEPT,
    ONE_REPLY,
    WATCH_COMPLETE,
    Referee,
    Violation,
)

END_SECONDS = 600.0
"""Seconds after the last fault within which everything must end, beside the tasks' own time. Tasks that kill their
worker do so one after the other, some seconds apart, until their attempts are spent."""

ATTEMPTS = 8
"""How often the longest task may run after the last fault, at most: five attempts that fail, and some that are lost."""

EFFECT_SECONDS = 5.0
"""Seconds after the last fault within which earlier calls may still take effect without an event."""

LEAVE_SECONDS = 15.0
"""Seconds within which a server must notice that all connections are closed, and end their requests."""

DRAIN_SECONDS = 40.0
"""Seconds within which all processes must drain at the end."""

LONG = 40.0
"""Seconds of a long game, and of a long task."""

SHOWN_EVENTS = 50
"""The number of log events that a failure shows."""

_IN_SETS = (Watch, Wait, LineConnection)
"""Classes whose objects taskd keeps in sets that it iterates over."""

Event = tuple[float, str, str, tuple[Any, ...]]


class Failed(AssertionError):
    """A game in which an invariant was violated."""

    def __init__(self, world: World, violation: Violation) -> None:
        self.seed = world.seed
        self.invariant = violation.invariant
        tail = "\n".join(world.lines(world.log[-SHOWN_EVENTS:]))
        super().__init__(
            f"seed {world.seed}, step {world.steps}: {violation}\n{tail}\n"
            f"Play it again: python -m tests.simulation --first {world.seed} --seeds 1 --verbose"
        )


class World:
    """The parts of one game, which ``seed`` alone determines."""

    def __init__(
        self,
        seed: int,
        log_line: Callable[[str], None] | None = None,
        kinds: tuple[str, ...] | None = None,
        changes: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.seed = seed
        self.steps = 0
        self.log: list[Event] = []
        self.clock = SimClock()
        self.violation: Violation | None = None
        self.closing = False
        self.over = False
        self._log_line = log_line
        self._streams: dict[tuple[str, ...], random.Random] = {}
        self._numbers = {"server": 0, "worker": 0}
        self._chaos = True
        self._faults_ended = self._late_effect = 0.0
        self._ended_processes: list[Process] = []
        self.plan: Plan = draw(self.stream("plan"))
        if kinds is not None:
            rates = self.plan.rates
            if seed % 2:
                # the store is calm, beside these faults
                rates = dataclasses.replace(rates, refused=0, ambiguous=0, straggling=0, slow_store=0, stale=0)
            self.plan = dataclasses.replace(self.plan, faults=kinds, longest_task=LONG, chaos=LONG, rates=rates)
        if changes:
            rates = dataclasses.replace(self.plan.rates, **changes.get("rates", {}))
            self.plan = dataclasses.replace(self.plan, **{**changes, "rates": rates})
        self.referee = Referee(self._violated, self.note, self.clock.seconds)
        self.holders = Holders(self, self.referee, self.clock.seconds)
        self.database = Database(self)
        self.broker = SimBroker(self)
        self.servers: list[ServerProcess] = []
        self.workers: list[WorkerProcess] = []
        self.clients = self._make_clients()

    def _make_clients(self) -> list[Client]:
        users = []
        for n in range(max(self.plan.clients) + 1):
            name, token = f"user{n}", f"token{n}"
            user_id = at_once(self.database.store.create_user(name, name, "")).id
            at_once(self.database.store.open_session(user_id, NewSession(token_hash(token), SESSION_SECONDS)))
            users.append(User(name, user_id, token))
        each = self.plan.tasks // len(self.plan.clients)
        return [Client(self, f"client{n}", users[user], each) for n, user in enumerate(self.plan.clients)]

    # -- shared by all parts

    def stream(self, *names: str) -> random.Random:
        """The random numbers for one purpose. They depend on the seed and the names only, not on what others draw."""
        found = self._streams.get(names)
        if found is None:
            found = self._streams[names] = random.Random(f"{self.seed}/{'/'.join(names)}")
        return found

    @property
    def rates(self) -> Rates | None:
        """The present rates of faults; None after the last fault."""
        return self.plan.rates if self._chaos else None

    def note(self, who: str, what: str, *detail: Any) -> None:
        """Write an event to the log."""
        event = (self.clock.rightNow, who, what, detail)
        self.log.append(event)
        if self._log_line is not None:
            self._log_line(_line(event))

    @staticmethod
    def lines(events: Iterable[Event]) -> list[str]:
        """Events as text."""
        return [_line(event) for event in events]

    @property
    def last_effects(self) -> float:
        """The time after which no call from before the last fault takes effect any more; now if one is still open."""
        if any(link.hindered for link in self.database.links):
            return self.clock.seconds()
        return max(self._faults_ended + EFFECT_SECONDS, self._late_effect)

    def late_effect(self) -> None:
        """A fault has an effect now, which may be long after it: a frozen process thaws late."""
        self._late_effect = self.clock.seconds()

    def random_server(self, stream: random.Random) -> ServerProcess | None:
        """A random server that accepts connections, if there is one."""
        accepting = [server for server in self.servers if server.accepting]
        return stream.choice(accepting) if accepting else None

    def process_ended(self, process: Process) -> None:
        """A process has ended: a new one replaces it."""
        self._ended_processes.append(process)  # kept, so that nothing of it is finalized at a random time
        self.database.links.remove(process.store)
        stream = process.stream
        self.clock.call(None, stream.uniform(0, 1.0), process.broker.process_died)
        if isinstance(process, ServerProcess):
            self.servers.remove(process)
        elif isinstance(process, WorkerProcess):
            self.workers.remove(process)
        self.clock.call(None, stream.uniform(0.3, 4.0), self._replace, process)

    def _replace(self, process: Process) -> None:
        if self.closing:
            return
        if isinstance(process, WorkerProcess):
            self._start_worker(process.slots)
        else:
            self._start_server()

    def _name(self, kind: str) -> str:
        self._numbers[kind] += 1
        return f"{kind}-{self._numbers[kind]}"

    def _start_server(self) -> None:
        server = ServerProcess(self, self._name("server"))
        self.servers.append(server)
        server.start()

    def _start_worker(self, slots: int) -> None:
        worker = WorkerProcess(self, self._name("worker"), slots)
        self.workers.append(worker)
        worker.start()

    # -- the game

    def play(self) -> None:
        """Play the game to its end. Raises Failed."""
        for _ in range(self.plan.servers):
            self._start_server()
        for slots in self.plan.slots:
            self._start_worker(slots)
        for client in self.clients:
            client.start()
        self.holders.start()
        faults.begin(self)
        self.clock.call(None, self.plan.chaos, self._end_faults)
        while not self.over and self.violation is None:
            self.steps += 1
            try:
                if not self.clock.step():
                    self.referee.fail(EVERY_END, "nothing happens any more")
            except Exception as e:
                self.referee.fail(NO_ERROR, f"{type(e).__name__} reached the reactor: {e}")
        if self.violation is not None:
            raise Failed(self, self.violation)

    def close(self) -> None:
        """Close the database and stop all timers of processes."""
        for process in [*self.servers, *self.workers]:
            process.dead = True
        self.database.close()

    def _violated(self, violation: Violation) -> None:
        if self.violation is None:
            self.violation = violation

    def _end_faults(self) -> None:
        self.note("world", "ends the faults")
        self._chaos = False
        self._faults_ended = self.clock.seconds()
        self.database.start()
        self.database.locked_until = 0.0
        if self.database.read_only_until:
            self.database.take_changes(True)
        self.broker.start()
        self.broker.eats_until = 0.0
        for process in [*self.servers, *self.workers]:
            if not (isinstance(process, WorkerProcess) and process.frozen):
                process.thaw()
            process.cut(False)
            process.broker.cut(False)
        self._wait_for_ends()

    def _wait_for_ends(self) -> None:
        left = self._unfinished()
        if left is None:
            self._close_clients()
        elif self.clock.seconds() - self._faults_ended > END_SECONDS + ATTEMPTS * self.plan.longest_task:
            self.referee.fail(*left)
        else:
            self.clock.call(None, 0.5, self._wait_for_ends)

    def _unfinished(self) -> tuple[str, str] | None:
        """An invariant and the first thing that has not ended; None if all has."""
        referee = self.referee
        if referee.open:
            ends = [f"{k.task_id} is {k.state.value}" for k in referee.tasks.values() if k.version in k.history]
            left = [k for k in referee.tasks.values() if k.state.value in ("waiting", "queued", "running")]
            return EVERY_END, f"{len(left)} of {len(ends)} tasks have not: {left[:5]}"
        for client in self.clients:
            connection = client.connection
            if (connection is not None and connection.requests) or not client.finished:
                asked = [(r.action, r.fields) for r in connection.requests.values()] if connection is not None else []
                return ONE_REPLY, f"{client.name} waits for {asked}"
            if (
                connection is not None
                and not self.plan.poison
                and (missing := connection.missing_events(self.last_effects))
            ):
                return WATCH_COMPLETE, f"{client.name} did not get {missing[:5]}"
        for worker in self.workers:
            if worker.worker.busy:
                return EVERY_END, f"{worker.name} still holds {worker.worker.busy} tasks"
        if held := [known.task_id for known in referee.tasks.values() if known.held]:
            return NOTHING_HELD, f"tasks {held[:5]}"
        return None

    def _close_clients(self) -> None:
        self.note("world", "closes the clients")
        self.closing = True
        for client in self.clients:
            if client.connection is not None:
                client.connection.close()
        self.clock.call(None, 1.0, self._check_leaks, self.clock.seconds() + LEAVE_SECONDS)

    def _check_leaks(self, deadline: float) -> None:
        for server in self.servers:
            hub = server.server.hub
            kept: dict[str, Sized] = {
                "watches": hub._watches,
                "waits": hub._waits,
                "connections": server.server.lines.connections,
            }
            for what, things in kept.items():
                if things and self.clock.seconds() > deadline:
                    self.referee.fail(NOTHING_KEPT, f"{server.name} keeps {len(things)} {what}")
                elif things:
                    self.clock.call(None, 1.0, self._check_leaks, deadline)
                    return
        stored = self.database.query("SELECT count(*) FROM tasks")[0][0]
        if stored != len(self.referee.tasks):
            self.referee.fail(EVERY_END, f"{stored} of {len(self.referee.tasks)} tasks are in the store")
        for process in [*self.servers, *self.workers]:
            process.terminate()
        self._wait_for_drains(self.clock.seconds() + DRAIN_SECONDS)

    def _wait_for_drains(self, deadline: float) -> None:
        left = [process.name for process in [*self.servers, *self.workers]]
        if left and self.clock.seconds() < deadline:
            self.clock.call(None, 1.0, self._wait_for_drains, deadline)
            return
        if left:
            self.referee.fail(DRAIN_ENDS, f"{left} have not")
        self.over = True


def _line(event: Event) -> str:
    time, who, what, detail = event
    return f"{time - START:10.4f} {who:10} {what} {' '.join(map(str, detail))}".rstrip()


@implementer(ILogObserver)
class _ErrorObserver:
    """Observes the log of taskd: an error that is not of a handler is a violation."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.error and not event["log_namespace"].startswith("taskd.worker.attempt"):
            failure = event.get("log_failure")
            why = failure.getTraceback() if failure is not None else ""
            self._world.referee.fail(NO_ERROR, f"{formatEvent(event)} {why}")


def _numbering(numbers: Iterator[int]) -> Callable[[Any], int]:
    def number(self: Any) -> int:
        found = self.__dict__.get("_number_in_game")
        if found is None:
            found = self.__dict__["_number_in_game"] = next(numbers)
        return int(found)

    return number


@contextmanager
def _isolated(world: World) -> Iterator[None]:
    """Make a game deterministic, and restore everything after it.

    The log has no other observer, the garbage collector is off, and hashes do not depend on memory addresses.
    """
    observers = globalLogPublisher._observers
    globalLogPublisher._observers = [_ErrorObserver(world)]
    number = _numbering(count())
    for kind in _IN_SETS:
        kind.__hash__ = number  # type: ignore[method-assign, assignment]
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        for kind in _IN_SETS:
            kind.__hash__ = object.__hash__  # type: ignore[method-assign]
        globalLogPublisher._observers = observers


def play(
    seed: int,
    log_line: Callable[[str], None] | None = None,
    kinds: tuple[str, ...] | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> World:
    """Play one game. Raises Failed. ``log_line`` is called with every line of the log at once. With ``kinds`` the game
    is long, has long tasks, and has these kinds of faults instead of those that its seed draws. ``changes`` are of the
    plan, and under ``rates`` of its rates."""
    world = World(seed, log_line, kinds, changes)
    try:
        with _isolated(world):
            world.play()
    finally:
        world.close()
    return world
