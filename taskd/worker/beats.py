"""Tells the store and the watchdog that the worker lives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.model.errors import Unavailable
from taskd.ports.store import IStore
from taskd.worker.board import IBoard
from taskd.worker.gate import Gate
from taskd.worker.held import HeldTasks
from taskd.worker.identity import Identity
from taskd.worker.means import Means
from taskd.worker.periodic import Periodic
from taskd.worker.registration import Registration
from taskd.worker.runner import Runner

INTERVAL = 1.0
"""Seconds between two beats. Nothing is decided by them alone: a server counts only how often it has seen none."""


class Beats:
    """Beats once a second. While the worker is not registered it tries to register instead.

    ``on_beaten`` is called with each beat that is accepted: whether what the worker holds is what the store has, and
    when the beat was sent. Before it, ``assert_held`` says what the worker holds, if the store has gone on from an
    older state since it has heard that. ``on_fenced`` is called when the store counts the worker as dead,
    ``on_recovered`` when a beat is accepted after one that failed: the database may have crashed meanwhile.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        runner: Runner,
        held: HeldTasks,
        means: Means,
        identity: Identity,
        registration: Registration,
        board: IBoard,
        gate: Gate,
        assert_held: Callable[[], Awaitable[None]],
        on_beaten: Callable[[bool, float], None],
        on_fenced: Callable[[], None],
        on_recovered: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._store = store
        self._runner = runner
        self._held = held
        self._means = means
        self._identity = identity
        self._registration = registration
        self._board = board
        self._gate = gate
        self._assert_held = assert_held
        self._on_beaten = on_beaten
        self._on_fenced = on_fenced
        self._on_recovered = on_recovered
        self._failing = False
        self._beats = Periodic(clock, INTERVAL, self._beat)

    def start(self) -> None:
        """Register, and begin to beat."""
        self._beats.start()

    def soon(self) -> None:
        """Beat at once: the worker has begun to drain, or got a new name."""
        self._beats.soon()

    def stop(self) -> None:
        """Beat no more."""
        self._beats.stop()

    def _hung(self) -> Mapping[str, int]:
        """By isolation, how many slots are taken by handlers that should have ended, and by those that have just been
        stopped because their tasks were taken back."""
        hung = Counter(self._runner.hung)
        hung.update(held.isolation for held in self._held.leaving if held.attempt and not held.attempt.hung)
        return hung

    async def _beat(self) -> None:
        try:
            if not await self._registration.renew():
                return
            self._gate.check()
            sent, gate = self._identity.now(), self._gate.number
            means = self._means.now(self._held.tasks.values())
            beaten = await self._store.beat(self._identity.name, self._hung(), means, self._held.digest)
            if beaten.accepted and not beaten.asserted:
                await self._assert_held()
                # running tasks are marked again, and all is compared
                self._failing = True
        except Unavailable as e:
            if not self._failing:
                self._log.warn("the worker cannot tell the store that it lives: {why}", why=str(e))
            self._failing = True
            return
        except Exception:
            if not self._failing:
                self._log.failure("the worker cannot tell the store that it lives")
            self._failing = True
            return
        if beaten.accepted:
            self._identity.heard(sent)
            self._board.beaten()
            self._gate.beaten(gate)
            self._on_beaten(beaten.in_step, sent.seconds)
            if self._failing:
                self._failing = False
                self._log.info("the store knows again that the worker lives")
                self._on_recovered()
        elif self._beats.running:
            self._on_fenced()
            # registers under the new name
            self._beats.soon()
