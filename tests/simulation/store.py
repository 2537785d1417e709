"""The unreliable link of each process to the shared database."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from zope.interface import implementer

from taskd.model.errors import Unavailable
from taskd.model.tasks import FailedAttempt, NewTask, Route, Task
from taskd.model.users import User
from taskd.ports.accounts import Account
from taskd.ports.attempts import Claim, Finished, Outcome
from taskd.ports.logs import LogChunk, LogPlace, Report
from taskd.ports.scheduling import Dispatched, OutboxBatch
from taskd.ports.store import IStore
from taskd.ports.tasks import Keyed, Page, TaskQuery
from taskd.ports.workers import WorkerInfo

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.world import World

REPEAT_AFTER = 0.1
"""Seconds before a link repeats a call that may have been executed."""


class _Call:
    """A call under way. ``maybe_executed`` means that it may have been executed. ``sent`` counts its tries."""

    __slots__ = ("args", "deadline", "done", "maybe_executed", "name", "repeat", "sent", "stream")

    def __init__(self, name: str, args: Sequence[Any], repeat: bool, stream: Any) -> None:
        self.name = name
        self.args = args
        self.repeat = repeat
        self.stream = stream
        self.done: Deferred[Any] = Deferred()
        self.maybe_executed = False
        self.sent = 0
        self.deadline: float | None = None


@implementer(IStore)
class StoreLink:
    """The IStore of one process: the shared store with delays, refusals, lost answers and outages.

    Like the PostgreSQL store, it repeats for a while a call that may have been executed, if the call can be repeated. A
    call of a killed process may still be executed.
    """

    def __init__(self, world: World, process: Process) -> None:
        self.ready = False
        self.disturbed = 0.0
        """The time of the last call that was answered late or not at all."""
        self._world = world
        self._database = world.database
        self._process = process
        self._plan = world.plan
        self._cut = False
        self._started = False
        self._stopped = False
        self._open: dict[_Call, None] = {}
        self._database.links.append(self)

    # -- faults

    @property
    def _reached(self) -> bool:
        return self._database.up and not self._cut

    def cut(self, cut: bool) -> None:
        """Cut the network between this process and the database, or mend it."""
        self._cut = cut
        self.changed()

    def changed(self) -> None:
        """The database may have become reachable or unreachable. The process notices it a little later."""
        stream = self._world.stream(self._process.name, "store notices")
        self._process.clock.callLater(stream.uniform(0, 1.0), self._notice)

    def _notice(self) -> None:
        self.ready = self._started and not self._stopped and self._reached

    # -- calls

    def _call(self, name: str, *args: Any, repeat: bool = True, about: str = "") -> Deferred[Any]:
        call = _Call(name, args, repeat, self._world.stream(self._process.name, name, about))
        if self._stopped:
            call.done.errback(Unavailable("the store is closed"))
        else:
            self._open[call] = None
            self._send(call)
        return call.done

    def _send(self, call: _Call) -> None:
        if call not in self._open:
            return
        stream, later = call.stream, self._process.clock.callLater
        call.sent += 1
        if not self.ready:
            self._note_disturbance()
            later(stream.choice((0.0, 0.2, 1.0)), self._refuse, call)
            return
        rates, kind = self._world.rates, stream.random()
        there, back = self._delay(stream), self._delay(stream)
        if max(there, back) > 1:
            self._note_disturbance()
        if rates and kind < rates.refused:
            self._note_disturbance()
            later(there, self._refuse, call)
        elif rates and kind < rates.refused + rates.ambiguous:
            self._world.clock.call(
                None, there, self._arrive, call, partial(later, back, self._answer_lost, call, call.sent)
            )
        elif rates and kind < rates.refused + rates.ambiguous + rates.straggling:
            late = stream.uniform(0, 4.0)
            self._world.clock.call(None, late, self._arrive, call, lambda _: None)
            later(there, self._answer_lost, call, call.sent)
        else:
            answer = partial(self._answer, call, call.sent, back)
            self._world.clock.call(None, there, self._arrive, call, answer)

    def _note_disturbance(self) -> None:
        self.disturbed = self._world.clock.seconds()

    def _delay(self, stream: Any) -> float:
        rates = self._world.rates
        if rates and stream.random() < rates.slow_store:
            return float(stream.uniform(0, 3.0))
        return float(stream.expovariate(1 / self._plan.store_seconds))

    def _arrive(self, call: _Call, answer: Any) -> None:
        """The call arrives at the database, unless that cannot be reached."""
        if self._process.dead and call.stream.random() < 0.5:
            return
        if not self._reached:
            self._process.clock.callLater(call.stream.uniform(0, 1.0), self._answer_lost, call, call.sent)
            return
        result: Any
        try:
            result = self._database.perform(self._process.name, call.name, *call.args, again=call.maybe_executed)
        except Exception as e:
            result = e
        else:
            if call.name == "renew":
                self._world.referee.renewed(self._process.name, result, self._process.tasks())
        answer(result)

    def _answer(self, call: _Call, sent: int, back: float, result: Any) -> None:
        self._process.clock.callLater(back, self._answered, call, sent, result)

    def _answered(self, call: _Call, sent: int, result: Any) -> None:
        if call not in self._open or call.sent != sent:
            return
        del self._open[call]
        if isinstance(result, Exception):
            call.done.errback(result)
        else:
            call.done.callback(result)

    def _refuse(self, call: _Call) -> None:
        if call.maybe_executed:
            self._answer_lost(call, call.sent)
        else:
            self._fail(call, "the database is too busy now")

    def _answer_lost(self, call: _Call, sent: int, _: object = None) -> None:
        if call not in self._open or call.sent != sent:
            return
        self._note_disturbance()
        call.maybe_executed = True
        now = self._world.clock.seconds()
        if call.deadline is None:
            call.deadline = now + self._plan.retry_seconds
        if now >= call.deadline or not call.repeat:
            self._fail(call, "the database connection was lost")
        else:
            self._process.clock.callLater(REPEAT_AFTER, self._send, call)

    def _fail(self, call: _Call, why: str) -> None:
        if call in self._open:
            del self._open[call]
            self._world.note(self._process.name, "store", f"{call.name}: {why}")
            call.done.errback(Unavailable(why))

    # -- IStore

    async def start(self) -> None:
        while not self._reached and not self._stopped:
            await deferLater(self._process.clock, 0.5)
        if self._stopped:
            raise Unavailable("the store is closed")
        self._started = self.ready = True

    async def stop(self) -> None:
        self._stopped = True
        self.ready = False
        for call in tuple(self._open):
            self._fail(call, "the store is closed")

    def create_user(self, username: str, key: str, password: str) -> Awaitable[User]:
        return self._call("create_user", username, key, password)

    def find_user(self, key: str) -> Awaitable[Account | None]:
        return self._call("find_user", key)

    def open_session(self, user_id: int, token_hash: bytes, seconds: int) -> Awaitable[None]:
        return self._call("open_session", user_id, token_hash, seconds)

    def find_session(self, token_hash: bytes) -> Awaitable[User | None]:
        return self._call("find_session", token_hash)

    def close_session(self, token_hash: bytes) -> Awaitable[None]:
        return self._call("close_session", token_hash)

    def create_tasks(
        self, batch: str, rows: Sequence[NewTask], settled: Sequence[str] = ()
    ) -> Awaitable[Sequence[Task]]:
        return self._call("create_tasks", batch, rows, settled)

    def find_keys(self, keys: Sequence[tuple[int, str]]) -> Awaitable[Mapping[tuple[int, str], Keyed]]:
        return self._call("find_keys", keys)

    def dispatch(self, batch: str, route: Route, limit: int, after_user: int | None) -> Awaitable[Dispatched]:
        return self._call("dispatch", batch, route, limit, after_user, about=route.name)

    def promote(self, limit: int) -> Awaitable[Sequence[tuple[Route, int]]]:
        return self._call("promote", limit, repeat=False)

    def mark_published(self, batches: Sequence[str]) -> Awaitable[None]:
        return self._call("mark_published", batches)

    def adopt_stale(self, older_than: float, limit: int) -> Awaitable[Sequence[OutboxBatch]]:
        return self._call("adopt_stale", older_than, limit, repeat=False)

    def claim(self, worker: str, lease: float, claims: Sequence[Claim]) -> Awaitable[Sequence[Task]]:
        return self._call("claim", worker, lease, claims)

    def finish(
        self, worker: str, outcomes: Sequence[Outcome], again: bool = False
    ) -> Awaitable[Mapping[int, Finished]]:
        return self._call("finish", worker, outcomes, again)

    def release(self, worker: str, held: Sequence[Claim]) -> Awaitable[Sequence[Task]]:
        return self._call("release", worker, held)

    def renew(self, worker: str, lease: float, task_ids: Sequence[int]) -> Awaitable[frozenset[int]]:
        return self._call("renew", worker, lease, task_ids)

    def cancel(self, user_id: int, task_id: int) -> Awaitable[Task]:
        return self._call("cancel", user_id, task_id)

    def retry(self, user_id: int, task_id: int) -> Awaitable[Task]:
        return self._call("retry", user_id, task_id)

    def report(self, worker: str, reports: Sequence[Report]) -> Awaitable[frozenset[int]]:
        return self._call("report", worker, reports)

    def expire_leases(self, limit: int) -> Awaitable[Sequence[Task]]:
        return self._call("expire_leases", limit, repeat=False)

    def requeue_lost(self, route: Route, older_than: float, limit: int) -> Awaitable[Sequence[Task]]:
        return self._call("requeue_lost", route, older_than, limit, repeat=False)

    def reset_in_flight(self) -> Awaitable[int]:
        return self._call("reset_in_flight")

    def count_queued(self) -> Awaitable[Mapping[Route, int]]:
        return self._call("count_queued")

    def delete_finished(self, seconds: float, after_id: int, limit: int) -> Awaitable[tuple[int, int | None]]:
        return self._call("delete_finished", seconds, after_id, limit)

    def worker_seen(self, worker: WorkerInfo) -> Awaitable[None]:
        return self._call("worker_seen", worker)

    def worker_gone(self, name: str) -> Awaitable[None]:
        return self._call("worker_gone", name)

    def list_workers(self, seconds: float) -> Awaitable[Sequence[WorkerInfo]]:
        return self._call("list_workers", seconds)

    def usernames(self, user_ids: Sequence[int]) -> Awaitable[Mapping[int, str]]:
        return self._call("usernames", user_ids)

    def get_tasks(self, user_id: int, ids: Sequence[int]) -> Awaitable[Sequence[Task]]:
        return self._call("get_tasks", user_id, ids)

    def find_tasks(self, ids: Sequence[int]) -> Awaitable[Sequence[Task]]:
        return self._call("find_tasks", ids)

    def list_tasks(self, user_id: int, query: TaskQuery) -> Awaitable[Page]:
        return self._call("list_tasks", user_id, query)

    def failed_attempts(self, task_id: int) -> Awaitable[Sequence[FailedAttempt]]:
        return self._call("failed_attempts", task_id)

    def read_log(self, task_id: int, after: LogPlace | None, limit: int) -> Awaitable[Sequence[LogChunk]]:
        return self._call("read_log", task_id, after, limit)

    def log_bytes(self, task_id: int) -> Awaitable[int]:
        return self._call("log_bytes", task_id)
