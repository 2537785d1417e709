"""The unreliable link of each process to the shared database."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from zope.interface import implementer

from taskd.model.errors import Unavailable
from taskd.model.quotas import Quota
from taskd.model.tasks import FailedAttempt, NewTask, Route, Task
from taskd.model.users import Role, User
from taskd.ports.accounts import Account, Audited, Entry, Factor, Invitation, NewSession, Session, UserRow
from taskd.ports.attempts import Assigned, Begun, Claim, Finished, Held, Outcome, Standing, Started
from taskd.ports.logs import LogChunk, LogPlace, Report
from taskd.ports.overview import Line, Overview
from taskd.ports.quotas import Usage, UsageDelta
from taskd.ports.scheduling import Pool, Turn
from taskd.ports.store import IStore
from taskd.ports.tasks import Created, Keyed, Page, TaskQuery, TaskState
from taskd.ports.workers import Beaten, Digest, Mean, WorkerInfo, WorkerPoll
from tests.simulation.database import Connection

if TYPE_CHECKING:
    from tests.simulation.processes import Process, ServerProcess, WorkerProcess
    from tests.simulation.world import World

REPEAT_AFTER = 0.1
"""Seconds before a link repeats a call that may have been executed."""

STATEMENT_TIMEOUT = 10.0
"""Seconds that a call waits for a lock at most."""

_SERIES = frozenset({"poll_workers", "take_back"})
"""Calls that a server must have answered to find the dead in time."""

_PICTURES = frozenset({"poll_workers", "look", "standing"})
"""Calls whose answers tell what was, and may be old when they arrive."""

READS = frozenset(
    {
        "find_user",
        "find_users",
        "find_sessions",
        "find_keys",
        "find_tasks",
        "get_tasks",
        "list_tasks",
        "count_tasks",
        "count_line",
        "read_usage",
    }
    | {"find_states", "get_listed", "failed_attempts", "read_log", "log_bytes", "look", "standing"}
    | {"list_users", "list_sessions", "list_invitations", "is_invited", "count_refusals", "list_audit", "deleted_users"}
)
"""Calls that a database which takes no changes answers. A poll is not one of them: beats fail then, and nobody may
count their absence."""

_WITHOUT_TASKS = frozenset(
    {"beat", "poll_workers", "register", "worker_draining", "worker_gone", "find_sessions", "sweep_accounts"}
)
"""Calls that a lock on the table of the tasks does not keep waiting."""


class _Call:
    """A call under way. ``maybe_executed`` means that it may have been executed. ``sent`` counts its tries,
    ``connection`` is that of the last. ``hindered``: a try was sent while faults occurred."""

    __slots__ = (
        "args",
        "connection",
        "deadline",
        "done",
        "hindered",
        "maybe_executed",
        "name",
        "repeat",
        "sent",
        "stream",
    )

    def __init__(self, name: str, args: Sequence[Any], repeat: bool, stream: Any) -> None:
        self.name = name
        self.args = args
        self.repeat = repeat
        self.stream = stream
        self.done: Deferred[Any] = Deferred()
        self.hindered = False
        self.maybe_executed = False
        self.sent = 0
        self.connection: Connection | None = None
        self.deadline: float | None = None


@implementer(IStore)
class StoreLink:
    """The IStore of one process: the shared store with delays, refusals, lost and late answers, locks and outages.

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
        self.connection = Connection(world.database.epoch)
        self._cut = False
        self._started = False
        self._stopped = False
        self._open: dict[_Call, None] = {}
        self._notices = world.stream(process.name, "store notices")
        self._database.links.append(self)

    @property
    def installation(self) -> str:
        """That of the shared store."""
        return self._database.store.installation

    # -- faults

    @property
    def reached(self) -> bool:
        """Whether calls reach the database."""
        return not self._cut and self._database.is_open(self.connection)

    def cut(self, cut: bool) -> None:
        """Cut the network between this process and the database, or mend it.

        The database notices nothing of a cut. After it, the old connection goes on or is replaced."""
        if self._cut and not cut and self._notices.random() < 0.5:
            self.connection.closed = True
        self._cut = cut
        self.changed()

    def disconnect(self) -> None:
        """The database closes the connection of this process."""
        self.connection.closed = True
        self.changed(0.3)

    def changed(self, within: float = 0.0) -> None:
        """The database may have become reachable or unreachable. The process notices it some seconds later: it tries
        again after pauses."""
        within = within or self._notices.choice((1.0, 1.0, 5.0))
        self._process.clock.callLater(self._notices.uniform(0, within), self._notice)

    def _notice(self) -> None:
        if self._database.up and not (self._cut or self._process.dead or self._database.is_open(self.connection)):
            self.connection = Connection(self._database.epoch)
        self.ready = self._started and not self._stopped and self.reached

    # -- calls

    @property
    def hindered(self) -> bool:
        """Whether the process waits for the answer to a call that faults may still delay."""
        return any(call.hindered for call in self._open)

    def _call(self, name: str, *args: Any, repeat: bool = True, about: str = "") -> Deferred[Any]:
        call = _Call(name, args, repeat, self._world.stream(self._process.name, name, about))
        if self._stopped:
            call.done.errback(Unavailable("the store is closed"))
        else:
            self._open[call] = None
            if name in _SERIES:
                cast("ServerProcess", self._process).series.asked(call, self._world.clock.seconds())
            self._send(call)
        return call.done

    def _closed(self, call: _Call, result: Any) -> None:
        """The process has an answer, or gets none."""
        del self._open[call]
        if call.hindered:
            self._world.late_effect()
        process, good = self._process, not isinstance(result, Exception)
        if call.name in _SERIES:
            cast("ServerProcess", process).series.answered(call, self._world.clock.seconds(), good)
        elif call.name == "beat":
            name = call.args[0]
            if not good:
                self._world.holders.disturbed(name)
            elif not result.accepted:
                self._world.holders.fenced(cast("WorkerProcess", process), name)

    def _send(self, call: _Call) -> None:
        if call not in self._open:
            return
        stream, later = call.stream, self._process.clock.callLater
        call.sent += 1
        call.connection = self.connection
        if not self.ready:
            self._note_disturbance()
            later(stream.choice((0.0, 0.2, 1.0)), self._refuse, call)
            return
        rates, kind = self._world.rates, stream.random()
        call.hindered = call.hindered or rates is not None
        there, back = self._delay(stream), self._delay(stream)
        if rates and call.name in _PICTURES and stream.random() < rates.stale:
            back = stream.uniform(0, 10.0)
        if max(there, back) > 1:
            self._note_disturbance()
            if call.name == "beat":
                self._world.holders.disturbed(call.args[0])
        if rates and kind < rates.refused:
            self._note_disturbance()
            later(there, self._refuse, call)
        elif rates and kind < rates.refused + rates.ambiguous:
            self._world.clock.call(
                None, there, self._arrive, call, partial(later, back, self._answer_lost, call, call.sent)
            )
        elif rates and kind < rates.refused + rates.ambiguous + rates.straggling:
            late = stream.uniform(0, 4.0)
            self._world.clock.call(None, late, self._arrive_late, call, self.connection)
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

    def _arrive_late(self, call: _Call, connection: Connection) -> None:
        """A call that is counted as lost arrives, unless the database was restarted since."""
        if connection.epoch == self._database.epoch:
            self._arrive(call, lambda _: None)

    def _arrive(self, call: _Call, answer: Any) -> None:
        """The call arrives at the database, unless that cannot be reached."""
        if self._process.dead:
            # it was under way when the process died
            if call.stream.random() < 0.5 or not self._database.up:
                return
        elif not self.reached or call.connection is not self.connection:
            if call.name == "beat":
                self._world.holders.disturbed(call.args[0])
            self._process.clock.callLater(call.stream.uniform(0, 1.0), self._answer_lost, call, call.sent)
            return
        if self._world.clock.seconds() < self._database.read_only_until and call.name not in READS:
            self._note_disturbance()
            if call.name == "beat":
                self._world.holders.disturbed(call.args[0])
            answer(Unavailable("cannot execute UPDATE in a read-only transaction"))
            return
        locked = self._database.locked_until - self._world.clock.seconds()
        if locked > 0 and call.name not in _WITHOUT_TASKS:
            self._note_disturbance()
            if locked > STATEMENT_TIMEOUT:
                self._world.clock.call(None, STATEMENT_TIMEOUT, self._time_out, answer)
            else:
                self._world.clock.call(None, locked, self._go_on, call, answer)
            return
        answer(self._perform(call))

    def _go_on(self, call: _Call, answer: Any) -> None:
        """The lock has ended for a call that has waited for it: perhaps after the faults, or for a dead process."""
        self._world.late_effect()
        self._arrive(call, answer)

    def _time_out(self, answer: Any) -> None:
        # a fault may have ended meanwhile, and a process still waits for this answer
        self._world.late_effect()
        answer(Unavailable("canceling statement due to statement timeout"))

    def _perform(self, call: _Call) -> Any:
        process, database, holders = self._process, self._database, self._world.holders
        if call.name == "register":
            holders.registered(cast("WorkerProcess", process), call.args[0].name)
        try:
            result = database.perform(process.name, call.name, *call.args, again=call.maybe_executed)
        except Exception as e:
            return e
        if call.name == "beat" and result.accepted:
            database.beaten(call.args[0], self.connection)
        elif call.name == "register":
            database.beaten(call.args[0].name, self.connection)
        elif call.name == "poll_workers":
            pooled = self._plan.pooler
            statuses = [
                msgspec.structs.replace(status, connected=pooled or database.connected(status.info.name))
                for status in result.workers
            ]
            return WorkerPoll(str(database.epoch), statuses)
        return result

    def _answer(self, call: _Call, sent: int, back: float, result: Any) -> None:
        self._process.clock.callLater(back, self._answered, call, sent, result)

    def _answered(self, call: _Call, sent: int, result: Any) -> None:
        if call not in self._open or call.sent != sent:
            return
        self._closed(call, result)
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
            error = Unavailable(why)
            self._closed(call, error)
            self._world.note(self._process.name, "store", f"{call.name}: {why}")
            call.done.errback(error)

    # -- IStore

    def check_writable(self) -> Awaitable[int]:
        return self._call("check_writable")

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._world.clock.seconds(), timezone.utc)

    async def start(self) -> None:
        while not self.reached and not self._stopped:
            await deferLater(self._process.clock, 0.5)
            self._notice()
        if self._stopped:
            raise Unavailable("the store is closed")
        self._started = self.ready = True

    async def stop(self) -> None:
        self._stopped = True
        self.ready = False
        self.connection.closed = True
        for call in tuple(self._open):
            self._fail(call, "the store is closed")

    def create_user(
        self,
        username: str,
        key: str,
        password: str,
        entry: Entry | None = None,
        role: Role = Role.USER,
        invitation: bytes | None = None,
    ) -> Awaitable[User]:
        return self._call("create_user", username, key, password, entry, role, invitation)

    def find_local(self, uid: int) -> Awaitable[User | None]:
        return self._call("find_local", uid)

    def create_local(self, username: str, key: str, uid: int, entry: Entry | None = None) -> Awaitable[User]:
        return self._call("create_local", username, key, uid, entry)

    def bind_local(self, key: str, uid: int | None, entry: Entry | None = None) -> Awaitable[User | None]:
        return self._call("bind_local", key, uid, entry)

    def find_user(self, key: str, network: str = "") -> Awaitable[Account | None]:
        return self._call("find_user", key, network)

    def find_users(self, asked: Sequence[tuple[str, str]]) -> Awaitable[Sequence[Account | None]]:
        return self._call("find_users", asked)

    def list_users(self, after_key: str, limit: int) -> Awaitable[Sequence[UserRow]]:
        return self._call("list_users", after_key, limit)

    def set_role(self, key: str, role: Role, entry: Entry | None = None) -> Awaitable[User | None]:
        return self._call("set_role", key, role, entry)

    def set_disabled(self, key: str, disabled: bool, entry: Entry | None = None) -> Awaitable[User | None]:
        return self._call("set_disabled", key, disabled, entry)

    def set_weight(self, key: str, weight: float, entry: Entry | None = None) -> Awaitable[bool]:
        return self._call("set_weight", key, weight, entry)

    def set_password(
        self, user_id: int, old: str, new: str, keep: bytes | None, entry: Entry | None = None
    ) -> Awaitable[bool]:
        return self._call("set_password", user_id, old, new, keep, entry)

    def replace_hash(self, user_id: int, old: str, new: str) -> Awaitable[bool]:
        return self._call("replace_hash", user_id, old, new)

    def highest_rounds(self) -> Awaitable[int]:
        return self._call("highest_rounds")

    def set_code(self, key: str, code: bytes, seconds: float, entry: Entry | None = None) -> Awaitable[User | None]:
        return self._call("set_code", key, code, seconds, entry)

    def use_code(self, user_id: int, code: bytes, new: str, entry: Entry | None = None) -> Awaitable[bool]:
        return self._call("use_code", user_id, code, new, entry)

    def begin_totp(self, user_id: int, secret: str) -> Awaitable[bool]:
        return self._call("begin_totp", user_id, secret)

    def confirm_totp(
        self, user_id: int, factor: Factor, recovery_codes: Sequence[bytes], session: bytes, entry: Entry | None = None
    ) -> Awaitable[bool]:
        return self._call("confirm_totp", user_id, factor, recovery_codes, session, entry)

    def end_totp(self, user_id: int, factor: Factor, entry: Entry | None = None) -> Awaitable[bool]:
        return self._call("end_totp", user_id, factor, entry)

    def reset_totp(self, key: str, entry: Entry | None = None) -> Awaitable[User | None]:
        return self._call("reset_totp", key, entry)

    def delete_user(self, user_id: int, entry: Entry | None = None) -> Awaitable[bool]:
        return self._call("delete_user", user_id, entry)

    def deleted_users(self) -> Awaitable[Sequence[int]]:
        return self._call("deleted_users")

    def cancel_deleted(self, user_id: int, limit: int) -> Awaitable[Sequence[Task]]:
        return self._call("cancel_deleted", user_id, limit)

    def purge_deleted(self, user_id: int, limit: int) -> Awaitable[bool]:
        return self._call("purge_deleted", user_id, limit)

    def open_session(self, user_id: int, session: NewSession, entry: Entry | None = None) -> Awaitable[None]:
        return self._call("open_session", user_id, session, entry)

    def find_sessions(self, token_hashes: Sequence[bytes], idle: float) -> Awaitable[Mapping[bytes, Session]]:
        return self._call("find_sessions", token_hashes, idle)

    def list_sessions(self, user_id: int, idle: float) -> Awaitable[Sequence[Session]]:
        return self._call("list_sessions", user_id, idle)

    def close_session(self, token_hash: bytes, entry: Entry | None = None) -> Awaitable[None]:
        return self._call("close_session", token_hash, entry)

    def end_session(self, user_id: int, session_id: int, entry: Entry | None = None) -> Awaitable[bool]:
        return self._call("end_session", user_id, session_id, entry)

    def end_sessions(self, user_id: int, keep: bytes | None, entry: Entry | None = None) -> Awaitable[int]:
        return self._call("end_sessions", user_id, keep, entry)

    def create_invitation(self, token_hash: bytes, uses: int, seconds: float, entry: Entry) -> Awaitable[int]:
        return self._call("create_invitation", token_hash, uses, seconds, entry)

    def is_invited(self, token_hash: bytes) -> Awaitable[bool]:
        return self._call("is_invited", token_hash)

    def list_invitations(self) -> Awaitable[Sequence[Invitation]]:
        return self._call("list_invitations")

    def end_invitation(self, invitation_id: int, entry: Entry | None = None) -> Awaitable[bool]:
        return self._call("end_invitation", invitation_id, entry)

    def audit(self, entries: Sequence[Entry]) -> Awaitable[None]:
        return self._call("audit", entries, repeat=False)

    def count_refusals(self, subjects: Sequence[str], seconds: float) -> Awaitable[Sequence[int]]:
        return self._call("count_refusals", subjects, seconds)

    def list_audit(
        self, before_id: int | None, limit: int, subject: str | None = None, action: str | None = None
    ) -> Awaitable[Sequence[Audited]]:
        return self._call("list_audit", before_id, limit, subject, action)

    def sweep_accounts(self, audit_days: float, idle: float) -> Awaitable[bool]:
        return self._call("sweep_accounts", audit_days, idle)

    def draw_ids(self, count: int) -> Awaitable[Sequence[int]]:
        return self._call("draw_ids", count)

    def create_tasks(self, tasks: Sequence[NewTask], spare: int = 0) -> Awaitable[Created]:
        return self._call("create_tasks", tasks, spare)

    def find_keys(self, keys: Sequence[tuple[int, str]]) -> Awaitable[Mapping[tuple[int, str], Keyed]]:
        return self._call("find_keys", keys)

    def assign(self, pool: Pool, limit: int, after_user: int, patient: bool = False) -> Awaitable[Turn]:
        return self._call("assign", pool, limit, after_user, patient, repeat=False)

    def promote(self, limit: int) -> Awaitable[Sequence[tuple[Route, int]]]:
        return self._call("promote", limit, repeat=False)

    def count_tasks(self, user_id: int | None, routes: Sequence[Route]) -> Awaitable[Overview]:
        return self._call("count_tasks", user_id, routes)

    def count_line(self, task: Task, pool: Pool) -> Awaitable[Line]:
        return self._call("count_line", task, pool)

    def look(self, worker: str, known: Sequence[int]) -> Awaitable[Sequence[Assigned]]:
        return self._call("look", worker, known)

    def standing(self, worker: str) -> Awaitable[Sequence[Standing]]:
        return self._call("standing", worker)

    def assert_held(self, worker: str, claims: Sequence[Claim]) -> Awaitable[Sequence[int]]:
        return self._call("assert_held", worker, claims)

    def begin(self, worker: str, begun: Sequence[Begun], flush: bool) -> Awaitable[Mapping[int, Started]]:
        return self._call("begin", worker, begun, flush)

    def finish(
        self, worker: str, outcomes: Sequence[Outcome], again: bool = False
    ) -> Awaitable[Mapping[int, Finished]]:
        return self._call("finish", worker, outcomes, again)

    def release(self, worker: str, held: Sequence[Held], stopping: bool = False) -> Awaitable[Sequence[Task]]:
        return self._call("release", worker, held, stopping)

    def cancel(self, user_id: int, task_id: int) -> Awaitable[Task]:
        return self._call("cancel", user_id, task_id)

    def retry(self, user_id: int, task_id: int) -> Awaitable[Task]:
        return self._call("retry", user_id, task_id)

    def report(self, worker: str, reports: Sequence[Report]) -> Awaitable[frozenset[int]]:
        return self._call("report", worker, reports)

    def take_back(self, dead: Mapping[str, int]) -> Awaitable[Sequence[Task]]:
        return self._call("take_back", dict(dead), repeat=False)

    def reset_in_flight(self) -> Awaitable[int]:
        return self._call("reset_in_flight")

    def delete_finished(self, seconds: float, after_id: int, limit: int) -> Awaitable[tuple[int, int | None]]:
        return self._call("delete_finished", seconds, after_id, limit)

    def add_usage(self, deltas: Sequence[UsageDelta]) -> Awaitable[None]:
        return self._call("add_usage", deltas)

    def read_usage(
        self, user_ids: Sequence[int], open_limit: int, unlimited: int = 0
    ) -> Awaitable[Mapping[int, Usage]]:
        return self._call("read_usage", user_ids, open_limit, unlimited)

    def set_quota(
        self, key: str, changes: Mapping[str, int | None], entry: Entry | None = None
    ) -> Awaitable[Quota | None]:
        return self._call("set_quota", key, changes, entry)

    def fold_usage(self, limit: int) -> Awaitable[int]:
        return self._call("fold_usage", limit)

    def register(self, worker: WorkerInfo) -> Awaitable[None]:
        return self._call("register", worker)

    def beat(self, name: str, hung: Mapping[str, int], means: Sequence[Mean], holds: Digest) -> Awaitable[Beaten]:
        return self._call("beat", name, hung, means, holds, repeat=False)

    def worker_draining(self, name: str) -> Awaitable[None]:
        return self._call("worker_draining", name)

    def worker_gone(self, name: str) -> Awaitable[None]:
        return self._call("worker_gone", name)

    def poll_workers(self) -> Awaitable[WorkerPoll]:
        return self._call("poll_workers")

    def get_tasks(self, user_id: int, ids: Sequence[int]) -> Awaitable[Sequence[Task]]:
        return self._call("get_tasks", user_id, ids)

    def find_tasks(self, ids: Sequence[int]) -> Awaitable[Sequence[Task]]:
        return self._call("find_tasks", ids)

    def get_listed(self, user_id: int, ids: Sequence[int]) -> Awaitable[Sequence[Task]]:
        return self._call("get_listed", user_id, ids)

    def find_states(self, ids: Sequence[int]) -> Awaitable[Sequence[TaskState]]:
        return self._call("find_states", ids)

    def list_tasks(self, user_id: int, query: TaskQuery) -> Awaitable[Page]:
        return self._call("list_tasks", user_id, query)

    def failed_attempts(self, task_id: int) -> Awaitable[Sequence[FailedAttempt]]:
        return self._call("failed_attempts", task_id)

    def read_log(self, task_id: int, after: LogPlace | None, limit: int) -> Awaitable[Sequence[LogChunk]]:
        return self._call("read_log", task_id, after, limit)

    def log_bytes(self, task_id: int) -> Awaitable[int]:
        return self._call("log_bytes", task_id)
