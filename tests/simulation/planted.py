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
from taskd.scheduling.maintenance.relay_outbox import RelayOutbox
from taskd.scheduling.outbox import Outbox
from taskd.store.sqlite import attempts
from taskd.worker.held import HeldTask, ack
from taskd.worker.outcomes import Outcomes
from tests.simulation.referee import (
    ACK_AFTER_OUTCOME,
    BOUNDED_ATTEMPTS,
    CLAIMS_MATCH,
    CONFIRMED_EXIST,
    FENCED,
    OUTBOX_EMPTIES,
    OUTBOX_KEPT,
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
    "an expired lease of the last attempt does not end the task": Defect(
        attempts,
        "EXPIRE",
        attempts.EXPIRE.replace("attempt < max_attempts", "true").replace("attempt >=", "0 >"),
        BOUNDED_ATTEMPTS,
        within=100,
    ),
    "workers do not announce their changes": Defect(
        Publisher, "publish", _only_servers_publish, WATCH_COMPLETE, within=30
    ),
}
