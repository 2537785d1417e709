"""The base case of the store's suite, and its data.

A test case mixes the suite into a StoreCase that makes stores over one fresh database. What the ports cannot do is done
by hooks; where a test needs time to pass, they move the stored times.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from twisted.trial.unittest import TestCase

from taskd.model.states import MOVES, State
from taskd.model.tasks import DEFAULT_KIND, NewTask, Route, Task
from taskd.model.users import User
from taskd.ports.attempts import Begun, Held, Outcome
from taskd.ports.logs import LogPlace, Report
from taskd.ports.scheduling import Cost, Place, Pool, Served, Turn
from taskd.ports.store import IStore
from taskd.ports.tasks import TaskQuery
from taskd.ports.workers import Beaten, Culprit, KindInfo, Mean, WorkerInfo, WorkerStatus, digest

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

AGING = {
    "users": ["code_until", "deleted_at"],
    "sessions": ["created_at", "used_at", "expires_at"],
    "invitations": ["created_at", "expires_at"],
    "devices": ["seen_at"],
    "audit": ["at"],
}
"""The columns with times of :meth:`StoreCase.age_accounts`."""


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

    def backdate(self, task_id: int, created: int, finished: int | None = None) -> Awaitable[None]:
        """Set the times when a task was created and when it ended, in seconds ago."""
        raise NotImplementedError

    def age_accounts(self, seconds: float) -> Awaitable[None]:
        """Let so much time pass for sessions, one-time codes, invitations, known networks, deleted accounts and the
        audit: all their stored times become older."""
        raise NotImplementedError

    def age_workers(self, seconds: int) -> Awaitable[None]:
        """Make the last beat of every worker ``seconds`` older."""
        raise NotImplementedError

    def age_usage(self, hours: int) -> Awaitable[None]:
        """Make what users have done so far older by so many hours."""
        raise NotImplementedError

    def count_usage(self) -> Awaitable[int]:
        """The number of rows with the use of users."""
        raise NotImplementedError

    def die(
        self, worker: str, culprit: Culprit | None = None, among: Sequence[tuple[int, int]] | None = None
    ) -> Awaitable[None]:
        """What a watchdog does when its worker has died. ``among``: without a culprit, the tasks, with their
        dispatches, whose handlers were entered."""
        raise NotImplementedError

    def stall(self, worker: str, text: str) -> Awaitable[None]:
        """What a watchdog does while something blocks its worker."""
        raise NotImplementedError

    def forget(self, worker: str) -> Awaitable[None]:
        """Delete the record of a worker, and nothing else."""
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

    # -- tasks and their owners

    async def new(self, count: int = 1, user: User | None = None, **spec: Any) -> list[NewTask]:
        """New tasks with ids, which are not created."""
        ids = await self.store.draw_ids(count)
        owner = (user or self.ana).id
        return [NewTask(owner, f"task {i}", id=task_id, **{"queue": "q", **spec}) for i, task_id in enumerate(ids)]

    async def create(self, count: int = 1, user: User | None = None, **spec: Any) -> list[Task]:
        """Tasks that wait; with ``worker``, tasks that this worker holds if it is serving."""
        return list((await self.store.create_tasks(await self.new(count, user, **spec))).tasks)

    async def queued(self, count: int = 1, worker: str = "w", **spec: Any) -> list[Task]:
        """Tasks that a worker holds, which is registered now if it was not."""
        await self.serve(worker)
        return await self.create(count, worker=worker, **spec)

    async def running(self, count: int = 1, worker: str = "w", **spec: Any) -> list[Task]:
        """Tasks that a worker runs."""
        return await self.begin(await self.queued(count, worker, **spec), worker)

    async def in_state(self, state: State) -> Task:
        """A task that reached this state by legal moves. If it is queued or running, the worker w holds it, else
        nobody does."""
        if state in (State.WAITING, State.CANCELLED):
            [task] = await self.create()
        else:
            [task] = await self.queued()
        if state is State.CANCELLED:
            await self.store.cancel(self.ana.id, task.id)
        elif state not in (State.WAITING, State.QUEUED):
            await self.begin([task])
        if state in (State.COMPLETED, State.FAILED):
            await self.finish(task, state=state)
        task = await self.get(task)
        self.assertIs(task.state, state)
        return task

    async def get(self, task: Task) -> Task:
        [found] = await self.store.get_tasks(task.user_id, [task.id])
        return found

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

    # -- turns

    async def turn(
        self,
        places: Mapping[str, int] | None = None,
        routes: Sequence[Route] = (Q,),
        limit: int = 100,
        after: int = 0,
        costs: Sequence[Cost] = (),
    ) -> Turn:
        """One turn in a pool: ``places`` has the slots of each worker, by default 1,000 of the worker w. Workers are
        registered now if they were not."""
        found = [Place(*place) for place in (places or {"w": 1000}).items()]
        for place in found:
            await self.serve(place.worker)
        turn: Turn = await self.store.assign(Pool(found, [Served(*route, 3) for route in routes], costs), limit, after)
        return turn

    async def assign(self, worker: str = "w", **pool: Any) -> list[Task]:
        """What one turn gives to one worker, which has room for all of it, by ascending id, with payloads."""
        turn = await self.turn({worker: 1000}, **pool)
        tasks = await self.store.find_tasks([task.id for task in turn.tasks])
        return sorted(tasks, key=lambda task: task.id)

    async def due(self, queue: str = "q", kind: str = DEFAULT_KIND) -> list[int]:
        """The ids of the tasks that another worker gets because they are in the backlog."""
        return [task.id for task in await self.assign("another", routes=[Route(queue, kind)])]

    async def next_attempt(self, worker: str = "w") -> Task:
        """Assign and begin the one task that is due."""
        [task] = await self.begin(await self.assign(worker), worker)
        return task

    # -- what a worker does

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

    async def beat(
        self,
        worker: str = "w",
        held: Sequence[tuple[int, int]] = (),
        hung: Mapping[str, int] | None = None,
        means: Sequence[Mean] = (),
    ) -> Beaten:
        beaten: Beaten = await self.store.beat(worker, hung or {}, means, digest(held))
        return beaten

    async def look(self, worker: str = "w", known: Sequence[int] = ()) -> list[int]:
        """The ids that a worker finds."""
        return [assigned.task.id for assigned in await self.store.look(worker, known)]

    async def standing(self, worker: str = "w") -> list[tuple[int, int, bool]]:
        """What a worker holds, in one order."""
        return sorted(tuple(each) for each in await self.store.standing(worker))

    async def begin(self, tasks: Sequence[Task], worker: str = "w", age: float = 0.0) -> list[Task]:
        """Begin tasks; those that run then, by ascending id."""
        begun = [Begun(task.id, task.dispatch, age) for task in tasks]
        started = await self.store.begin(worker, begun, False)
        return sorted(await self.store.find_tasks(list(started)), key=lambda task: task.id)

    async def release(self, tasks: Sequence[Task], worker: str = "w", **kw: Any) -> list[Task]:
        return list(await self.store.release(worker, [Held(t.id, t.dispatch) for t in tasks], **kw))

    async def finish(self, task: Task, worker: str = "w", again: bool = False, **kw: Any) -> Any:
        outcome = Outcome(task.id, task.dispatch, task.attempt, kw.pop("state", State.COMPLETED), **kw)
        return (await self.store.finish(worker, [outcome], again)).get(task.id)

    async def retry_later(self, task: Task, worker: str = "w", again: bool = False, **kw: Any) -> Any:
        """End an attempt with a retry."""
        return await self.finish(task, worker, again, state=State.WAITING, **{"error": "it broke", **kw})

    async def fence(self, worker: str = "w") -> list[Task]:
        """Take back what a worker holds that does not beat any more."""
        return list(await self.store.take_back({worker: (await self.status(worker)).beat}))

    async def report(self, task: Task, *lines: str, worker: str = "w", **kw: Any) -> bool:
        report = Report(task.id, task.dispatch, task.attempt, lines=lines, **kw)
        return await self.store.report(worker, [report]) == {task.id}

    async def log(self, task: Task, after: tuple[int, int, int] | None = None, limit: int = 100) -> list[Any]:
        """The chunks of a log as pairs of place and lines."""
        place = None if after is None else LogPlace(*after)
        return [(tuple(c.place), list(c.lines)) for c in await self.store.read_log(task.id, place, limit)]
