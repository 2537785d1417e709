"""A game: a world is put together, played step by step, and its end is judged."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import count
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from taskd.api.accounts import token_hash
from taskd.events.hub import Wait, Watch
from taskd.scheduling import outbox
from taskd.scheduling.maintenance import requeue_lost
from taskd.server.lines import LineConnection
from tests.simulation import faults
from tests.simulation.broker import SimBroker
from tests.simulation.clients import Client, User
from tests.simulation.clock import START, SimClock
from tests.simulation.database import Database, at_once
from tests.simulation.plan import Plan, Rates, draw
from tests.simulation.processes import SESSION_SECONDS, Process, ServerProcess, WorkerProcess
from tests.simulation.referee import (
    DRAIN_ENDS,
    EVERY_END,
    MESSAGES_SETTLE,
    NO_ERROR,
    NOTHING_KEPT,
    ONE_REPLY,
    OUTBOX_SETTLES,
    WATCH_HEARS,
    WINDOWS_RIGHT,
    Referee,
    Violation,
)

PATIENCE = 150.0
"""Seconds after the last fault in which everything must come to its end."""

AFTERMATH = 5.0
"""Seconds after the last fault in which what was asked for before may still be done without a word."""

LEAVING = 15.0
"""Seconds after which a server has noticed that all clients have gone, and what they asked for is done."""

PARTING = 40.0
"""Seconds that all processes get to drain in the end."""

SHOWN = 50
"""Events of the log that a failure shows."""

_IN_SETS = (Watch, Wait, LineConnection)
"""Classes of whose objects taskd has sets that it goes through."""

Event = tuple[float, str, str, tuple[Any, ...]]


class Failed(AssertionError):
    """A game in which an invariant did not hold."""

    def __init__(self, world: World, violation: Violation) -> None:
        self.seed = world.seed
        self.invariant = violation.invariant
        tail = "\n".join(world.lines(world.log[-SHOWN:]))
        super().__init__(
            f"seed {world.seed}, step {world.steps}: {violation}\n{tail}\n"
            f"Play it again: python -m tests.simulation --first {world.seed} --seeds 1 --verbose"
        )


class World:
    """Everything there is in one game, which ``seed`` alone decides."""

    def __init__(self, seed: int, hear: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.steps = 0
        self.log: list[Event] = []
        self.clock = SimClock()
        self.violation: Violation | None = None
        self.closing = False
        self.over = False
        self._hear = hear
        self._streams: dict[tuple[str, ...], random.Random] = {}
        self._numbers = {"server": 0, "worker": 0}
        self._chaos = True
        self._healed = 0.0
        self._past: list[Process] = []
        self.plan: Plan = draw(self.stream("plan"))
        self.referee = Referee(self._violated, self.note, self.clock.seconds)
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
            at_once(self.database.store.open_session(user_id, token_hash(token), SESSION_SECONDS))
            users.append(User(name, user_id, token))
        each = self.plan.tasks // len(self.plan.clients)
        return [Client(self, f"client{n}", users[user], each) for n, user in enumerate(self.plan.clients)]

    # -- what everybody in it uses

    def stream(self, *names: str) -> random.Random:
        """Random numbers for one purpose, drawn from the seed: what one draws does not depend on the order in which
        others do, as that of a set may."""
        found = self._streams.get(names)
        if found is None:
            found = self._streams[names] = random.Random(f"{self.seed}/{'/'.join(names)}")
        return found

    @property
    def rates(self) -> Rates | None:
        """How often things go wrong now; None when nothing does any more."""
        return self.plan.rates if self._chaos else None

    def note(self, who: str, what: str, *detail: Any) -> None:
        """A line of the log."""
        event = (self.clock.rightNow, who, what, detail)
        self.log.append(event)
        if self._hear is not None:
            self._hear(_line(event))

    @staticmethod
    def lines(events: Iterable[Event]) -> list[str]:
        """Events as text."""
        return [_line(event) for event in events]

    @property
    def aftermath(self) -> float:
        """When all that was asked for while things went wrong has been done, or never will be."""
        return self._healed + AFTERMATH

    def a_server(self, stream: random.Random) -> ServerProcess | None:
        """One that a client finds, by chance."""
        accepting = [server for server in self.servers if server.accepting]
        return stream.choice(accepting) if accepting else None

    def gone(self, process: Process) -> None:
        """A process has ended: a new one takes its place."""
        self._past.append(process)  # until the end, so that nothing of it is cleared away at a moment of its own
        self.database.links.remove(process.store)
        stream = process.stream
        self.clock.call(None, stream.uniform(0, 1.0), process.broker.vanish)
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
        """Play it to the end. Raises Failed."""
        for _ in range(self.plan.servers):
            self._start_server()
        for slots in self.plan.slots:
            self._start_worker(slots)
        for client in self.clients:
            client.start()
        faults.begin(self)
        self.clock.call(None, self.plan.chaos, self._heal)
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
        """Let go of it."""
        for process in [*self.servers, *self.workers]:
            process.dead = True
        self.database.close()

    def _violated(self, violation: Violation) -> None:
        if self.violation is None:
            self.violation = violation

    def _heal(self) -> None:
        self.note("world", "heals")
        self._chaos = False
        self._healed = self.clock.seconds()
        self.database.start()
        self.broker.start(forgetful=False)
        for process in [*self.servers, *self.workers]:
            process.thaw()
            process.store.cut(False)
            process.broker.cut(False)
        self._wait_for_the_end()

    def _wait_for_the_end(self) -> None:
        left = self._unsettled()
        if left is None:
            self._say_goodbye()
        elif self.clock.seconds() - self._healed > PATIENCE:
            self.referee.fail(*left)
        else:
            self.clock.call(None, 0.5, self._wait_for_the_end)

    def _unsettled(self) -> tuple[str, str] | None:
        """The first thing that has not come to its end."""
        referee = self.referee
        if referee.open:
            ends = [f"{k.task_id} is {k.state.value}" for k in referee.tasks.values() if k.version in k.history]
            left = [k for k in referee.tasks.values() if k.state.value in ("waiting", "queued", "running")]
            return EVERY_END, f"{len(left)} of {len(ends)} tasks have not: {left[:5]}"
        for client in self.clients:
            talk = client.talk
            if (talk is not None and talk.requests) or not client.finished:
                asked = [(r.action, r.fields) for r in talk.requests.values()] if talk is not None else []
                return ONE_REPLY, f"{client.name} waits for {asked}"
            if talk is not None and not self.plan.poison and (unheard := talk.unheard(self.aftermath)):
                return WATCH_HEARS, f"{client.name} was not told of {unheard[:5]}"
        if rows := self.database.unsettled():
            return OUTBOX_SETTLES, f"{rows} rows are left"
        counts = self.database.queued()
        for server in self.servers:
            for route, window in server.server.scheduler.windows.by_route.items():
                if window.limit - window.room != counts.get(route, 0):
                    what = f"{server.name} believes that {window.limit - window.room} are in {route.name}"
                    return WINDOWS_RIGHT, what
        for worker in self.workers:
            if worker.worker.busy:
                return EVERY_END, f"{worker.name} believes that it has {worker.worker.busy} tasks"
        if messages := self.broker.unsettled():
            return MESSAGES_SETTLE, "; ".join(messages[:5])
        return None

    def _say_goodbye(self) -> None:
        self.note("world", "says goodbye")
        self.closing = True
        for client in self.clients:
            if client.talk is not None:
                client.talk.close()
        self.clock.call(None, 1.0, self._look_for_leaks, self.clock.seconds() + LEAVING)

    def _look_for_leaks(self, deadline: float) -> None:
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
                    self.clock.call(None, 1.0, self._look_for_leaks, deadline)
                    return
        stored = self.database.query("SELECT count(*) FROM tasks")[0][0]
        if stored != len(self.referee.tasks):
            self.referee.fail(EVERY_END, f"{stored} of {len(self.referee.tasks)} tasks are in the store")
        for process in [*self.servers, *self.workers]:
            process.terminate()
        self._wait_for_the_last(self.clock.seconds() + PARTING)

    def _wait_for_the_last(self, deadline: float) -> None:
        left = [process.name for process in [*self.servers, *self.workers]]
        if left and self.clock.seconds() < deadline:
            self.clock.call(None, 1.0, self._wait_for_the_last, deadline)
            return
        if left:
            self.referee.fail(DRAIN_ENDS, f"{left} have not")
        self.over = True


def _line(event: Event) -> str:
    time, who, what, detail = event
    return f"{time - START:10.4f} {who:10} {what} {' '.join(map(str, detail))}".rstrip()


@implementer(ILogObserver)
class _Ear:
    """Hears what taskd logs: an error that is not a handler's is a defect."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.error and not event["log_namespace"].startswith("taskd.worker.attempt"):
            failure = event.get("log_failure")
            why = failure.getTraceback() if failure is not None else ""
            self._world.referee.fail(NO_ERROR, f"{formatEvent(event)} {why}")


def _numbered(numbers: Iterator[int]) -> Callable[[Any], int]:
    def number(self: Any) -> int:
        found = self.__dict__.get("_number_in_game")
        if found is None:
            found = self.__dict__["_number_in_game"] = next(numbers)
        return int(found)

    return number


@contextmanager
def _alone(world: World) -> Iterator[None]:
    """While a game is played nobody else hears the log, nothing is cleared away at a moment of its own, and sets of
    objects have an order that does not depend on where in memory they are. Some waits are those of its plan."""
    observers = globalLogPublisher._observers
    lost_after, relay_after = requeue_lost.LOST_AFTER, outbox.RELAY_AFTER
    requeue_lost.LOST_AFTER, outbox.RELAY_AFTER = world.plan.lost_after, world.plan.relay_after
    globalLogPublisher._observers = [_Ear(world)]
    number = _numbered(count())
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
        requeue_lost.LOST_AFTER, outbox.RELAY_AFTER = lost_after, relay_after


def play(seed: int, hear: Callable[[str], None] | None = None) -> World:
    """Play one game. Raises Failed. ``hear`` gets every line of the log at once."""
    world = World(seed, hear)
    try:
        with _alone(world):
            world.play()
    finally:
        world.close()
    return world
