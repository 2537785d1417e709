"""The watchdog of a worker. It decides as the real one does; the worker's process and the database are simulated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from taskd.store.postgres.beats import STATEMENT_SECONDS
from taskd.watchdog.board import Note
from taskd.watchdog.culprit import Usage
from taskd.watchdog.watch import Watch
from tests.simulation.database import Connection
from tests.simulation.holders import HEALTHY_KEEPS

if TYPE_CHECKING:
    from tests.simulation.processes import WorkerProcess
    from tests.simulation.world import World

REACTOR = 1
"""The only thread of a simulated worker."""

_CRASH = """Fatal Python error: Segmentation fault

Current thread 0x0000000000000001 (most recent call first):
  File "handlers.py", line 1 in run
"""


class Board:
    """What a worker shares with its watchdog."""

    reactor_thread = REACTOR

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process
        self._ticks = 0
        self.beats = 0
        self.name = ""
        self.is_stopping = False
        self.gate = self._gate_seen = 0
        self._begun: dict[int, tuple[int, int]] = {}
        self._places = itertools.count(1)
        self.entered: tuple[int, int] | None = None
        """Task and dispatch of the handler that runs on the reactor at this moment."""

    @property
    def ticks(self) -> int:
        """Grows while the reactor runs. The real one is counted by a timer of the worker, about as often as the
        watchdog looks; here the look itself counts, which saves most steps of a game."""
        if not self._process.paused:
            self._ticks += 1
        return self._ticks

    def beaten(self) -> None:
        """See :class:`taskd.watchdog.board.Board`, as for all others."""
        self.beats += 1

    def rename(self, name: str) -> None:
        """The worker's name in the store."""
        self.name = name

    def stopping(self) -> None:
        """The worker ends in order."""
        self.is_stopping = True

    def begins(self, task_id: int, dispatch: int) -> int:
        """An assignment is about to begin."""
        at = next(self._places)
        self._begun[at] = task_id, dispatch
        return at

    def forget(self, at: int) -> None:
        """It is not held any more."""
        del self._begun[at]

    def begun(self) -> list[tuple[int, int]] | None:
        """What has begun and is held."""
        return list(self._begun.values())

    def raise_gate(self) -> None:
        """Nothing that the worker has found is to begin."""
        self.gate += 1

    def see_gate(self, number: int) -> None:
        """The worker has seen it."""
        self._gate_seen = number

    @property
    def gate_seen(self) -> bool:
        """Whether the worker has seen the last raising."""
        return self._gate_seen == self.gate

    def enter(self, task_id: int, dispatch: int, kind: str) -> None:
        """A step of a handler begins. No step takes time here, except one that blocks: see ``entered``."""

    def leave(self) -> None:
        """A step of a handler ends."""

    def notes(self) -> list[Note]:
        """The handlers that are entered."""
        return [] if self.entered is None else [Note(REACTOR, REACTOR, *self.entered, "kind")]


class _Observed:
    """The worker's process, seen from outside."""

    def __init__(self, world: World, process: WorkerProcess) -> None:
        self._world = world
        self._process = process

    def stopped(self) -> bool:
        return self._process.frozen

    def usage(self) -> Mapping[int, Usage]:
        return {REACTOR: Usage(self._world.clock.seconds(), None)}

    def stack(self, native: int) -> str:
        return ""

    def crash(self) -> str:
        return _CRASH if self._process.crashed else ""

    def stop(self) -> None:
        if not self._process.paused:
            self._world.referee.fail(HEALTHY_KEEPS, f"the watchdog of {self._process.name} ends it while it runs")
        self._process.freeze()

    def kill(self) -> None:
        self._process.kill()


class Watchdog:
    """A process beside the worker, with its own connection to the database. It lives longer than its worker: it ends
    when it has told of the death, or when it is killed itself."""

    def __init__(self, world: World, process: WorkerProcess) -> None:
        self.dead = False
        self._has_ended = False
        self._world = world
        self._process = process
        self._database = world.database
        self._stream = world.stream(process.name, "watchdog")
        self._connection = Connection(0)
        self._cut = False
        now: Callable[[], float] = world.clock.seconds
        plan = world.plan
        self._watch = Watch(
            process.board,  # type: ignore[arg-type]
            _Observed(world, process),
            self,
            now,
            self._say,
            stall=plan.stall,
            lease=plan.lease,
        )

    def start(self) -> None:
        """Look at the worker from now on."""
        self._world.clock.call(None, self._stream.uniform(0.05, 0.5), self._step)

    @property
    def can_vouch(self) -> bool:
        """Whether its beats reach the database, if it is up."""
        process = self._process
        return not (self.dead or self._cut or process.dead or process.frozen)

    @property
    def tells(self) -> bool:
        """Whether it has done what it can after the death of its worker, or can do so now."""
        database = self._database
        can = not (self.dead or self._cut) and database.up
        return self._has_ended or (can and database.read_only_until <= self._world.clock.seconds())

    def cut(self, cut: bool) -> None:
        """Cut the network between it and the database, or mend it."""
        self._cut = cut

    def disconnect(self) -> None:
        """The database closes its connection."""
        self._connection.closed = True

    def worker_ended(self) -> None:
        """Its worker is dead: it sees that at once."""
        if self.dead:
            return
        if self._process.board.is_stopping:
            self.kill()
        else:
            self._watch.dead()
            self._tell()

    def kill(self) -> None:
        """SIGKILL."""
        self.dead = True
        self._connection.closed = True

    def _step(self) -> None:
        if not self.dead and not self._process.dead:
            self._world.clock.call(None, self._watch.step(), self._step)

    def _tell(self) -> None:
        if self.dead:
            return
        pause = self._watch.tell()
        if pause is None:
            self._has_ended = True
            self.kill()
        else:
            self._world.clock.call(None, pause, self._tell)

    def _say(self, level: str, text: str) -> None:
        self._world.note(f"watchdog of {self._process.name}", level, text)

    # -- its connection

    def vouch(self, name: str, stalled: str | None) -> int:
        """Beat for the worker. Raises OSError."""
        slow = self._reach(name)
        if slow:
            # it does not wait longer than this, and the statement is executed all the same
            connection = self._connection
            self._world.clock.call(None, slow, self._vouch_late, name, stalled, connection)
            raise OSError("canceling statement due to statement timeout")
        return self._database.vouch(name, stalled, self._connection)

    def stopped(self, name: str, stalled: str) -> int:
        """The worker is stopped. Raises OSError."""
        if self._reach(name):
            raise OSError("canceling statement due to statement timeout")
        return self._database.stopped(name, stalled)

    def give_back(self, name: str, beat: int, begun: Sequence[tuple[int, int]]) -> int:
        """Give back what the worker has not begun. Raises OSError."""
        database, connection = self._database, self._connection
        if not database.is_open(connection):
            return 0
        slow = max(self._reach(name), database.locked_until - self._world.clock.seconds())
        if self._connection is not connection:
            return 0
        if slow > 0:
            if slow <= STATEMENT_SECONDS:
                # the statement is executed, also if the watchdog has been killed by then
                self._world.clock.call(None, slow, self._give_back_late, name, beat, begun, connection)
            raise OSError("canceling statement due to statement timeout")
        return database.give_back(name, beat, begun)

    def gone(
        self, name: str, culprit: tuple[int, int, str] | None, among: Sequence[tuple[int, int]] | None = None
    ) -> bool:
        """The worker is dead. Raises OSError."""
        if self._reach(name):
            raise OSError("canceling statement due to statement timeout")
        return self._database.gone(name, culprit, among)

    def _reach(self, name: str) -> float:
        """The seconds that the call takes, 0 for a moment."""
        rates, database = self._world.rates, self._database
        if self._cut or not database.up:
            self._connection.closed = True
            raise OSError("could not connect to server")
        if not database.is_open(self._connection):
            self._connection = Connection(database.epoch)
        if database.read_only_until > self._world.clock.seconds():
            self._world.holders.disturbed(name)
            raise OSError("cannot execute UPDATE in a read-only transaction")
        if rates and (kind := self._stream.random()) < rates.refused + rates.slow_store:
            self._world.holders.disturbed(name)
            if kind < rates.refused:
                self._connection.closed = True
                raise OSError("server closed the connection unexpectedly")
            return self._stream.uniform(0.1, 3.0)
        return 0.0

    def _give_back_late(self, name: str, beat: int, begun: Sequence[tuple[int, int]], connection: Connection) -> None:
        if self._database.up and connection.epoch == self._database.epoch:
            self._database.give_back(name, beat, begun)

    def _vouch_late(self, name: str, stalled: str | None, connection: Connection) -> None:
        if not (self.dead or self._cut) and self._database.is_open(connection):
            self._database.vouch(name, stalled, connection)
