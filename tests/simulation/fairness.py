"""Whose task is next, while nothing fails: servers and a worker on the simulated clock, without faults.

The store answers within milliseconds, and work costs no time: what shows is only what was decided. Slot time is
counted where it is used, in the handlers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from taskd.api.accounts import Accounts
from taskd.api.login_guard import open_guard
from taskd.model.backoff import Backoff
from taskd.model.states import State
from taskd.model.tasks import DEFAULT_KIND, NewTask
from taskd.ports.handler import ITaskContext, ITaskHandler
from taskd.ports.tasks import Created
from taskd.server.task_server import TaskServer
from taskd.store.sqlite.database import InlineRunner
from taskd.store.sqlite.store import SqliteStore
from taskd.worker.runner import Runner
from taskd.worker.worker import Worker
from tests.simulation.broker import SimBroker
from tests.simulation.broker_link import BrokerLink
from tests.simulation.clock import START, OwnClock, Owner, SimClock
from tests.simulation.database import at_once
from tests.slot_time import Span, slot_seconds

QUEUE = "tasks"
BATCH = 1000

STORE_SECONDS = 0.001
"""Mean seconds of each way to the store and back."""

HORIZON = 0.1
"""Seconds of work that may be on their way to each slot."""


class CalmPlan(NamedTuple):
    """What the links read of a plan."""

    broker_seconds: float = 0.001


class CalmProcess(Owner):
    """A process that never fails."""

    def __init__(self, game: Game, name: str) -> None:
        super().__init__(game.stream(name).uniform(-1e6, 1e6))
        self.name = name
        self.clock: Any = OwnClock(game.clock, self)
        self.store: Any = CalmStore(game, self)
        self.broker = BrokerLink(cast(Any, game), cast(Any, self))
        at_once(self.broker.start())


class CalmStore:
    """The way of a process to the shared store: each call takes a moment, and none fails."""

    ready = True

    def __init__(self, game: Game, process: CalmProcess) -> None:
        self._game = game
        self._process = process
        self._stream = game.stream(process.name, "store")

    def now(self) -> Any:
        """The time of the database."""
        return self._game.store.now()

    def __getattr__(self, name: str) -> Any:
        method: Any = getattr(self._game.store, name)
        if not callable(method):
            return method

        def call(*args: Any) -> Deferred[Any]:
            done: Deferred[Any] = Deferred()

            def arrive() -> None:
                try:
                    result = at_once(method(*args))
                except Exception as e:
                    self._later(done.errback, e)
                    return
                self._game.called(name, result)
                self._later(done.callback, result)

            self._later(arrive)
            return done

        return call

    def _later(self, what: Callable[..., object], *args: Any) -> None:
        self._process.clock.callLater(self._stream.expovariate(1 / STORE_SECONDS), what, *args)


@implementer(ITaskHandler)
class CountingHandler:
    """Takes the time that the payload says, and notes who had a slot, and when."""

    kind = DEFAULT_KIND
    isolation = "async"
    timeout: float | None = None
    max_attempts = 3
    backoff = Backoff()
    summary = ""

    def __init__(self, game: Game, clock: Any) -> None:
        self._game = game
        self._clock = clock

    async def run(self, task: ITaskContext) -> None:
        """Take the time."""
        game, payload = self._game, task.payload
        began, key = game.now, (payload["user"], task.id)
        game.begins += 1
        game.running[key] = began
        try:
            await deferLater(self._clock, payload["seconds"])
        finally:
            del game.running[key]
            game.spans.append(Span(payload["user"], began, game.now))


@implementer(ILogObserver)
class _Errors:
    """The errors in the log of taskd."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.error:
            self.errors.append(formatEvent(event))


def _no_passwords(*_: Any) -> NoReturn:
    raise AssertionError("nobody logs in")


class Game:
    """Servers, one worker, and users that submit tasks to the servers in turn."""

    rates = None

    def __init__(self, *, slots: int, weights: Sequence[float], servers: int = 2, seed: int = 0) -> None:
        """There is a user for each of the weights."""
        self.clock = SimClock()
        self.plan = CalmPlan()
        self.slots = slots
        self.servers = servers
        self._seed = seed
        self._streams: dict[tuple[str, ...], random.Random] = {}
        self._runner = InlineRunner()
        self.store = SqliteStore(self._runner, self.clock, installation="simulation")
        at_once(self.store.start())
        self.broker = SimBroker(cast(Any, self))
        self.spans: list[Span] = []
        """What had a slot and has it no more."""
        self.running: dict[tuple[int, int], float] = {}
        """By user and task, when it began."""
        self.assignments = self.begins = self.ends = 0
        self.arrived = 0.0
        """When a user has submitted tasks last."""
        self._observer = _Errors()
        self.users = [at_once(self.store.create_user(f"u{n}", f"u{n}", "")).id for n in range(len(weights))]
        for n, weight in enumerate(weights):
            at_once(self.store.set_weight(f"u{n}", weight))
        self._servers = [self._server(f"server{n}") for n in range(servers)]
        self._start_worker()
        globalLogPublisher.addObserver(self._observer)
        self.run(until=2.0)

    def __enter__(self) -> Game:
        return self

    def __exit__(self, *error: object) -> None:
        globalLogPublisher.removeObserver(self._observer)
        self._runner.close()

    # -- what its parts ask for

    @property
    def now(self) -> float:
        """Seconds since the game began."""
        return self.clock.rightNow - START

    def stream(self, *names: str) -> random.Random:
        """The random numbers for one purpose."""
        return self._streams.setdefault(names, random.Random(f"{self._seed}/{'/'.join(names)}"))

    def called(self, name: str, result: Any) -> None:
        """The store has done this."""
        if name == "assign":
            self.assignments += len(result.tasks)
        elif name == "create_tasks":
            created: Created = result
            self.assignments += sum(task.state is State.QUEUED for task in created.tasks)
        elif name == "finish":
            self.ends += len(result)

    def _server(self, name: str) -> TaskServer:
        process = CalmProcess(self, name)
        accounts = Accounts(process.store, open_guard(process.clock, process.store, _no_passwords, 1), 4, 60)
        queues = (QUEUE,)
        server = TaskServer(process.clock, process.store, process.broker, accounts, queues=queues, lease=30, node=name)
        server.start()
        return server

    def _start_worker(self) -> None:
        process = CalmProcess(self, "worker")
        runner = Runner(process.clock, [CountingHandler(self, process.clock)], chance=self.stream("chance").random)
        names = iter(range(1, 10))
        worker = Worker(
            process.clock,
            process.store,
            process.broker,
            runner,
            (QUEUE,),
            {"async": self.slots},
            lambda: f"worker.{next(names)}",
        )
        Deferred.fromCoroutine(worker.start())

    # -- what a test does

    def run(self, until: float) -> None:
        """Let time pass."""
        over: list[None] = []
        self.clock.callLater(max(0.0, until - self.now), over.append, None)
        while not over:
            self.clock.step()
        assert not self._observer.errors, self._observer.errors

    def run_until_older(self, seconds: float) -> None:
        """Let time pass until some running task has run for so long."""
        while not any(self.now - began > seconds for began in self.running.values()):
            self.run(self.now + 0.05)

    def submit(self, user: int, lengths: Sequence[float]) -> None:
        """A user submits tasks that take so long, in this order."""
        self.arrived = self.now
        Deferred.fromCoroutine(self._submit(user, lengths))

    async def _submit(self, user: int, lengths: Sequence[float]) -> None:
        submitter = self._servers[user % len(self._servers)].scheduler.submitter
        for start in range(0, len(lengths), BATCH):
            payloads = (f'{{"user":{user},"seconds":{seconds!r}}}' for seconds in lengths[start : start + BATCH])
            tasks = [NewTask(self.users[user], "t", payload=payload, queue=QUEUE) for payload in payloads]
            await submitter.submit(tasks)

    def first_begin(self, user: int, limit: float) -> float:
        """When the first task of a user begins. Plays on for at most so many seconds."""
        end = self.now + limit
        while self.now < end:
            began = [span.began for span in self.spans if span.user == user]
            began += [since for (who, _), since in self.running.items() if who == user]
            if began:
                return min(began)
            self.run(self.now + 0.05)
        return float("inf")

    def in_flight(self) -> int:
        """How many tasks the worker holds."""
        query = "SELECT count(*) FROM tasks INDEXED BY tasks_held WHERE held AND worker = 'worker.1'"
        return int(self._runner._connection.execute(query).fetchone()[0])

    def slot_seconds(self, since: float, until: float) -> Mapping[int, float]:
        """What each user had of the slots in a period."""
        still = [Span(user, began, self.now) for (user, _), began in self.running.items()]
        return slot_seconds([*self.spans, *still], since, until)
