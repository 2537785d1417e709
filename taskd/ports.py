"""The map of what can be swapped: the interfaces between taskd and the world, and the values that cross them.

Every implementation of a port passes the port's suite in ``tests/conformance``. Methods that return an Awaitable
may be ``async def`` or return a Deferred; the caller awaits them and never blocks.

Errors: a store raises :class:`taskd.errors.Unavailable` when it cannot be reached (nothing was confirmed) and domain
errors for refusals; a broker raises :class:`taskd.errors.BrokerUnavailable`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from zope.interface import Attribute, Interface

from taskd.model import DEFAULT_ATTEMPTS, Backoff, NewTask, Route, State, Task, User

# -- values ------------------------------------------------------------------------------------------------------


class Account(msgspec.Struct, frozen=True):
    """A user with its bcrypt hash, for the accounts room only."""

    user: User
    password: str


class NewRow(msgspec.Struct, frozen=True):
    """One task to insert; ``state`` is QUEUED where the window has room, else WAITING."""

    user_id: int
    spec: NewTask
    state: State


class Keyed(NamedTuple):
    """The task that was stored under an idempotency key, and what was asked for."""

    task_id: int
    fingerprint: str


class Dispatch(NamedTuple):
    """What a broker message says: which task, and the number of the dispatch it belongs to."""

    task_id: int
    dispatch: int


class OutboxBatch(msgspec.Struct, frozen=True):
    """An outbox row that outlived its publisher: what of it still waits for a worker, by route."""

    id: str
    messages: Mapping[Route, Sequence[Dispatch]]


class Dispatched(msgspec.Struct, frozen=True):
    """One turn of the dispatcher.

    ``last_user`` is where the next turn goes on in the round of users, None when the round is complete and the next
    turn begins anew. ``more`` says that the turn was cut short by its limit: ``len(tasks) == limit``. A round none of
    whose turns had ``more`` was clean: it left nothing behind but what came meanwhile or another server had in hand.
    """

    tasks: Sequence[Task]
    last_user: int | None
    more: bool


class Claim(NamedTuple):
    """A delivery that a worker wants to run; ``alone`` when it runs no other last attempt beside it. ``max_attempts``
    is what its kind has, for a task that did not ask for a number."""

    task_id: int
    dispatch: int
    redelivered: bool
    alone: bool = False
    max_attempts: int = DEFAULT_ATTEMPTS


class Outcome(msgspec.Struct, frozen=True):
    """How an attempt ended: COMPLETED with a ``result`` (JSON text), FAILED, or WAITING to be tried again after
    ``delay`` seconds. An attempt that failed has an ``error`` (one line) and perhaps a ``trace`` (several)."""

    task_id: int
    dispatch: int
    attempt: int
    state: State
    result: str | None = None
    error: str | None = None
    trace: str | None = None
    delay: float = 0.0


class Finished(NamedTuple):
    """What the store made of an outcome that was not fenced. ``finished_at`` is None, and ``run_at`` is there, for a
    task that is to be tried again. ``version`` is 0 when it has gone on since, as a repetition may find: then others
    have told of it already."""

    version: int
    finished_at: datetime | None
    run_at: datetime | None = None


class Failed(NamedTuple):
    """An attempt that failed, or was lost with its worker."""

    dispatch: int
    attempt: int
    worker: str
    started_at: datetime | None
    ended_at: datetime
    error: str
    trace: str | None


class LogPlace(NamedTuple):
    """A line of a task's log: the number ``line``, from 1 on, of an attempt. Places sort as the lines were written."""

    dispatch: int
    attempt: int
    line: int


class LogChunk(NamedTuple):
    """Lines of a log, one after the other from ``place`` on. What is missing between two chunks was cut."""

    place: LogPlace
    at: datetime
    lines: Sequence[str]


class Report(msgspec.Struct, frozen=True):
    """What a running attempt has said since its last report.

    ``first_line`` is the number of the first of ``lines``, which makes a repetition harmless. With ``keep_from`` above
    1, everything in the log before that line of this attempt is dropped, earlier attempts included. ``progress`` and
    ``note`` are None when nothing new was said of them.
    """

    task_id: int
    dispatch: int
    attempt: int
    progress: float | None = None
    note: str | None = None
    first_line: int = 1
    lines: Sequence[str] = ()
    keep_from: int = 1


class KindInfo(msgspec.Struct, frozen=True):
    """What a worker says of a kind that it serves. ``timeout`` is in seconds, ``isolation`` one of
    :data:`ISOLATIONS`; ``summary`` is one line for people."""

    kind: str
    isolation: str
    timeout: float | None = None
    max_attempts: int = DEFAULT_ATTEMPTS
    summary: str = ""


class WorkerInfo(msgspec.Struct, frozen=True):
    """A worker that lives: every kind of ``kinds`` of every queue of ``queues``, ``slots`` tasks at a time."""

    name: str
    queues: Sequence[str]
    kinds: Sequence[KindInfo]
    slots: int


class TaskQuery(msgspec.Struct, frozen=True):
    """A page of one user's tasks, newest first.

    ``state`` is one of :data:`taskd.model.SHOWN_STATES`, ``status`` one of :data:`taskd.model.STATUSES`; ``before`` is
    the task id below which the page begins; ``limit`` is 1 to 500.
    """

    limit: int
    before: int | None = None
    status: str | None = None
    state: str | None = None
    kind: str | None = None


class Page(msgspec.Struct, frozen=True):
    """``before`` for the next page, None on the last. With a filter a page may be short, or empty, and not the last."""

    tasks: Sequence[Task]
    before: int | None


# -- the store ---------------------------------------------------------------------------------------------------


class ITaskStore(Interface):
    """The truth: users, sessions, tasks and every change of state. What a method confirms has been flushed."""

    ready: bool = Attribute("True while the store can be reached and its schema is the code's")

    def start() -> Awaitable[None]:
        """Connect and migrate. Keeps trying while the database is away. Raises SchemaTooNew."""

    def stop() -> Awaitable[None]:
        """Close every connection; calls under way fail with Unavailable."""

    # accounts

    def create_user(username: str, key: str, password: str) -> Awaitable[User]:
        """Store a user under its unique ``key``. Raises UsernameInUse."""

    def find_user(key: str) -> Awaitable[Account | None]:
        """The account under this key."""

    def open_session(user_id: int, token_hash: bytes, seconds: int) -> Awaitable[None]:
        """Remember a session token's hash for this long; drops the user's expired ones."""

    def find_session(token_hash: bytes) -> Awaitable[User | None]:
        """Whose unexpired session this is."""

    def close_session(token_hash: bytes) -> Awaitable[None]:
        """Forget a session, if it is there."""

    # a task's life: see the state table in docs/architecture.md

    def create_tasks(batch: str, rows: Sequence[NewRow], settled: Sequence[str] = ()) -> Awaitable[Sequence[Task]]:
        """Insert all rows or none, in order, and one outbox row ``batch`` (a UUID) that names them; delete the
        ``settled`` outbox rows. Running the same batch again creates nothing and returns the same tasks.

        A QUEUED row has dispatch number 1, a WAITING one 0; one with a ``run_at`` in the future, which is WAITING,
        joins the backlog by :meth:`promote` only. Raises KeyTaken, and stores nothing, when the key of a row
        is taken: :meth:`find_keys` then finds it.
        """

    def find_keys(keys: Sequence[tuple[int, str]]) -> Awaitable[Mapping[tuple[int, str], Keyed]]:
        """Which of these (user id, key) are taken, and by what."""

    def dispatch(batch: str, route: Route, limit: int, after_user: int | None) -> Awaitable[Dispatched]:
        """Move up to ``limit`` tasks of a route's backlog from waiting to queued under an outbox row ``batch``:
        round-robin over the users behind ``after_user`` (None: from the first), oldest first within a user.

        A round that needs several turns gives every user one task, lest those of the last turn get a turn for
        themselves; one that fits into a turn gives equal shares, and what is left to those who have more. Safe to run
        on several servers at once; running the same batch again moves nothing more."""

    def promote(limit: int) -> Awaitable[Sequence[tuple[Route, int]]]:
        """Move up to ``limit`` delayed tasks whose ``run_at`` has come into the backlog, the longest overdue first;
        the distinct (route, user id) pairs they belong to. Empty when there are none. Safe to run on several servers
        at once."""

    def settle(batches: Sequence[str]) -> Awaitable[None]:
        """Delete outbox rows whose messages were all confirmed."""

    def take_over(older_than: float, limit: int) -> Awaitable[Sequence[OutboxBatch]]:
        """Outbox rows not published for ``older_than`` seconds, now this caller's to publish; at most one caller
        gets each. Only messages whose task is still queued under that dispatch number are named."""

    def claim(worker: str, lease: float, claims: Sequence[Claim]) -> Awaitable[Sequence[Task]]:
        """queued -> running under the next attempt, for ``lease`` seconds. Returns the tasks that are this worker's
        now. A redelivered message also takes a running task over; claiming what this worker already holds changes
        nothing and returns it. The last attempt, when the one before was lost with its worker, is only for a
        claim that is ``alone``: a task that kills its worker must not take those beside it along each time. The error
        of an attempt before is gone."""

    def finish(worker: str, outcomes: Sequence[Outcome], again: bool = False) -> Awaitable[Mapping[int, Finished]]:
        """running -> completed, failed, or waiting and not due before the delay is over, where dispatch, attempt and
        worker still match. Attempts that failed are kept, for :meth:`failed_attempts`. A task id missing from the
        answer was fenced. With ``again`` (the batch may have been committed before) what is so finished already
        counts as finished by this call."""

    def release(worker: str, held: Sequence[Claim]) -> Awaitable[Sequence[Task]]:
        """Give running tasks back: running -> waiting, the attempt unspent."""

    def renew(worker: str, lease: float, task_ids: Sequence[int]) -> Awaitable[frozenset[int]]:
        """Renew the leases of what a worker runs in one statement; those of the ids that it still holds. What it holds
        without knowing, by a claim whose answer was lost, is left to expire."""

    def report(worker: str, reports: Sequence[Report]) -> Awaitable[frozenset[int]]:
        """Store what running attempts have said; the ids of those that are still this worker's. The others' reports
        are not stored. ``version`` does not change."""

    def cancel(user_id: int, task_id: int) -> Awaitable[Task]:
        """waiting, queued or running -> cancelled. Cancelling a cancelled task changes nothing. Raises NotFound,
        Conflict."""

    def retry(user_id: int, task_id: int) -> Awaitable[Task]:
        """failed or cancelled -> waiting and due, its attempts counted from 0 again, as if nothing had been tried but
        for the log and the failed attempts, which stay. Raises NotFound, and Conflict in any other state."""

    # repair

    def expire_leases(limit: int) -> Awaitable[Sequence[Task]]:
        """Take running tasks whose lease has expired back to waiting, or to failed when attempts are spent. The
        attempts are kept as failed ones."""

    def requeue_lost(route: Route, older_than: float, limit: int) -> Awaitable[Sequence[Task]]:
        """queued for more than ``older_than`` seconds -> waiting: their messages are lost."""

    def reset_in_flight() -> Awaitable[int]:
        """Take all queued and running tasks back as if every lease had expired, and empty the outbox: for the start of
        a server that has the store to itself. Returns how many."""

    def count_queued() -> Awaitable[Mapping[Route, int]]:
        """Tasks in state queued, by route. Costs no more than the windows are large."""

    def delete_finished(seconds: float, after_id: int, limit: int) -> Awaitable[tuple[int, int | None]]:
        """Look at the ``limit`` oldest tasks with an id above ``after_id`` and delete those that ended more than so
        many seconds ago, with their logs and attempts. Returns how many, and the id of the last one looked at: None
        when there are none left that were created so long ago."""

    # workers

    def worker_seen(worker: WorkerInfo) -> Awaitable[None]:
        """This worker lives and serves this. What it said before is replaced."""

    def worker_gone(name: str) -> Awaitable[None]:
        """This worker has stopped."""

    def list_workers(seconds: float) -> Awaitable[Sequence[WorkerInfo]]:
        """Workers seen in the last so many seconds, by name. Forgets those that were not for a day."""

    def usernames(user_ids: Sequence[int]) -> Awaitable[Mapping[int, str]]:
        """The names of these users, as far as they exist."""

    # reading

    def get_tasks(user_id: int, ids: Sequence[int]) -> Awaitable[Sequence[Task]]:
        """Those of the ids that are this user's, in no particular order."""

    def find_tasks(ids: Sequence[int]) -> Awaitable[Sequence[Task]]:
        """Those of the ids that exist, whoever's they are, in no particular order."""

    def list_tasks(user_id: int, query: TaskQuery) -> Awaitable[Page]:
        """A page, newest first. Its cost does not grow with the length of the list."""

    def failed_attempts(task_id: int) -> Awaitable[Sequence[Failed]]:
        """The attempts of a task that failed or were lost, in the order in which they ended; the last 100."""

    def read_log(task_id: int, after: LogPlace | None, limit: int) -> Awaitable[Sequence[LogChunk]]:
        """The log of a task behind a place, from the first line that there is: up to ``limit`` chunks, in order. The
        first of them may begin before that place or at it."""

    def log_bytes(task_id: int) -> Awaitable[int]:
        """How much of a log there is, in bytes of UTF-8."""


# -- the broker --------------------------------------------------------------------------------------------------

CHANGES = "changes"
"""The topic of what servers tell their clients: changes of state, progress, log lines, workers that come and go."""

ORDERS = "orders"
"""The topic of what workers must hear: cancelled tasks. Few, so that a worker need not read all changes."""


class Delivery(msgspec.Struct, eq=False):
    """A message in a consumer's hands until it is acked. ``tag`` is the adapter's own."""

    task_id: int
    dispatch: int
    redelivered: bool
    tag: Any


class IConsumer(Interface):
    """One subscription to a work queue. It survives reconnects; deliveries of a lost channel do not."""

    ready: bool = Attribute("True while messages can arrive")

    def ack(deliveries: Sequence[Delivery]) -> None:
        """Settle deliveries for good. Those of a lost channel are ignored: the broker redelivers them."""

    def requeue(deliveries: Sequence[Delivery]) -> None:
        """Give deliveries back unworked, for any consumer."""

    def stop() -> Awaitable[None]:
        """Take no more deliveries; those taken can still be acked."""


class IBroker(Interface):
    """Distributes task ids to workers, and news of changes to all servers. Promises nothing but speed: the store is
    the truth, so a message may come late, twice or never."""

    ready: bool = Attribute("True while messages can be published")

    def start() -> Awaitable[None]:
        """Begin connecting; returns at once and keeps trying. Readiness is in ``ready``."""

    def stop() -> Awaitable[None]:
        """Close the connections; unacked deliveries go back to their queues."""

    # a queue here is a name that Route.name gave

    def publish(queue: str, messages: Sequence[Dispatch]) -> Awaitable[None]:
        """Hand messages over; done when each is confirmed and routed. Raises BrokerUnavailable."""

    def consume(
        queue: str,
        prefetch: int,
        on_deliveries: Callable[[Sequence[Delivery]], None],
        on_lost: Callable[[], None],
    ) -> IConsumer:
        """Deliver messages in lists of up to ``prefetch`` unacked ones. ``on_lost`` tells that every delivery so far is
        void, as the channel is gone."""

    def depth(queue: str) -> Awaitable[int]:
        """Messages ready in the queue. Raises BrokerUnavailable."""

    def announce(news: bytes, topic: str = CHANGES) -> None:
        """Send news, which are not empty, to every subscriber of a topic, this process's own included. Dropped when the
        broker is away; every subscriber is told of a gap when it is back."""

    def subscribe(on_news: Callable[[bytes], None], on_gap: Callable[[], None], topic: str = CHANGES) -> None:
        """Hear all news of a topic from now on. ``on_gap`` tells that some may have been missed, each time it may be
        so."""


# -- what a worker runs ------------------------------------------------------------------------------------------


ISOLATIONS = ("async", "thread", "process", "program")
"""Ways of running: on the reactor, in a thread, in a child process that is reused, as a program of its own."""


class ITaskContext(Interface):
    """What a handler gets: its task, and ways to say how it goes. The same calls work on the reactor, in a thread and
    in a child process."""

    id: int = Attribute("the task's number; with attempt an idempotency key for what the handler does elsewhere")
    attempt: int = Attribute("which attempt this is, from 1 on")
    max_attempts: int = Attribute("after how many the task has failed")
    user: str = Attribute("the owner's username")
    task: str = Attribute("what it is, in the owner's words")
    kind: str = Attribute("the kind it is run as")
    queue: str = Attribute("the queue it came through")
    payload: Mapping[str, Any] = Attribute("the arguments, a JSON object")
    cancelled: bool = Attribute("True once the attempt should end: cancelled, out of time, or the worker stops")

    def progress(fraction: float, note: str = "") -> Awaitable[None]:
        """Say how far it is, from 0 to 1, and at what. It is said at once; awaiting is allowed and never needed."""

    def log(text: str) -> None:
        """Add a line, or several, to the task's log."""


class ITaskHandler(Interface):
    """Runs the tasks of one kind. What provides it in a Twisted plugin is served by every worker there."""

    kind: str = Attribute("the kind of task it serves")
    isolation: str = Attribute("'async', 'thread' or 'process': where run() is called")
    timeout: float | None = Attribute("seconds that an attempt may take; a task may ask for less")
    max_attempts: int = Attribute("how often a task is tried that does not say so itself")
    backoff: Backoff = Attribute("how long to wait between attempts")
    summary: str = Attribute("one line for people")

    def run(task: ITaskContext) -> Any:
        """Do the work; the answer is the result, any JSON value. With isolation ``async`` it must not block, and its
        answer is awaited. Raising fails the attempt: taskd.worker.Retry and taskd.worker.Reject say how."""
