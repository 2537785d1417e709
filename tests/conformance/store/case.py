"""The base case of the store's suite, and its data.

A test case mixes the suite into a StoreCase that makes stores over one fresh database. Where a test needs time to pass,
it uses ages of 0 seconds. What the port cannot do is done by hooks.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Sequence
from typing import Any

from twisted.trial.unittest import TestCase

from taskd.model.states import MOVES, State
from taskd.model.tasks import DEFAULT_KIND, NewTask, Route, Task
from taskd.model.users import User
from taskd.ports.attempts import Claim, Held, Outcome
from taskd.ports.logs import LogPlace, Report
from taskd.ports.scheduling import Dispatched
from taskd.ports.store import IStore
from taskd.ports.tasks import TaskQuery
from taskd.ports.workers import Culprit, KindInfo, WorkerInfo, WorkerStatus

Q, OTHER = Route("q", DEFAULT_KIND), Route("other", DEFAULT_KIND)

TEXTS = [
    "plain",
    "it's \"quoted\" 'twice'",
    "back\\slash \\\\ \\n \\",
    "{braces}, commas, {a,b}",
    '","',
    "NULL",
    "null",
    '"NULL"',
    "two\nlines\r\nand\ttab",
    "snowman \N{SNOWMAN} emoji \N{PILE OF POO} \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u05e9\u05dc\u05d5\u05dd \u202eright to left\u202c",
    "4 bytes \U00020000",
    "percent %s %(x)s %% $1 ? :now",
    "control \x01\x1f\x7f",
    " surrounding ",
    "x" * 4096,
]
PAYLOADS = [
    "{}",
    '{"seconds":2}',
    '{"a":"\\u0000 \\ud83d\\ude00 \\u2028 \\" \\\\ \\n"}',
    '{"key": [1, 2.50, null, true], "key": "twice and spaced"}',
    '{"t":"{\\"nested\\":\\"json\\"}"}',
]


def new_batch() -> str:
    """The id of a batch that is in no outbox yet."""
    return str(uuid.uuid4())


def moves_of(state: State) -> frozenset[State]:
    """The legal moves from a state to another one."""
    return MOVES[state] - {state}


class StoreCase(TestCase):
    """A store over a fresh database, two users, and short methods for frequent steps."""

    store: Any

    def make(self) -> Awaitable[IStore]:
        """One more started store over this test's database; the test case stops it."""
        raise NotImplementedError

    def postpone(self, task_id: int, seconds: int = 3600) -> Awaitable[None]:
        """Take a waiting task out of the backlog; its run_at is ``seconds`` after its creation."""
        raise NotImplementedError

    def age_outbox(self) -> Awaitable[None]:
        """Make every outbox row an hour older."""
        raise NotImplementedError

    def count_outbox(self) -> Awaitable[int]:
        """The number of outbox rows."""
        raise NotImplementedError

    def backdate(self, task_id: int, created: int, finished: int | None = None) -> Awaitable[None]:
        """Set the times when a task was created and when it ended, in seconds ago."""
        raise NotImplementedError

    def age_workers(self, seconds: int) -> Awaitable[None]:
        """Make the last beat of every worker ``seconds`` older."""
        raise NotImplementedError

    def die(self, worker: str, culprit: Culprit | None = None) -> Awaitable[None]:
        """What a watchdog does when its worker has died."""
        raise NotImplementedError

    def stall(self, worker: str, text: str) -> Awaitable[None]:
        """What a watchdog does while something blocks its worker."""
        raise NotImplementedError

    def set_losses(self, task_id: int, losses: int) -> Awaitable[None]:
        """Set how often a task was lost."""
        raise NotImplementedError

    def count_rows(self) -> Awaitable[tuple[int, int, int]]:
        """The numbers of tasks, log chunks and failed attempts."""
        raise NotImplementedError

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        self.store = await self.make()
        self.ana = await self.store.create_user("Ana", "ana", "$2b$hash")
        self.ben = await self.store.create_user("Ben", "ben", "$2b$hash")

    # -- helpers

    async def create(
        self, count: int = 1, state: State = State.QUEUED, user: User | None = None, **spec: Any
    ) -> list[Task]:
        owner = (user or self.ana).id
        spec = {"queue": "q", **spec}
        rows = [NewTask(owner, f"task {i}", **spec, state=state) for i in range(count)]
        return list(await self.store.create_tasks(new_batch(), rows))

    async def serve(self, worker: str = "w", *, queues: Sequence[str] = ("q",), **kinds: str) -> WorkerInfo:
        """Register a worker; ``kinds`` has the isolation of each."""
        served = [KindInfo(kind, isolation) for kind, isolation in (kinds or {DEFAULT_KIND: "async"}).items()]
        info = WorkerInfo(worker, list(queues), served, {"async": 10})
        await self.store.register(info)
        return info

    async def status(self, worker: str = "w") -> WorkerStatus:
        """A worker as a poll sees it."""
        [status] = [s for s in (await self.store.poll_workers()).workers if s.info.name == worker]
        return status

    async def fence(self, worker: str = "w") -> list[Task]:
        """Take back what a worker holds that does not beat any more."""
        return list(await self.store.take_back({worker: (await self.status(worker)).beat}))

    async def claim(self, tasks: Sequence[Task], worker: str = "w", begin: bool = True) -> list[Task]:
        """Claim, and begin what has losses, as a worker that is registered now if it was not."""
        await self.serve(worker)
        claimed = list(await self.store.claim(worker, [Claim(t.id, t.dispatch) for t in tasks]))
        if begin:
            await self.store.begin(worker, [Held(t.id, t.dispatch, t.attempt) for t in claimed if t.losses])
        return claimed

    async def release(self, tasks: Sequence[Task], worker: str = "w", **kw: Any) -> list[Task]:
        held = [Held(t.id, t.dispatch, t.attempt) for t in tasks]
        return list(await self.store.release(worker, held, **kw))

    async def running(self, count: int = 1, worker: str = "w", **spec: Any) -> list[Task]:
        tasks = await self.claim(await self.create(count, **spec), worker)
        return sorted(tasks, key=lambda t: t.id)

    async def finish(self, task: Task, worker: str = "w", again: bool = False, **kw: Any) -> Any:
        outcome = Outcome(task.id, task.dispatch, task.attempt, kw.pop("state", State.COMPLETED), **kw)
        return (await self.store.finish(worker, [outcome], again)).get(task.id)

    async def get(self, task: Task) -> Task:
        [found] = await self.store.get_tasks(task.user_id, [task.id])
        return found

    async def in_state(self, state: State) -> Task:
        """A task that reached this state by legal moves."""
        if state is State.WAITING:
            [task] = await self.create(state=state)
        elif state in (State.QUEUED, State.CANCELLED):
            [task] = await self.create()
        else:
            [task] = await self.running()
        if state is State.CANCELLED:
            await self.store.cancel(self.ana.id, task.id)
        if state in (State.COMPLETED, State.FAILED):
            await self.finish(task, state=state)
        task = await self.get(task)
        self.assertIs(task.state, state)
        return task

    async def dispatch(
        self, limit: int = 100, after: int | None = None, queue: str = "q", kind: str = DEFAULT_KIND
    ) -> Dispatched:
        turn: Dispatched = await self.store.dispatch(new_batch(), Route(queue, kind), limit, after)
        return turn

    async def users(self, count: int) -> list[User]:
        return [await self.store.create_user(f"u{i}", f"u{i}", "x") for i in range(count)]

    async def pages(self, user: User | None = None, limit: int = 3, **query: Any) -> list[int]:
        """The ids on all pages."""
        found: list[int] = []
        before = None
        while True:
            page = await self.store.list_tasks((user or self.ana).id, TaskQuery(limit, before, **query))
            self.assertLessEqual(len(page.tasks), limit)
            found += [t.id for t in page.tasks]
            before = page.before
            if before is None:
                return found
            if page.tasks:
                self.assertLessEqual(before, page.tasks[-1].id)

    async def retry_later(self, task: Task, worker: str = "w", again: bool = False, **kw: Any) -> Any:
        """End an attempt with a retry."""
        return await self.finish(task, worker, again, state=State.WAITING, **{"error": "it broke", **kw})

    async def next_attempt(self, worker: str = "w") -> Task:
        """Dispatch and claim the one task that is due."""
        [task] = (await self.dispatch()).tasks
        [task] = await self.claim([task], worker)
        return task

    async def report(self, task: Task, *lines: str, worker: str = "w", **kw: Any) -> bool:
        report = Report(task.id, task.dispatch, task.attempt, lines=lines, **kw)
        return await self.store.report(worker, [report]) == {task.id}

    async def log(self, task: Task, after: tuple[int, int, int] | None = None, limit: int = 100) -> list[Any]:
        """The chunks of a log as pairs of place and lines."""
        place = None if after is None else LogPlace(*after)
        return [(tuple(c.place), list(c.lines)) for c in await self.store.read_log(task.id, place, limit)]
