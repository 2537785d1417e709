"""Deliberate defects of taskd, in the simulation only, which it must find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, succeed

from taskd.events.publisher import Publisher
from taskd.model.tasks import NewTask, Route, Task
from taskd.ports.scheduling import Dispatch
from taskd.scheduling import liveness
from taskd.scheduling.liveness import Liveness
from taskd.scheduling.maintenance.relay_outbox import RelayOutbox
from taskd.scheduling.outbox import Outbox
from taskd.store.sqlite import attempts, losses
from taskd.watchdog.watch import Watch
from taskd.worker.held import HeldTask, ack
from taskd.worker.outcomes import Outcomes
from taskd.worker.reclaim import Reclaim
from taskd.worker.suspects import Suspects
from taskd.worker.worker import Worker
from tests.simulation.holders import (
    DEAD_LOSES,
    FENCED_STOPS,
    FEW_SUSPECTS,
    HEALTHY_KEEPS,
    SPENT_BY_CULPRIT,
)
from tests.simulation.referee import (
    ACK_AFTER_OUTCOME,
    BOUNDED_ATTEMPTS,
    CLAIMS_MATCH,
    CONFIRMED_EXIST,
    FENCED,
    OUTBOX_EMPTIES,
    OUTBOX_KEPT,
    TAKEN_OVER,
    WATCH_COMPLETE,
)
from tests.simulation.store import StoreLink


@dataclass(frozen=True)
class Defect:
    """The attribute ``name`` of ``owner`` is replaced by ``broken``.

    One of the first ``within`` games then violates ``invariant``.
    """

    owner: Any
    name: str
    broken: Any
    invariant: str
    within: int
    kinds: tuple[str, ...] | None = None
    """The kinds of faults that these games have, if the seeds do not draw them."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Run with this defect."""
        original = getattr(self.owner, self.name)
        setattr(self.owner, self.name, self.broken)
        try:
            yield
        finally:
            setattr(self.owner, self.name, original)


def _without(statement: str, check: str, instead: str) -> str:
    assert statement.count(check) == 1
    return statement.replace(check, instead)


_publish = Outbox.send
_begin = Outcomes.begin
_publish_tasks = Publisher.publish
_follow = Liveness._follow
_create_tasks: Callable[..., Any] = StoreLink.create_tasks


async def _marks_published_before_the_confirm(
    self: Outbox, batch: str, messages: Mapping[Route, Sequence[Dispatch]]
) -> None:
    self.published.append(batch)
    await _publish(self, batch, messages)


def _replies_before_the_commit(
    self: StoreLink, batch: str, rows: Sequence[NewTask], settled: Sequence[str] = ()
) -> Deferred[Sequence[Task]]:
    tasks = self._database.rehearse(batch, rows, settled)
    _create_tasks(self, batch, rows, settled).addErrback(lambda _: None)
    return succeed(tasks)


def _acks_before_the_outcome(self: Outcomes, held: HeldTask, *rest: Any) -> None:
    _begin(self, held, *rest)
    ack([held])


def _only_servers_publish(self: Publisher, tasks: Sequence[Task]) -> None:
    if self._hub is not None:
        _publish_tasks(self, tasks)


async def _does_not_relay(self: RelayOutbox) -> None:
    await self._outbox.mark_published()


def _goes_on_counting(self: Liveness, why: str) -> None:
    pass


def _believes_it_was_connected(self: Liveness, watched: Any, *rest: Any) -> Any:
    found = _follow(self, watched, *rest)
    found.seen_connected = True
    return found


async def _reclaims_nothing(self: Reclaim, missing: Sequence[HeldTask]) -> set[HeldTask]:
    return set()


def _does_nothing(*_: Any) -> None:
    pass


def _always(*_: Any) -> bool:
    return True


async def _is_sure(self: Liveness, seconds: float) -> bool:
    return True


def _goes_on_under_another_name(self: Worker) -> None:
    self.registration.fenced()
    self.identity.rename()


_HARMLESS = ("cut_connection",) * 6
"""Among these, a fault comes so rarely that its effects end before the next."""

DEFECTS: Mapping[str, Defect] = {
    "any worker may finish any attempt": Defect(
        attempts,
        "FINISH",
        _without(attempts.FINISH, "dispatch = ? AND attempt = ? AND worker = ?", "? > 0 AND ? > 0 AND ? <> ''"),
        FENCED,
        within=30,
        kinds=("freeze_worker", "kill_watchdog"),
    ),
    "any message claims the current dispatch": Defect(
        attempts, "CLAIM", _without(attempts.CLAIM, "dispatch = ?", "? > 0"), CLAIMS_MATCH, within=100
    ),
    "the outbox row is deleted before the confirm": Defect(
        Outbox, "send", _marks_published_before_the_confirm, OUTBOX_KEPT, within=30
    ),
    "the reply comes before the commit": Defect(
        StoreLink, "create_tasks", _replies_before_the_commit, CONFIRMED_EXIST, within=30
    ),
    "the worker acks before the outcome is committed": Defect(
        Outcomes, "begin", _acks_before_the_outcome, ACK_AFTER_OUTCOME, within=30
    ),
    "stale batches are not relayed": Defect(RelayOutbox, "run", _does_not_relay, OUTBOX_EMPTIES, within=30),
    "a task released by a drained worker loses an attempt": Defect(
        attempts, "RELEASE", _without(attempts.RELEASE, "attempt = attempt - 1, ", ""), BOUNDED_ATTEMPTS, within=100
    ),
    "a last attempt that was lost does not end the task": Defect(
        losses,
        "FAIL_LOST",
        _without(losses.FAIL_LOST, "state = 'failed', finished_at = ?", "state = 'waiting', started_at = ?").replace(
            "losses = losses + ?", "dispatched_at = NULL, losses = losses + ?"
        ),
        BOUNDED_ATTEMPTS,
        within=100,
    ),
    "workers do not announce their changes": Defect(
        Publisher, "publish", _only_servers_publish, WATCH_COMPLETE, within=30
    ),
    "a server does not reset its counts after a failed poll": Defect(
        Liveness,
        "_break",
        _goes_on_counting,
        HEALTHY_KEEPS,
        within=30,
        kinds=("stop_database", "kill_watchdog", "freeze_worker"),
    ),
    "a server ignores the beat when it fences": Defect(
        losses,
        "FENCE",
        _without(losses.FENCE, "beat = ?", "? > 0"),
        HEALTHY_KEEPS,
        within=100,
        kinds=("freeze_worker", "kill_watchdog", "lock_tasks", *_HARMLESS),
    ),
    "a lost connection counts although it was never seen open": Defect(
        Liveness,
        "_follow",
        _believes_it_was_connected,
        HEALTHY_KEEPS,
        within=100,
        kinds=("stop_database", "kill_watchdog", "kill_watchdog", *_HARMLESS),
    ),
    "a claim takes over a running task": Defect(
        attempts,
        "CLAIM",
        _without(attempts.CLAIM, "state = 'queued'", "state IN ('queued', 'running')"),
        TAKEN_OVER,
        within=30,
    ),
    "a worker forgets what a crash of the database has undone": Defect(
        Reclaim, "reclaim", _reclaims_nothing, HEALTHY_KEEPS, within=30, kinds=("crash_database", "lose_channel")
    ),
    "servers count messages as lost right after a crash": Defect(
        Liveness, "is_steady", _is_sure, HEALTHY_KEEPS, within=100, kinds=("crash_database",)
    ),
    "a watchdog does not beat": Defect(
        Watch, "_vouch", _does_nothing, HEALTHY_KEEPS, within=30, kinds=("stall_worker",)
    ),
    "a watchdog tells nobody": Defect(Watch, "tell", _does_nothing, DEAD_LOSES, within=30, kinds=("kill_worker",)),
    "servers take nothing back": Defect(Liveness, "_take_back_from", _does_nothing, DEAD_LOSES, within=30),
    "servers ignore lost connections": Defect(
        liveness, "POLLS_AFTER_LOSS", 1000, DEAD_LOSES, within=30, kinds=("kill_worker", "kill_watchdog")
    ),
    "a worker does not stop when it is fenced": Defect(
        Worker, "_fenced", _goes_on_under_another_name, FENCED_STOPS, within=30, kinds=("freeze_worker",)
    ),
    "every loss spends the attempt": Defect(losses, "UNSPENT_LOSSES", 0, SPENT_BY_CULPRIT, within=30),
    "no loss spends the attempt of its culprit": Defect(
        losses, "RECORD_LOST", "SELECT ?, ?, ?", SPENT_BY_CULPRIT, within=30
    ),
    "all suspects run at a time": Defect(Suspects, "_has_place", _always, FEW_SUSPECTS, within=100),
}
