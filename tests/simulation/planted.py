"""Defects put into taskd on purpose, in the simulation only, to see that it finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, succeed

from taskd.events.publisher import Publisher
from taskd.model.tasks import NewTask, Route, Task
from taskd.ports.scheduling import Dispatch
from taskd.scheduling.maintenance.relay_outbox import RelayOutbox
from taskd.scheduling.outbox import Outbox
from taskd.store.sqlite import attempts
from taskd.worker.held import HeldTask, ack
from taskd.worker.running import RunningTasks
from tests.simulation.referee import (
    ACK_AFTER_OUTCOME,
    BOUNDED_ATTEMPTS,
    CLAIMS_MATCH,
    CONFIRMED_EXIST,
    FENCED,
    OUTBOX_KEPT,
    OUTBOX_SETTLES,
    WATCH_HEARS,
)
from tests.simulation.store import StoreLink


@dataclass(frozen=True)
class Defect:
    """``owner``'s attribute ``name`` is replaced; ``invariant`` is what then does not hold, in one of the first
    ``within`` games."""

    owner: Any
    name: str
    broken: Any
    invariant: str
    within: int

    @contextmanager
    def planted(self) -> Iterator[None]:
        """taskd with this defect."""
        sound = getattr(self.owner, self.name)
        setattr(self.owner, self.name, self.broken)
        try:
            yield
        finally:
            setattr(self.owner, self.name, sound)


def _without(statement: str, check: str, instead: str) -> str:
    assert statement.count(check) == 1
    return statement.replace(check, instead)


_publish = Outbox.send
_begin = RunningTasks.begin
_publish_tasks = Publisher.publish
_create_tasks: Callable[..., Any] = StoreLink.create_tasks


async def _settles_before_the_confirm(self: Outbox, batch: str, messages: Mapping[Route, Sequence[Dispatch]]) -> None:
    self._published.append(batch)
    await _publish(self, batch, messages)


def _replies_before_the_commit(
    self: StoreLink, batch: str, rows: Sequence[NewTask], settled: Sequence[str] = ()
) -> Deferred[Sequence[Task]]:
    tasks = self._database.rehearse(batch, rows, settled)
    _create_tasks(self, batch, rows, settled).addErrback(lambda _: None)
    return succeed(tasks)


def _acks_before_the_outcome(self: RunningTasks, held: HeldTask, *rest: Any) -> None:
    _begin(self, held, *rest)
    ack([held])


def _only_servers_publish(self: Publisher, tasks: Sequence[Task]) -> None:
    if self._hub is not None:
        _publish_tasks(self, tasks)


async def _does_not_relay(self: RelayOutbox, store_up: float) -> None:
    await self._outbox.mark_published()


DEFECTS: Mapping[str, Defect] = {
    "any worker may finish any attempt": Defect(
        attempts,
        "FINISH",
        _without(attempts.FINISH, "dispatch = ? AND attempt = ? AND worker = ?", "? > 0 AND ? > 0 AND ? <> ''"),
        FENCED,
        within=100,
    ),
    "any message claims the present dispatch": Defect(
        attempts, "CLAIM", _without(attempts.CLAIM, "dispatch = ?", "? > 0"), CLAIMS_MATCH, within=100
    ),
    "the outbox row goes before the confirm": Defect(
        Outbox, "send", _settles_before_the_confirm, OUTBOX_KEPT, within=30
    ),
    "the reply comes before the commit": Defect(
        StoreLink, "create_tasks", _replies_before_the_commit, CONFIRMED_EXIST, within=30
    ),
    "the worker acks before the outcome is committed": Defect(
        RunningTasks, "begin", _acks_before_the_outcome, ACK_AFTER_OUTCOME, within=30
    ),
    "orphaned batches are not relayed": Defect(RelayOutbox, "run", _does_not_relay, OUTBOX_SETTLES, within=30),
    "what a drained worker gives back costs an attempt": Defect(
        attempts, "RELEASE", _without(attempts.RELEASE, "attempt = attempt - 1, ", ""), BOUNDED_ATTEMPTS, within=100
    ),
    "a lease expires on the last attempt without an end": Defect(
        attempts,
        "EXPIRE",
        attempts.EXPIRE.replace("attempt < max_attempts", "true").replace("attempt >=", "0 >"),
        BOUNDED_ATTEMPTS,
        within=100,
    ),
    "workers do not publish what they change": Defect(
        Publisher, "publish", _only_servers_publish, WATCH_HEARS, within=30
    ),
}
