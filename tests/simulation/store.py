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
"""Seconds before a link repeats what may have been done."""


class _Call:
    """A call under way. ``again``: it may have been done. ``sent`` tells the tries apart."""

    __slots__ = ("again", "args", "deadline", "done", "name", "repeat", "sent", "stream")

    def __init__(self, name: str, args: Sequence[Any], repeat: bool, stream: Any) -> None:
        self.name = name
        self.args = args
        self.repeat = repeat
        self.stream = stream
        self.done: Deferred[Any] = Deferred()
        self.again = False
        self.sent = 0
        self.deadline: float | None = None


@implementer(IStore)
class StoreLink:
    """IStore of one process: the shared store behind delays, refusals, lost answers and outages.

    Like the store of many servers it repeats what may have been done, for a while, and what may not be repeated it does
    not. What a killed process has asked for may still be done.
    """

    def __init__(self, world: World, process: Process) -> None:
        self.ready = False
        self.disturbed = 0.0
        """When a call was last not answered, or late."""
        self._world = world
        self._database = world.database
        self._process = process
        self._plan = world.plan
        self._cut = False
        self._started = False
        self._stopped = False
        self._open: dict[_Call, None] = {}
        self._database.links.append(self)

    # -- what the world does to it

    @property
    def _reached(self) -> bool:
        return self._database.up and not self._cut

    def cut(self, cut: bool) -> None:
        """Whether the network between this process and the database is cut."""
        self._cut = cut
        self.changed()

    def changed(self) -> None:
        """The database can be reached no more, or again: it takes a moment to notice."""
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
            self._disturb()
            later(stream.choice((0.0, 0.2, 1.0)), self._refused, call)
            return
        rates, kind = self._world.rates, stream.random()
        there, back = self._takes(stream), self._takes(stream)
        if max(there, back) > 1:
            self._disturb()
        if rates and kind < rates.refused:
            self._disturb()
            later(there, self._refused, call)
        elif rates and kind < rates.refused + rates.ambiguous:
            self._world.clock.call(None, there, self._arrive, call, partial(later, back, self._lost, call, call.sent))
        elif rates and kind < rates.refused + rates.ambiguous + rates.straggling:
            late = stream.uniform(0, 4.0)
            self._world.clock.call(None, late, self._arrive, call, lambda _: None)
            later(there, self._lost, call, call.sent)
        else:
            answer = partial(self._answer, call, call.sent, back)
            self._world.clock.call(None, there, self._arrive, call, answer)

    def _disturb(self) -> None:
        self.disturbed = self._world.clock.seconds()

    def _takes(self, stream: Any) -> float:
        rates = self._world.rates
        if rates and stream.random() < rates.slow_store:
            return float(stream.uniform(0, 3.0))
        return float(stream.expovariate(1 / self._plan.store_seconds))

    def _arrive(self, call: _Call, answer: Any) -> None:
        """The call reaches the database, or not."""
        if self._process.dead and call.stream.random() < 0.5:
            return
        if not self._reached:
            self._process.clock.callLater(call.stream.uniform(0, 1.0), self._lost, call, call.sent)
            return
        result: Any
        try:
            result = self._database.perform(self._process.name, call.name, *call.args, again=call.again)
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

    def _refused(self, call: _Call) -> None:
        if call.again:
            self._lost(call, call.sent)
        else:
            self._fail(call, "the database is too busy now")

    def _lost(self, call: _Call, sent: int, _: object = None) -> None:
        if call not in self._open or call.sent != sent:
            return
        self._disturb()
        call.again = True
        now = self._world.clock.seconds()
        if call.deadline is None:
            call.deadline = now + self._plan.retry
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
