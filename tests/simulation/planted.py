"""Deliberate defects of taskd, in the simulation only, which it must find."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred, succeed

from taskd.events.publisher import Publisher
from taskd.events.records import decode_batch
from taskd.events.subscriber import Subscriber
from taskd.model.tasks import NewTask, Task
from taskd.ports.tasks import Created
from taskd.ports.workers import Beaten
from taskd.protocol.messages import encode
from taskd.scheduling import explain, liveness
from taskd.scheduling.dispatcher import Dispatcher
from taskd.scheduling.liveness import Liveness
from taskd.scheduling.pools import Pools
from taskd.store.sqlite import attempts, losses, scheduling, workers
from taskd.watchdog.watch import Watch
from taskd.worker.gate import Gate
from taskd.worker.held import HeldTasks
from taskd.worker.identity import Identity
from taskd.worker.looks import Looks
from taskd.worker.slots import SlotPool
from taskd.worker.suspects import Suspects
from taskd.worker.worker import Worker
from tests.planting import Replacement, replaced, without
from tests.simulation import database
from tests.simulation.database import at_once
from tests.simulation.holders import (
    BLOCKED_LOSES,
    DEAD_LOSES,
    FENCED_STOPS,
    FEW_SUSPECTS,
    GIVEN_BACK_RUNS,
    HEALTHY_KEEPS,
    SPENT_BY_CULPRIT,
    UNKNOWN_RETURNS,
)
from tests.simulation.referee import (
    BEGIN_HELD,
    BEGIN_ONCE,
    BOUNDED_ATTEMPTS,
    CANCEL_STOPS,
    CONFIRMED_EXIST,
    CREATED_ONCE,
    EXPLAINED,
    FENCED,
    FREE_BEGINS,
    HELD,
    LOST_HINTS,
    NO_IDLE_SLOT,
    ONE_INSTALLATION,
    SERVING_GETS,
    WATCH_COMPLETE,
    WATCHDOG_KEEPS,
)
from tests.simulation.store import StoreLink
from tests.simulation.watchdog import Board


@dataclass(frozen=True)
class Defect:
    """The attribute ``name`` of ``owner`` is replaced by ``broken``.

    One of ``within`` games, from the seed ``first`` on, then violates ``invariant``. Few games show some defects, so
    that ``first`` is not 0.
    """

    owner: Any
    name: str
    broken: Any
    invariant: str
    within: int
    first: int = 0
    kinds: tuple[str, ...] | None = None
    """The kinds of faults that these games have, if the seeds do not draw them."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the plans of these games."""
    also: Replacement | None = None
    """Another owner, name and replacement: taskd has two defences here, and each is enough."""

    def planted(self) -> AbstractContextManager[None]:
        """Run with this defect."""
        return replaced([(self.owner, self.name, self.broken), *([self.also] if self.also else [])])


_publish_tasks = Publisher.publish
_received = Subscriber._received
_why = explain._why
_follow = Liveness._follow
_check = Gate.check
_send = StoreLink._send
_create_tasks: Callable[..., Any] = StoreLink.create_tasks


def _replies_before_the_commit(self: StoreLink, tasks: Sequence[NewTask], spare: int = 0) -> Deferred[Created]:
    created = self._database.rehearse(tasks, spare)
    _create_tasks(self, tasks, spare).addErrback(lambda _: None)
    return succeed(created)


def _takes_any_installation(self: Subscriber, body: bytes) -> None:
    batch = decode_batch(body)
    _received(self, encode(replace(batch, installation=self._installation)))


def _forgets_losses(task: Task, *rest: Any) -> Any:
    return _why(replace(task, losses=0), *rest)


def _takes_the_creation_for_now(task: Task, now: Any, *rest: Any) -> Any:
    return _why(task, task.created_at, *rest)


def _only_servers_publish(self: Publisher, tasks: Sequence[Task]) -> None:
    if self._hub is not None:
        _publish_tasks(self, tasks)


def _goes_on_counting(self: Liveness, why: str) -> None:
    pass


def _believes_it_was_connected(self: Liveness, watched: Any, *rest: Any) -> Any:
    found = _follow(self, watched, *rest)
    found.seen_connected = True
    return found


def _does_nothing(*_: Any) -> None:
    pass


async def _does_nothing_soon(*_: Any) -> None:
    pass


def _always(*_: Any) -> bool:
    return True


def _never(*_: Any) -> bool:
    return False


def _always_in_step(accepted: bool, in_step: bool) -> Beaten:
    return Beaten(accepted, accepted)


def _knows_nothing(*_: Any) -> Sequence[tuple[int, int]]:
    return []


def _looks_at_once(self: Gate) -> None:
    number = self.number
    _check(self)
    if self.number != number:
        self.is_open = True
        self._on_open()


def _repeats_with_new_ids(self: StoreLink, call: Any) -> None:
    if call.name == "create_tasks" and call.maybe_executed:
        for task in call.args[0]:
            [task.id] = at_once(self._database.store.draw_ids(1))
    _send(self, call)


def _goes_on_under_another_name(self: Worker) -> None:
    self._registration.fenced()
    self._identity.rename()


_HARMLESS = ("cut_connection",) * 6
"""Among these, a fault comes so rarely that its effects end before the next."""

DEFECTS: Mapping[str, Defect] = {
    "any worker may finish any attempt": Defect(
        attempts,
        "FINISH",
        attempts.FINISH.replace(attempts.OPEN, "id = ? AND ? > 0 AND ? <> ''").replace("attempt = ?", "? > 0"),
        FENCED,
        within=30,
        kinds=("freeze_worker", "kill_watchdog"),
    ),
    "the reply comes before the commit": Defect(
        StoreLink, "create_tasks", _replies_before_the_commit, CONFIRMED_EXIST, within=30
    ),
    "a task that is given back loses an attempt": Defect(
        attempts, "RELEASE", without(attempts.RELEASE, "attempt = attempt - 1, ", ""), BOUNDED_ATTEMPTS, within=100
    ),
    "an ended task stays held": Defect(
        attempts, "FINISH", attempts.FINISH.replace("held = false", "held = held"), HELD, within=30
    ),
    "a turn assigns what a worker still holds": Defect(
        scheduling,
        "OLDEST",
        scheduling.OLDEST.replace("NOT held AND ", "(NOT held OR state = 'waiting') AND ").replace(
            "INDEXED BY tasks_backlog", ""
        ),
        HELD,
        within=100,
    ),
    "a turn assigns to any worker": Defect(
        scheduling,
        "SERVING",
        "SELECT name FROM workers",
        SERVING_GETS,
        within=100,
        kinds=("drain_worker", "kill_worker"),
    ),
    "an assignment is not flushed": Defect(
        database,
        "ASYNC_COMMITS",
        database.ASYNC_COMMITS | {"assign"},
        BEGIN_HELD,
        within=100,
        kinds=("crash_database",),
    ),
    "a creation is repeated with new ids": Defect(
        StoreLink,
        "_send",
        _repeats_with_new_ids,
        CREATED_ONCE,
        within=30,
        changes={"tasks": 120, "retry_seconds": 10.0, "rates": {"ambiguous": 0.3}},
    ),
    "a last attempt that was lost does not end the task": Defect(
        losses,
        "FAIL_LOST",
        without(losses.FAIL_LOST, "state = 'failed', finished_at = ?", "state = 'waiting', started_at = ?"),
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
        without(losses.FENCE, "beat = ?", "? > 0"),
        HEALTHY_KEEPS,
        within=60,
        kinds=("freeze_worker",),
        # a worker thaws and beats while the servers' answer to its silence is under way
        changes={"lease": 6.0, "store_seconds": 0.3},
    ),
    "a lost connection counts although it was never seen open": Defect(
        Liveness,
        "_follow",
        _believes_it_was_connected,
        HEALTHY_KEEPS,
        within=100,
        kinds=("stop_database", "kill_watchdog", "kill_watchdog", *_HARMLESS),
    ),
    "a worker never looks": Defect(Looks, "_look", _does_nothing_soon, FREE_BEGINS, within=30, kinds=_HARMLESS),
    "beats show no difference": Defect(
        workers, "Beaten", _always_in_step, LOST_HINTS, within=30, kinds=("eat_messages", "stop_broker")
    ),
    "a worker never compares": Defect(
        Looks, "_compare", _does_nothing_soon, CANCEL_STOPS, within=30, kinds=("stop_broker",)
    ),
    "a worker compares only when a hint tells it to": Defect(
        Looks, "beaten", _does_nothing, CANCEL_STOPS, within=30, kinds=("stop_broker", "eat_messages")
    ),
    "what was dropped stays held": Defect(
        attempts, "DROP", without(attempts.DROP, "held = false", "held = held"), UNKNOWN_RETURNS, within=30
    ),
    "a worker begins what it gives back": Defect(
        SlotPool, "remove", _does_nothing, BEGIN_HELD, within=60, kinds=("drain_worker",)
    ),
    "a worker takes what it has settled": Defect(
        HeldTasks,
        "is_settled",
        _never,
        BEGIN_ONCE,
        within=30,
        changes={"rates": {"stale": 0.3}},
        also=(attempts, "LOOK", without(attempts.LOOK, "id NOT IN (SELECT value FROM json_each(?))", "json_valid(?)")),
    ),
    "a worker begins without believing that it lives": Defect(
        Identity, "is_alive", True, BEGIN_HELD, within=30, kinds=("freeze_worker", "cut_from_database")
    ),
    "servers take no turns": Defect(Dispatcher, "wish", _does_nothing, NO_IDLE_SLOT, within=30),
    "a watchdog does not beat": Defect(
        Watch, "_vouch", _does_nothing, HEALTHY_KEEPS, within=30, kinds=("stall_worker",)
    ),
    "a watchdog gives nothing back": Defect(
        Watch, "_give_back", _does_nothing, BLOCKED_LOSES, within=30, kinds=("stall_worker",)
    ),
    "a watchdog does not know what has begun": Defect(
        Board, "begun", _knows_nothing, WATCHDOG_KEEPS, within=30, kinds=("stall_worker",)
    ),
    "a worker does not see the gate": Defect(
        Gate,
        "check",
        _does_nothing,
        WATCHDOG_KEEPS,
        within=30,
        kinds=("stall_worker",),
        also=(Gate, "is_raised", False),
    ),
    "a worker begins what it finds before its beat": Defect(
        Gate,
        "check",
        _looks_at_once,
        WATCHDOG_KEEPS,
        within=150,
        kinds=("stall_worker",),
        changes={"rates": {"slow_store": 0.4}},
    ),
    "what a watchdog gives back late counts": Defect(
        database,
        "BLOCKED",
        without(database.BLOCKED, "beat = ?", "? > 0"),
        WATCHDOG_KEEPS,
        within=200,
        kinds=("stall_worker",),
        changes={"rates": {"slow_store": 0.1}},
    ),
    "a look from before the standstill counts": Defect(
        Looks,
        "_was_raised_since",
        _never,
        WATCHDOG_KEEPS,
        within=200,
        kinds=("stall_worker",),
        changes={"rates": {"stale": 0.9}},
    ),
    "servers do not look while a worker is blocked": Defect(
        Liveness, "_look_for_given_back", _does_nothing, GIVEN_BACK_RUNS, first=300, within=50, kinds=("stall_worker",)
    ),
    "a watchdog sees no ticks of its worker": Defect(Board, "ticks", 0, HEALTHY_KEEPS, within=30),
    "a watchdog tells nobody": Defect(Watch, "tell", _does_nothing, DEAD_LOSES, within=30, kinds=("kill_worker",)),
    "servers take nothing back": Defect(Liveness, "_take_back_from", _does_nothing, DEAD_LOSES, within=30),
    "servers do not look for orphans": Defect(
        liveness,
        "ORPHANS_SOON",
        1e9,
        DEAD_LOSES,
        within=60,
        kinds=("kill_worker", "lock_tasks"),
        changes={"servers": 1},
    ),
    "servers ignore lost connections": Defect(
        liveness, "POLLS_AFTER_LOSS", 1000, DEAD_LOSES, within=30, kinds=("kill_worker", "kill_watchdog")
    ),
    "a worker does not stop when it is fenced": Defect(
        Worker,
        "_fenced",
        _goes_on_under_another_name,
        FENCED_STOPS,
        within=30,
        kinds=("freeze_worker",),
        also=(Looks, "_drop_missing", _does_nothing),
    ),
    "every loss spends the attempt": Defect(losses, "UNSPENT_LOSSES", 0, SPENT_BY_CULPRIT, within=30),
    "no loss spends the attempt of its culprit": Defect(
        losses, "RECORD_LOST", "SELECT ?, ?, ?", SPENT_BY_CULPRIT, within=30
    ),
    "a server takes event batches of any installation": Defect(
        Subscriber, "_received", _takes_any_installation, ONE_INSTALLATION, within=30
    ),
    "explain does not know that workers have died": Defect(
        explain, "_why", _forgets_losses, EXPLAINED, within=100, kinds=("kill_worker",)
    ),
    "explain takes what is due for scheduled": Defect(
        explain, "_why", _takes_the_creation_for_now, EXPLAINED, within=100
    ),
    "explain sees no worker": Defect(Pools, "serving", _does_nothing, EXPLAINED, first=50, within=30),
    "all suspects run at a time": Defect(Suspects, "_has_place", _always, FEW_SUSPECTS, within=100),
}
