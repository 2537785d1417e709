"""The suite of IStore: every promise of its docstrings, against whichever store the test case makes.

A test case mixes StoreTests into a StoreCase of its own, which makes stores over one fresh database. Where a test
needs time to pass it takes leases and ages of no length; what cannot be had through the port is done by hooks.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta, timezone
from typing import Any

from msgspec.structs import replace
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyClass, verifyObject

from taskd.model.errors import BadRequest, Conflict, KeyTaken, NotFound, UsernameInUse
from taskd.model.limits import LISTED_RESULT_BYTES
from taskd.model.states import MOVES, TERMINAL, State
from taskd.model.tasks import DEFAULT_KIND, NewTask, Route, Task
from taskd.model.users import User
from taskd.ports.attempts import Claim, Outcome
from taskd.ports.logs import Report
from taskd.ports.scheduling import Dispatch, Dispatched, OutboxBatch
from taskd.ports.store import IStore
from taskd.ports.tasks import Keyed, TaskQuery

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
    """The name of a batch that is in no outbox yet."""
    return str(uuid.uuid4())


def moves_of(state: State) -> frozenset[State]:
    """The legal moves, without the one from running to running."""
    return MOVES[state] - {state}


class StoreCase(TestCase):
    """A store over a fresh database, two users, and short names for what tests do all the time."""

    store: Any

    def make(self) -> Awaitable[IStore]:
        """One more started store over this test's database; the case stops it."""
        raise NotImplementedError

    def postpone(self, task_id: int, seconds: int = 3600) -> Awaitable[None]:
        """Take a waiting task out of the backlog; its run_at is so long after its creation, or before it."""
        raise NotImplementedError

    def age_outbox(self) -> Awaitable[None]:
        """Let every outbox row be an hour old."""
        raise NotImplementedError

    def count_outbox(self) -> Awaitable[int]:
        """How many outbox rows there are."""
        raise NotImplementedError

    def backdate(self, task_id: int, created: int, finished: int | None = None) -> Awaitable[None]:
        """Let a task have been created, and have ended, so many seconds ago."""
        raise NotImplementedError

    def age_workers(self, seconds: int) -> Awaitable[None]:
        """Let every worker have been seen so many seconds earlier."""
        raise NotImplementedError

    def count_rows(self) -> Awaitable[tuple[int, int, int]]:
        """How many tasks there are, chunks of logs, and failed attempts."""
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

    async def claim(self, tasks: Sequence[Task], worker: str = "w", redelivered: bool = False) -> list[Task]:
        claims = [Claim(t.id, t.dispatch, redelivered) for t in tasks]
        return list(await self.store.claim(worker, 60, claims))

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
        """A task that came into this state by legal moves."""
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
        """The ids of all pages."""
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


class StoreTests(StoreCase):
    """What every store keeps to."""

    # -- the port

    async def test_provides_its_interface(self) -> None:
        verifyClass(IStore, type(self.store))
        verifyObject(IStore, self.store)
        self.assertIs(self.store.ready, True)

    async def test_is_not_ready_once_stopped(self) -> None:
        await self.store.stop()
        self.assertIs(self.store.ready, False)
        await self.store.stop()

    # -- accounts

    async def test_user_is_found_by_key(self) -> None:
        account = await self.store.find_user("ana")
        self.assertEqual((account.user, account.password), (User(self.ana.id, "Ana"), "$2b$hash"))
        self.assertIsNone(await self.store.find_user("nobody"))

    async def test_key_is_unique(self) -> None:
        with self.assertRaises(UsernameInUse):
            await self.store.create_user("ANA", "ana", "$2b$other")
        self.assertEqual((await self.store.find_user("ana")).user.username, "Ana")

    async def test_registration_repeated_is_the_same_user(self) -> None:
        # the same bcrypt hash, salt and all, can only be the same registration
        self.assertEqual(await self.store.create_user("Ana", "ana", "$2b$hash"), self.ana)

    async def test_names_are_kept_as_they_are(self) -> None:
        for i, text in enumerate(TEXTS):
            user = await self.store.create_user(text[:64], f"{i}{text}"[:64], "x")
            self.assertEqual((await self.store.find_user(f"{i}{text}"[:64])).user, user)

    async def test_session_is_found_until_it_is_closed(self) -> None:
        token = bytes(range(32))
        self.assertIsNone(await self.store.find_session(token))
        await self.store.open_session(self.ana.id, token, 100)
        await self.store.open_session(self.ana.id, token, 100)
        self.assertEqual(await self.store.find_session(token), self.ana)
        await self.store.close_session(token)
        await self.store.close_session(token)
        self.assertIsNone(await self.store.find_session(token))

    async def test_session_expires(self) -> None:
        await self.store.open_session(self.ana.id, b"old", 0)
        await self.store.open_session(self.ana.id, b"new", 100)
        self.assertIsNone(await self.store.find_session(b"old"))
        self.assertEqual(await self.store.find_session(b"new"), self.ana)

    # -- create

    async def test_created_tasks_are_stored_in_order(self) -> None:
        rows = [
            NewTask(
                (self.ana, self.ben)[i % 2].id,
                f"t{i}",
                f"kind{i}",
                f'{{"i":{i}}}',
                f"q{i % 3}",
                i + 1,
                state=State.QUEUED if i % 2 else State.WAITING,
            )
            for i in range(50)
        ]
        tasks = await self.store.create_tasks(new_batch(), rows)
        self.assertEqual([t.task for t in tasks], [f"t{i}" for i in range(50)])
        self.assertEqual([t.id for t in tasks], sorted({t.id for t in tasks}))
        for task, row in zip(tasks, rows, strict=True):
            self.assertEqual(await self.get(task), task)
            self.assertEqual((task.user_id, task.state), (row.user_id, row.state))
            self.assertEqual((task.kind, task.payload), (row.kind, row.payload))
            self.assertEqual((task.queue, task.max_attempts), (row.queue, row.max_attempts))
            self.assertEqual(task.dispatch, 1 if row.state is State.QUEUED else 0)
            self.assertEqual((task.attempt, task.version), (0, 1))
            self.assertEqual(task.created_at.utcoffset(), timedelta(0))
            self.assertEqual(task.created_at, task.run_at)
            self.assertIsNone(task.started_at or task.finished_at or task.result or task.error)

    async def test_a_task_keeps_its_timeout(self) -> None:
        specs = [NewTask(self.ana.id, "t", timeout=seconds) for seconds in (None, 0.1, 1234.56789, 2_592_000.001)]
        tasks = await self.store.create_tasks(new_batch(), [replace(spec, state=State.QUEUED) for spec in specs])
        self.assertEqual([t.timeout for t in tasks], [spec.timeout for spec in specs])
        self.assertEqual([await self.get(t) for t in tasks], tasks)
        self.assertEqual(sorted(await self.claim(tasks), key=lambda t: t.id)[2].timeout, 1234.56789)

    async def test_a_task_of_the_future_waits_for_its_moment(self) -> None:
        [now] = await self.create(state=State.WAITING)
        tokyo = timezone(timedelta(hours=9))
        late = (now.created_at + timedelta(hours=1)).astimezone(tokyo)
        early = now.created_at - timedelta(hours=1)
        batch = new_batch()
        rows = [NewTask(self.ana.id, "t", queue="q", run_at=at) for at in (late, early, None)]
        tasks = await self.store.create_tasks(batch, rows)
        self.assertEqual(tasks[0].run_at, late)
        self.assertEqual(tasks[0].run_at.utcoffset(), timedelta(0))
        # what has passed is as good as now
        self.assertEqual([t.run_at for t in tasks[1:]], [t.created_at for t in tasks[1:]])
        self.assertEqual([await self.get(t) for t in tasks], tasks)
        self.assertEqual(await self.store.create_tasks(batch, rows), tasks)
        self.assertEqual(list(await self.store.promote(10)), [])
        self.assertEqual([t.id for t in (await self.dispatch()).tasks], [now.id, tasks[1].id, tasks[2].id])
        self.assertEqual(await self.pages(state="scheduled"), [tasks[0].id])

    async def test_a_queued_task_is_due_whatever_the_clocks_say(self) -> None:
        [now] = await self.create()
        [task] = await self.create(run_at=now.created_at + timedelta(minutes=10))
        self.assertEqual((task.state, task.dispatch), (State.QUEUED, 1))
        await self.store.requeue_lost(Q, 0, 10)
        self.assertEqual({t.id for t in (await self.dispatch()).tasks}, {now.id, task.id})

    async def test_a_key_is_taken_once(self) -> None:
        specs = [
            NewTask(self.ana.id, "t", key=k, fingerprint=f)
            for k, f in (("a", "1"), ("b\N{SNOWMAN}", "2"), (None, None))
        ]
        rows = [replace(spec, state=State.QUEUED) for spec in specs]
        first = await self.store.create_tasks(new_batch(), rows)
        for again in ([rows[0]], [rows[2], rows[1]]):
            with self.assertRaises(KeyTaken):
                await self.store.create_tasks(new_batch(), again)
        self.assertEqual(await self.store.count_queued(), {Route("", DEFAULT_KIND): 3})
        # somebody else's, and none at all, are in nobody's way
        await self.store.create_tasks(
            new_batch(), [replace(specs[0], user_id=self.ben.id, state=State.QUEUED), rows[2]]
        )
        wanted = [(self.ana.id, "a"), (self.ana.id, "b\N{SNOWMAN}"), (self.ana.id, "c"), (self.ben.id, "b")]
        self.assertEqual(
            await self.store.find_keys(wanted),
            {wanted[0]: Keyed(first[0].id, "1"), wanted[1]: Keyed(first[1].id, "2")},
        )
        self.assertEqual(await self.store.find_keys([]), {})

    async def test_a_batch_with_keys_repeated_creates_nothing(self) -> None:
        batch, rows = new_batch(), [NewTask(self.ana.id, "t", key="a", fingerprint="1", state=State.QUEUED)]
        first = await self.store.create_tasks(batch, rows)
        self.assertEqual(list(await self.store.create_tasks(batch, rows)), list(first))

    async def test_texts_are_kept_as_they_are(self) -> None:
        specs = [NewTask(self.ana.id, text, payload=PAYLOADS[i % len(PAYLOADS)]) for i, text in enumerate(TEXTS)]
        tasks = await self.store.create_tasks(new_batch(), [replace(spec, state=State.QUEUED) for spec in specs])
        for task, spec in zip(tasks, specs, strict=True):
            found = await self.get(task)
            self.assertEqual((found.task, found.payload), (spec.task, spec.payload))
        claimed = {t.id: t for t in await self.claim(tasks)}
        self.assertEqual(
            [(claimed[t.id].task, claimed[t.id].payload) for t in tasks], [(s.task, s.payload) for s in specs]
        )

    async def test_batch_repeated_creates_nothing(self) -> None:
        rows = [NewTask(self.ana.id, f"t{i}", state=(State.WAITING, State.QUEUED)[i % 2]) for i in range(7)]
        batch = new_batch()
        first = await self.store.create_tasks(batch, rows)
        again = await self.store.create_tasks(batch, rows)
        self.assertEqual(first, again)
        self.assertEqual(len((await self.store.list_tasks(self.ana.id, TaskQuery(500))).tasks), 7)

    async def test_batch_repeated_after_it_was_taken_over_and_settled(self) -> None:
        batch = new_batch()
        rows = [NewTask(self.ana.id, "t", queue="q", state=State.QUEUED)]
        first = await self.store.create_tasks(batch, rows)
        await self.store.adopt_stale(0, 10)
        await self.store.mark_published([batch])
        again = await self.store.create_tasks(batch, rows)
        self.assertEqual([t.id for t in again], [t.id for t in first])

    async def test_all_rows_or_none(self) -> None:
        rows = [NewTask(self.ana.id, text) for text in ("good", "bad\0", "good")]
        with self.assertRaises(BadRequest):
            await self.store.create_tasks(new_batch(), rows)
        rows[1] = NewTask(self.ana.id, "lone \ud800 surrogate")
        with self.assertRaises(BadRequest):
            await self.store.create_tasks(new_batch(), rows)
        self.assertEqual((await self.store.list_tasks(self.ana.id, TaskQuery(5))).tasks, [])
        self.assertEqual(await self.count_outbox(), 0)
        self.assertTrue(await self.create())

    async def test_create_settles_earlier_batches(self) -> None:
        first, second = new_batch(), new_batch()
        row = NewTask(self.ana.id, "t", state=State.QUEUED)
        await self.store.create_tasks(first, [row])
        await self.store.create_tasks(second, [row], [first])
        self.assertEqual([b.id for b in await self.store.adopt_stale(0, 10)], [second])

    # -- dispatch

    async def test_dispatch_moves_what_is_due(self) -> None:
        tasks = await self.create(3, State.WAITING)
        await self.create(1, State.WAITING, queue="other")
        await self.create(1, State.WAITING, kind="other")
        turn = await self.dispatch()
        self.assertEqual([t.id for t in turn.tasks], [t.id for t in tasks])
        for task in turn.tasks:
            self.assertEqual((task.state, task.dispatch, task.version), (State.QUEUED, 1, 2))
            self.assertEqual(await self.get(task), task)
        self.assertIsNone(turn.last_user)
        self.assertFalse(turn.more)
        self.assertEqual(len((await self.dispatch()).tasks), 0)
        for route in (OTHER, Route("q", "other")):
            self.assertEqual(
                [t.route for t in (await self.dispatch(queue=route.queue, kind=route.kind)).tasks], [route]
            )

    async def test_dispatch_leaves_what_is_not_due(self) -> None:
        early, late = await self.create(2, State.WAITING)
        await self.postpone(early.id)
        turn = await self.dispatch()
        self.assertEqual([t.id for t in turn.tasks], [late.id])
        turn = await self.dispatch()
        self.assertEqual((len(turn.tasks), turn.last_user, turn.more), (0, None, False))

    async def test_dispatch_goes_round_the_users(self) -> None:
        users = await self.users(4)
        for user in users:
            await self.create(10, State.WAITING, user)
        turn = await self.dispatch(12)
        self.assertEqual([t.user_id for t in turn.tasks], [u.id for u in users] * 3)
        for user in users:
            mine = [t.task for t in turn.tasks if t.user_id == user.id]
            self.assertEqual(mine, ["task 0", "task 1", "task 2"])
        self.assertTrue(turn.more)

    async def test_dispatch_gives_what_is_left_to_those_who_have_more(self) -> None:
        one, two, three = await self.users(3)
        await self.create(50, State.WAITING, one)
        await self.create(1, State.WAITING, two)
        await self.create(50, State.WAITING, three)
        turn = await self.dispatch(31)
        counts = [sum(t.user_id == u.id for t in turn.tasks) for u in (one, two, three)]
        self.assertEqual(counts, [15, 1, 15])
        self.assertTrue(turn.more)
        self.assertEqual(turn.tasks[0].user_id, one.id)
        self.assertEqual([t.user_id for t in turn.tasks[:4]], [one.id, two.id, three.id, one.id])

    async def test_dispatch_goes_on_behind_a_user(self) -> None:
        users = await self.users(6)
        for user in users:
            await self.create(2, State.WAITING, user)
        seen: list[int] = []
        after = None
        for _ in range(3):
            turn = await self.dispatch(2, after)
            after = turn.last_user
            seen += [t.user_id for t in turn.tasks]
            self.assertEqual(after, turn.tasks[-1].user_id)
        self.assertEqual(seen, [u.id for u in users])
        turn = await self.dispatch(2, after)
        self.assertEqual((len(turn.tasks), turn.last_user), (0, None))

    async def test_dispatch_shares_out_the_whole_turn(self) -> None:
        # (backlogs, limit, what of each is dispatched): as if everybody took one in turn
        cases = [
            ([9, 9, 9], 7, [3, 2, 2]),
            ([1, 1, 1, 1], 3, [1, 1, 1, 0]),
            ([9, 1, 1, 1, 9], 10, [4, 1, 1, 1, 3]),
            ([60, 12, 1, 1], 40, [26, 12, 1, 1]),
            ([1, 9, 3, 30, 2], 100, [1, 9, 3, 30, 2]),
            ([20], 20, [20]),
            ([20], 19, [19]),
        ]
        for n, (backlogs, limit, expected) in enumerate(cases):
            queue = f"q{n}"
            users = [await self.store.create_user(f"u{n}{i}", f"u{n}{i}", "x") for i in range(len(backlogs))]
            for user, backlog in zip(users, backlogs, strict=True):
                await self.create(backlog, State.WAITING, user, queue=queue)
            turn = await self.dispatch(limit, queue=queue)
            counts = [sum(t.user_id == u.id for t in turn.tasks) for u in users]
            self.assertEqual(counts, expected, cases[n])
            self.assertEqual(turn.more, sum(counts) == limit)
            for user in users:
                mine = [t.id for t in turn.tasks if t.user_id == user.id]
                self.assertEqual(mine, sorted(mine))

    async def test_last_turn_of_a_round_gives_no_more_than_the_others(self) -> None:
        users = await self.users(5)
        for user in users:
            await self.create(20, State.WAITING, user)
        first = await self.dispatch(4)
        self.assertEqual((first.last_user, first.more), (users[3].id, True))
        last = await self.dispatch(4, first.last_user)
        self.assertEqual([t.user_id for t in (*first.tasks, *last.tasks)], [u.id for u in users])
        self.assertEqual((last.last_user, last.more), (None, False))

    async def test_dispatch_does_not_look_at_users_whose_tasks_are_all_delayed(self) -> None:
        users = await self.users(7)
        for user in users[:-1]:
            [task] = await self.create(1, State.WAITING, user)
            await self.postpone(task.id)
        await self.create(1, State.WAITING, users[-1])
        turn = await self.dispatch(3)
        self.assertEqual([t.user_id for t in turn.tasks], [users[-1].id])
        self.assertEqual((turn.last_user, turn.more), (None, False))

    async def test_every_backlog_is_dispatched_in_the_end(self) -> None:
        users = await self.users(9)
        for i, user in enumerate(users):
            await self.create(1 + i * i, State.WAITING, user)
        found: list[int] = []
        after, clean = None, True
        for _ in range(300):
            turn = await self.dispatch(7, after)
            self.assertLessEqual(len(turn.tasks), 7)
            self.assertEqual(turn.more, len(turn.tasks) == 7)
            found += [t.id for t in turn.tasks]
            after, clean = turn.last_user, clean and not turn.more
            if after is None:
                if clean:
                    break
                clean = True
        self.assertTrue(clean)
        self.assertEqual(len(found), len(set(found)))
        self.assertEqual(len(found), sum(1 + i * i for i in range(9)))

    async def test_dispatch_repeated_moves_nothing_more(self) -> None:
        await self.create(5, State.WAITING)
        batch = new_batch()
        first = await self.store.dispatch(batch, Q, 3, None)
        again = await self.store.dispatch(batch, Q, 3, None)
        self.assertEqual([t.id for t in again.tasks], [t.id for t in first.tasks])
        self.assertEqual((first.more, again.more), (True, True))
        self.assertEqual(await self.store.count_queued(), {Q: 3})
        turn = await self.store.dispatch(batch, Q, 4, None)
        self.assertEqual((len(turn.tasks), turn.more), (3, False))

    async def test_dispatch_repeated_is_in_the_same_fair_order(self) -> None:
        for user in (self.ana, self.ben):
            await self.create(3, State.WAITING, user)
        batch = new_batch()
        first = await self.store.dispatch(batch, Q, 10, None)
        again = await self.store.dispatch(batch, Q, 10, None)
        self.assertEqual([t.id for t in again.tasks], [t.id for t in first.tasks])
        [taken] = [b for b in await self.store.adopt_stale(0, 10) if b.id == batch]
        self.assertEqual([m.task_id for m in taken.messages[Q]], [t.id for t in first.tasks])

    async def test_dispatch_of_nothing_leaves_no_outbox_row(self) -> None:
        await self.dispatch()
        self.assertEqual(await self.count_outbox(), 0)

    # -- promote

    async def test_promote_moves_what_is_due_into_the_backlog(self) -> None:
        come, late = await self.create(2, State.WAITING)
        [other] = await self.create(1, State.WAITING, self.ben, queue="other")
        await self.postpone(come.id, -1)
        await self.postpone(other.id, -1)
        await self.postpone(late.id)
        self.assertEqual(len((await self.dispatch()).tasks), 0)
        before = await self.get(come)
        promoted = await self.store.promote(10)
        self.assertEqual(sorted(promoted), [(OTHER, self.ben.id), (Q, self.ana.id)])
        self.assertEqual(list(await self.store.promote(10)), [])
        # nothing that its owner could see has changed
        self.assertEqual(await self.get(come), before)
        self.assertEqual([t.id for t in (await self.dispatch()).tasks], [come.id])
        self.assertEqual([t.id for t in (await self.dispatch(queue="other")).tasks], [other.id])

    async def test_promote_names_an_owner_once_a_route(self) -> None:
        for kind in (DEFAULT_KIND, "other"):
            for task in await self.create(3, State.WAITING, kind=kind):
                await self.postpone(task.id, -1)
        promoted = await self.store.promote(10)
        self.assertEqual(sorted(promoted), [(Route("q", "other"), self.ana.id), (Q, self.ana.id)])

    async def test_promote_is_bounded_and_begins_with_the_longest_overdue(self) -> None:
        tasks = await self.create(5, State.WAITING)
        for seconds, task in enumerate(tasks, 1):
            await self.postpone(task.id, -seconds)
        order = [t.id for t in reversed(tasks)]
        for ids in (order[:2], order[2:4], order[4:]):
            self.assertEqual(list(await self.store.promote(2)), [(Q, self.ana.id)])
            self.assertEqual([t.id for t in (await self.dispatch()).tasks], ids)
        self.assertEqual(list(await self.store.promote(2)), [])

    async def test_promote_leaves_what_was_cancelled(self) -> None:
        [task] = await self.create(1, State.WAITING)
        await self.postpone(task.id, -1)
        await self.store.cancel(self.ana.id, task.id)
        self.assertEqual(list(await self.store.promote(10)), [])
        self.assertEqual(len((await self.dispatch()).tasks), 0)

    async def test_promoted_tasks_take_their_turn_by_run_at(self) -> None:
        first, second = await self.create(2, State.WAITING)
        await self.postpone(second.id, -10)
        await self.store.promote(10)
        self.assertEqual([t.id for t in (await self.dispatch()).tasks], [second.id, first.id])

    # -- the outbox

    async def test_take_over_names_what_still_waits_for_a_worker(self) -> None:
        batch = new_batch()
        states = [State.QUEUED, State.WAITING, State.QUEUED, State.QUEUED]
        rows = [NewTask(self.ana.id, "t", queue=f"q{i % 2}", state=s) for i, s in enumerate(states)]
        tasks = await self.store.create_tasks(batch, rows)
        await self.claim(tasks[2:3])
        self.assertEqual(list(await self.store.adopt_stale(100, 10)), [])
        taken = await self.store.adopt_stale(0, 10)
        messages = {
            Route("q0", DEFAULT_KIND): [Dispatch(tasks[0].id, 1)],
            Route("q1", DEFAULT_KIND): [Dispatch(tasks[3].id, 1)],
        }
        self.assertEqual(taken, [OutboxBatch(batch, messages)])
        self.assertEqual(list(await self.store.adopt_stale(100, 10)), [])

    async def test_take_over_of_a_dispatch(self) -> None:
        await self.create(1, State.WAITING)
        batch = new_batch()
        turn = await self.store.dispatch(batch, Q, 10, None)
        taken = {b.id: b for b in await self.store.adopt_stale(0, 10)}
        self.assertEqual(taken[batch].messages, {Q: [Dispatch(turn.tasks[0].id, 1)]})

    async def test_take_over_is_bounded(self) -> None:
        for _ in range(5):
            await self.create()
        self.assertEqual(len(await self.store.adopt_stale(0, 3)), 3)

    async def test_settled_batches_are_gone(self) -> None:
        batches = [new_batch() for _ in range(3)]
        for batch in batches:
            await self.store.create_tasks(batch, [NewTask(self.ana.id, "t", state=State.QUEUED)])
        await self.store.mark_published(batches[:2])
        await self.store.mark_published(batches[:2])
        await self.store.mark_published([])
        self.assertEqual([b.id for b in await self.store.adopt_stale(0, 10)], batches[2:])

    async def test_batches_settled_after_take_over_are_dropped_in_time(self) -> None:
        await self.create()
        [taken] = await self.store.adopt_stale(0, 10)
        await self.store.mark_published([taken.id])
        self.assertEqual(list(await self.store.adopt_stale(0, 10)), [])
        await self.age_outbox()
        self.assertEqual(list(await self.store.adopt_stale(0, 10)), [])
        self.assertEqual(await self.count_outbox(), 0)

    # -- claim

    async def test_claim(self) -> None:
        created = await self.create(3)
        tasks = sorted(await self.claim(created), key=lambda t: t.id)
        self.assertEqual([t.id for t in tasks], [t.id for t in created])
        for task in tasks:
            self.assertEqual((task.state, task.attempt, task.version), (State.RUNNING, 1, 2))
            self.assertIsNotNone(task.started_at)
            self.assertEqual(await self.get(task), task)

    async def test_the_last_of_several_attempts_is_for_a_claim_that_is_alone(self) -> None:
        [task] = await self.running(worker="w1", max_attempts=3)
        for worker, alone, attempt in (("w2", False, 2), ("w3", False, None), ("w3", True, 3)):
            claimed = await self.store.claim(worker, 60, [Claim(task.id, task.dispatch, True, alone)])
            self.assertEqual([t.attempt for t in claimed], [attempt] if attempt else [])
        # and who has it already keeps it
        held = await self.store.claim("w3", 60, [Claim(task.id, task.dispatch, False)])
        self.assertEqual([t.attempt for t in held], [3])

    async def test_so_it_is_when_it_was_queued_again(self) -> None:
        [task] = await self.create(max_attempts=2)
        await self.store.claim("w1", 0, [Claim(task.id, task.dispatch, False)])
        await self.store.expire_leases(10)
        [again] = (await self.dispatch()).tasks
        for alone, found in ((False, 0), (True, 1)):
            claimed = await self.store.claim("w2", 60, [Claim(again.id, again.dispatch, False, alone)])
            self.assertEqual(len(claimed), found)

    async def test_the_only_attempt_needs_no_such_claim(self) -> None:
        self.assertEqual(len(await self.running(3, max_attempts=1)), 3)

    async def test_the_first_claim_says_how_many_attempts_there_are(self) -> None:
        [open_one, fixed] = await self.create(1, max_attempts=0) + await self.create(1, max_attempts=2)
        self.assertEqual((await self.get(open_one)).max_attempts, 0)
        claims = [Claim(t.id, 1, False, max_attempts=5) for t in (open_one, fixed)]
        claimed = await self.store.claim("w", 0, claims)
        self.assertEqual({t.id: t.max_attempts for t in claimed}, {open_one.id: 5, fixed.id: 2})
        # and no other one says otherwise
        again = await self.store.claim("v", 60, [Claim(open_one.id, 1, True, max_attempts=9)])
        self.assertEqual([(t.attempt, t.max_attempts) for t in again], [(2, 5)])
        self.assertEqual((await self.get(open_one)).max_attempts, 5)

    async def test_claim_needs_the_dispatch_number(self) -> None:
        [task] = await self.create()
        for number in (0, 2):
            self.assertEqual(list(await self.store.claim("w", 60, [Claim(task.id, number, False)])), [])
        self.assertEqual(list(await self.store.claim("w", 60, [Claim(10**15, 1, True)])), [])
        self.assertEqual(await self.get(task), task)

    async def test_claim_repeated_changes_nothing(self) -> None:
        tasks = await self.create(3)
        first = await self.claim(tasks)
        for redelivered in (False, True):
            again = await self.claim(tasks, redelivered=redelivered)
            self.assertEqual(sorted(again, key=lambda t: t.id), sorted(first, key=lambda t: t.id))

    async def test_message_doubled_in_one_batch_is_claimed_once(self) -> None:
        [task] = await self.create()
        claimed = await self.claim([task, task])
        self.assertEqual([(t.id, t.attempt) for t in claimed], [(task.id, 1)])

    async def test_doubled_message_claims_nothing_of_another_worker(self) -> None:
        [task] = await self.running(worker="one")
        self.assertEqual(await self.claim([task], "two"), [])
        self.assertEqual(await self.get(task), task)

    async def test_redelivery_takes_over_and_fences(self) -> None:
        [task] = await self.running(worker="one")
        [taken] = await self.claim([task], "two", redelivered=True)
        self.assertEqual((taken.attempt, taken.version, taken.state), (2, 3, State.RUNNING))
        self.assertIsNone(await self.finish(task, "one"))
        self.assertIsNone(await self.finish(task, "two"))
        self.assertEqual(await self.store.renew("one", 60, [1, 2, 3]), frozenset())
        self.assertEqual(await self.get(task), taken)
        self.assertIsNotNone(await self.finish(taken, "two"))

    async def test_redelivery_does_not_take_over_the_last_attempt(self) -> None:
        [task] = await self.running(worker="one", max_attempts=1)
        self.assertEqual(await self.claim([task], "two", redelivered=True), [])
        self.assertEqual(await self.get(task), task)

    # -- finish

    async def test_finish(self) -> None:
        done, failed, nothing = await self.running(3)
        outcomes = [
            Outcome(done.id, 1, 1, State.COMPLETED, '{"x": [1, 2]}'),
            Outcome(failed.id, 1, 1, State.FAILED, None, "it broke"),
            Outcome(nothing.id, 1, 1, State.COMPLETED),
        ]
        finished = await self.store.finish("w", outcomes)
        self.assertEqual(set(finished), {done.id, failed.id, nothing.id})
        done, failed, nothing = [await self.get(t) for t in (done, failed, nothing)]
        self.assertEqual((done.state, done.result, done.error), (State.COMPLETED, '{"x": [1, 2]}', None))
        self.assertEqual((failed.state, failed.result, failed.error), (State.FAILED, None, "it broke"))
        self.assertIsNone(nothing.result)
        for task in (done, failed, nothing):
            self.assertEqual((task.version, task.attempt), (3, 1))
            self.assertEqual(tuple(finished[task.id]), (task.version, task.finished_at, None))
            assert task.started_at and task.finished_at
            self.assertGreaterEqual(task.finished_at, task.started_at)
            self.assertEqual(task.finished_at.tzinfo, timezone.utc)

    async def test_finish_is_fenced(self) -> None:
        [task] = await self.running(max_attempts=3)
        for dispatch, attempt, worker in ((2, 1, "w"), (1, 0, "w"), (1, 2, "w"), (1, 1, "v")):
            outcome = Outcome(task.id, dispatch, attempt, State.COMPLETED)
            for again in (False, True):
                self.assertEqual(await self.store.finish(worker, [outcome], again), {})
        self.assertEqual(await self.get(task), task)

    async def test_finish_repeated_counts_once(self) -> None:
        [task] = await self.running()
        first = await self.finish(task, result="1")
        self.assertIsNone(await self.finish(task, result="1"))
        self.assertEqual(await self.finish(task, result="1", again=True), first)
        self.assertIsNone(await self.finish(task, state=State.FAILED, again=True))
        self.assertEqual((await self.get(task)).version, first.version)

    async def test_results_are_kept_as_they_are(self) -> None:
        large = '"' + "x\u00e9" * (128 * 1024) + '"'
        results = ["null", "0", '"NULL"', '""', *PAYLOADS, large]
        tasks = await self.running(len(results))
        outcomes = [Outcome(t.id, 1, 1, State.COMPLETED, r) for t, r in zip(tasks, results, strict=True)]
        await self.store.finish("w", outcomes)
        self.assertEqual([(await self.get(t)).result for t in tasks], results)

    async def test_errors_are_stored_whatever_they_hold(self) -> None:
        errors = [*TEXTS, "nul\0inside", "lone \ud800 surrogate"]
        tasks = await self.running(len(errors))
        outcomes = [Outcome(t.id, 1, 1, State.FAILED, None, e) for t, e in zip(tasks, errors, strict=True)]
        self.assertEqual(len(await self.store.finish("w", outcomes)), len(errors))
        stored = [(await self.get(t)).error for t in tasks]
        self.assertEqual(stored, [*TEXTS, "nulinside", "lone ? surrogate"])

    # -- release, renew, cancel

    async def test_release_spends_no_attempt(self) -> None:
        [task] = await self.running()
        [given] = await self.store.release("w", [Claim(task.id, task.dispatch, False)])
        self.assertEqual((given.state, given.attempt, given.version), (State.WAITING, 0, 3))
        self.assertEqual((given.dispatch, given.started_at, given.run_at), (1, None, task.run_at))
        self.assertEqual(await self.get(task), given)
        self.assertIsNone(await self.finish(task))
        self.assertEqual(await self.claim([task]), [])
        [queued] = (await self.dispatch()).tasks
        self.assertEqual((queued.id, queued.dispatch), (task.id, 2))
        [claimed] = await self.claim([queued], "v")
        self.assertEqual(claimed.attempt, 1)

    async def test_release_repeated_changes_nothing(self) -> None:
        [task] = await self.running()
        held = [Claim(task.id, task.dispatch, False)]
        first = await self.store.release("w", held)
        self.assertEqual(await self.store.release("w", held), first)
        await self.dispatch()
        self.assertEqual(list(await self.store.release("w", held)), [])

    async def test_release_of_what_is_not_held(self) -> None:
        [mine] = await self.running()
        [queued] = await self.create()
        claims = [Claim(mine.id, 2, False), Claim(queued.id, 1, False), Claim(10**15, 1, False)]
        self.assertEqual(list(await self.store.release("w", claims)), [])
        self.assertEqual(list(await self.store.release("v", [Claim(mine.id, 1, False)])), [])
        self.assertEqual(await self.get(mine), mine)

    async def test_renew_names_what_is_held(self) -> None:
        mine = await self.running(3)
        await self.running(2, "v")
        await self.create(2)
        await self.finish(mine[0])
        ids = [task.id for task in mine]
        self.assertEqual(await self.store.renew("w", 60, ids), {mine[1].id, mine[2].id})
        self.assertEqual(await self.store.renew("w", 60, ids[:2]), {mine[1].id})
        self.assertEqual(await self.store.renew("nobody", 60, ids), frozenset())
        self.assertEqual(await self.store.renew("w", 60, []), frozenset())

    async def test_what_is_not_named_is_not_renewed(self) -> None:
        named, other = await self.create(2)
        await self.store.claim("w", 0, [Claim(named.id, 1, False), Claim(other.id, 1, False)])
        await self.store.renew("w", 60, [named.id])
        self.assertEqual([t.id for t in await self.store.expire_leases(10)], [other.id])

    async def test_renewed_lease_does_not_expire(self) -> None:
        [task] = await self.create()
        await self.store.claim("w", 0, [Claim(task.id, 1, False)])
        self.assertEqual(await self.store.renew("w", 60, [task.id]), {task.id})
        self.assertEqual(list(await self.store.expire_leases(10)), [])

    async def test_cancel(self) -> None:
        for state in (State.WAITING, State.QUEUED, State.RUNNING):
            task = await self.in_state(state)
            cancelled = await self.store.cancel(self.ana.id, task.id)
            self.assertEqual((cancelled.state, cancelled.version), (State.CANCELLED, task.version + 1))
            self.assertIsNotNone(cancelled.finished_at)
            self.assertEqual(await self.get(task), cancelled)
            self.assertEqual(await self.store.cancel(self.ana.id, task.id), cancelled)
            for redelivered in (False, True):
                self.assertEqual(await self.claim([task], redelivered=redelivered), [])
        self.assertEqual(len((await self.dispatch()).tasks), 0)
        self.assertEqual(await self.store.count_queued(), {})

    async def test_cancel_of_a_running_task_fences_its_attempt(self) -> None:
        [task] = await self.running()
        await self.store.report("w", [Report(task.id, 1, 1, 0.5, "half")])
        cancelled = await self.store.cancel(self.ana.id, task.id)
        # how far it was stays
        self.assertEqual((cancelled.progress, cancelled.note, cancelled.attempt), (0.5, "half", 1))
        self.assertEqual(await self.store.renew("w", 60, [task.id]), frozenset())
        for state in (State.COMPLETED, State.FAILED, State.WAITING):
            for again in (False, True):
                self.assertIsNone(await self.finish(task, state=state, again=again))
        self.assertEqual(list(await self.store.release("w", [Claim(task.id, 1, False)])), [])
        self.assertEqual(list(await self.store.expire_leases(10)), [])
        self.assertEqual(await self.store.reset_in_flight(), 0)
        self.assertEqual(await self.get(task), cancelled)

    async def test_cancel_of_anothers_task_is_not_found(self) -> None:
        [task] = await self.create()
        for user, task_id in ((self.ben.id, task.id), (self.ana.id, 10**15)):
            with self.assertRaises(NotFound):
                await self.store.cancel(user, task_id)
        self.assertEqual(await self.get(task), task)

    async def test_cancel_comes_too_late(self) -> None:
        for state in (State.COMPLETED, State.FAILED):
            task = await self.in_state(state)
            with self.assertRaisesRegex(Conflict, f"task {task.id} is {state.value}: too late"):
                await self.store.cancel(self.ana.id, task.id)
            self.assertEqual(await self.get(task), task)

    # -- only legal moves

    async def test_no_method_makes_an_illegal_move(self) -> None:
        async def cancel(task: Task) -> None:
            with suppress(Conflict):
                await self.store.cancel(task.user_id, task.id)

        async def retry(task: Task) -> None:
            with suppress(Conflict):
                await self.store.retry(task.user_id, task.id)

        methods: dict[str, Callable[[Task], Awaitable[Any]]] = {
            "dispatch": lambda t: self.dispatch(),
            "promote": lambda t: self.store.promote(100),
            "claim": lambda t: self.store.claim("w", 60, [Claim(t.id, t.dispatch, False)]),
            "take over": lambda t: self.store.claim("v", 60, [Claim(t.id, t.dispatch, True)]),
            "complete": lambda t: self.finish(t),
            "fail": lambda t: self.finish(t, state=State.FAILED),
            "try again": lambda t: self.finish(t, state=State.WAITING),
            "try again later": lambda t: self.finish(t, state=State.WAITING, delay=60.0),
            "report": lambda t: self.store.report("w", [Report(t.id, t.dispatch, t.attempt, None, None, 1, ["x"])]),
            "release": lambda t: self.store.release("w", [Claim(t.id, t.dispatch, False)]),
            "renew": lambda t: self.store.renew("w", 60, [t.id]),
            "cancel": cancel,
            "retry": retry,
            "expire": lambda t: self.store.expire_leases(100),
            "requeue": lambda t: self.store.requeue_lost(Q, 0, 100),
            "reset": lambda t: self.store.reset_in_flight(),
        }
        for state in State:
            for name, method in methods.items():
                before = await self.in_state(state)
                await method(before)
                after = await self.get(before)
                what = f"{name} on {state.value}"
                if after.state is state and after.attempt == before.attempt:
                    self.assertEqual(after, before, what)
                    continue
                self.assertIn(after.state, MOVES[state], what)
                self.assertEqual(after.version, before.version + 1, what)
                self.assertEqual(after.finished_at is not None, after.state in TERMINAL, what)

    # -- repair

    async def test_expired_lease_goes_back_to_waiting(self) -> None:
        [task] = await self.create()
        [task] = await self.store.claim("w", 0, [Claim(task.id, 1, False)])
        [other] = await self.running()
        [back] = await self.store.expire_leases(10)
        self.assertEqual((back.id, back.state, back.attempt), (task.id, State.WAITING, 1))
        self.assertEqual((back.version, back.run_at, back.started_at), (3, task.run_at, None))
        self.assertIsNone(back.error, "that stands among its attempts")
        self.assertEqual(await self.get(task), back)
        self.assertEqual(await self.get(other), other)
        self.assertIsNone(await self.finish(task))
        self.assertEqual(list(await self.store.expire_leases(10)), [])
        [queued] = (await self.dispatch()).tasks
        [claimed] = await self.claim([queued], "v")
        self.assertEqual((claimed.attempt, claimed.dispatch), (2, 2))

    async def test_expired_lease_of_the_last_attempt_fails(self) -> None:
        [task] = await self.create(max_attempts=1)
        [task] = await self.store.claim("w", 0, [Claim(task.id, 1, False)])
        [failed] = await self.store.expire_leases(10)
        self.assertEqual((failed.state, failed.attempt, failed.version), (State.FAILED, 1, 3))
        self.assertEqual(failed.error, "lease expired on attempt 1 of 1: the worker stopped answering")
        self.assertIsNotNone(failed.finished_at)
        self.assertEqual(await self.get(task), failed)

    async def test_expiry_is_bounded(self) -> None:
        tasks = await self.create(5)
        await self.store.claim("w", 0, [Claim(t.id, 1, False) for t in tasks])
        self.assertEqual(len(await self.store.expire_leases(3)), 3)
        self.assertEqual(len(await self.store.expire_leases(3)), 2)

    async def test_lost_messages_are_queued_again(self) -> None:
        tasks = await self.create(4)
        await self.create(1, queue="other")
        await self.create(1, kind="other")
        [running] = await self.claim(tasks[:1])
        self.assertEqual(list(await self.store.requeue_lost(Q, 100, 10)), [])
        self.assertEqual(len(await self.store.requeue_lost(Q, 0, 2)), 2)
        [back] = await self.store.requeue_lost(Q, 0, 10)
        self.assertEqual((back.state, back.dispatch, back.version), (State.WAITING, 1, 2))
        self.assertEqual(await self.get(running), running)
        self.assertEqual(await self.store.count_queued(), {OTHER: 1, Route("q", "other"): 1})
        queued = (await self.dispatch()).tasks
        self.assertEqual([(t.id, t.dispatch) for t in queued], [(t.id, 2) for t in tasks[1:]])
        # the lost messages come after all
        self.assertEqual(await self.claim(tasks[1:]), [])
        self.assertEqual(len(await self.claim(queued)), 3)

    async def test_reset_takes_everything_in_flight_back(self) -> None:
        waiting = await self.create(2, State.WAITING)
        queued = await self.create(2)
        running = await self.running(2)
        [last] = await self.running(1, max_attempts=1)
        done = await self.in_state(State.COMPLETED)
        self.assertEqual(await self.store.reset_in_flight(), 5)
        states = [(await self.get(t)).state for t in (*waiting, *queued, *running, last)]
        self.assertEqual(states, [State.WAITING] * 6 + [State.FAILED])
        last = await self.get(last)
        self.assertIn("lease expired", last.error or "")
        assert last.finished_at is not None
        self.assertLess(abs(last.finished_at - last.created_at), timedelta(minutes=10))
        self.assertEqual(await self.get(done), done)
        self.assertEqual(await self.count_outbox(), 0)
        self.assertEqual(await self.store.count_queued(), {})
        self.assertEqual(len((await self.dispatch()).tasks), 6)
        self.assertEqual(await self.store.reset_in_flight(), 6)

    async def test_count_queued(self) -> None:
        self.assertEqual(await self.store.count_queued(), {})
        await self.create(3)
        await self.create(2, queue="other")
        await self.create(1, queue="other", kind="k")
        await self.create(4, State.WAITING)
        await self.running(1)
        self.assertEqual(await self.store.count_queued(), {Q: 3, OTHER: 2, Route("other", "k"): 1})

    # -- reading

    async def test_find_tasks_asks_nobody(self) -> None:
        [mine], [theirs] = await self.create(), await self.create(user=self.ben)
        found = await self.store.find_tasks([mine.id, theirs.id, 10**15])
        self.assertEqual({t.id: t for t in found}, {mine.id: mine, theirs.id: theirs})
        self.assertEqual(list(await self.store.find_tasks([])), [])

    async def test_get_tasks_gives_only_the_users_own(self) -> None:
        mine, theirs = await self.create(2), await self.create(2, user=self.ben)
        ids = [t.id for t in (*mine, *theirs)]
        found = await self.store.get_tasks(self.ana.id, [*ids, 10**15])
        self.assertEqual(sorted(t.id for t in found), [t.id for t in mine])
        self.assertEqual(list(await self.store.get_tasks(self.ana.id, [])), [])

    async def test_numbers_that_no_task_can_have(self) -> None:
        [task] = await self.create()
        for number in (10**30, 2**63, 0, -1, -(10**30)):
            self.assertEqual(list(await self.store.get_tasks(self.ana.id, [number])), [])
            with self.assertRaises(NotFound):
                await self.store.cancel(self.ana.id, number)
            page = await self.store.list_tasks(self.ana.id, TaskQuery(10, number))
            self.assertEqual([t.id for t in page.tasks], [task.id] if number > 0 else [])
            self.assertIsNone(page.before)

    async def test_kinds_that_no_task_can_have(self) -> None:
        await self.create()
        for kind in ("nul\0", "lone \ud800 surrogate"):
            with self.assertRaises(BadRequest):
                await self.store.list_tasks(self.ana.id, TaskQuery(10, kind=kind))
        for kind in TEXTS:
            self.assertEqual(await self.pages(kind=kind), [])

    async def test_list_is_newest_first(self) -> None:
        tasks = [await self.in_state(state) for _ in range(3) for state in State]
        await self.create(5, user=self.ben)
        ids = [t.id for t in reversed(tasks)]
        for limit in (1, 3, 17, 18, 19, 500):
            self.assertEqual(await self.pages(limit=limit), ids)
        self.assertEqual(await self.pages(User(10**15, "nobody")), [])
        page = await self.store.list_tasks(self.ana.id, TaskQuery(18))
        self.assertIsNone(page.before)

    async def test_list_is_filtered(self) -> None:
        tasks = [await self.in_state(state) for _ in range(4) for state in State]
        other = await self.create(2, kind="other")
        [retrying] = await self.create()
        await self.store.claim("w", 0, [Claim(retrying.id, 1, False)])
        await self.store.expire_leases(1)
        [scheduled] = await self.create(state=State.WAITING)
        await self.postpone(scheduled.id)
        everything = [*tasks, *other, await self.get(retrying), await self.get(scheduled)]

        def ids(keep: Callable[[Task], bool]) -> list[int]:
            return sorted((t.id for t in everything if keep(t)), reverse=True)

        special = {retrying.id, scheduled.id}
        for state in State:
            expected = ids(lambda t, state=state: t.state is state and t.id not in special)  # type: ignore[misc]
            self.assertEqual(await self.pages(state=state.value), expected, state)
        self.assertEqual(await self.pages(state="retrying"), [retrying.id])
        self.assertEqual(await self.pages(state="scheduled"), [scheduled.id])
        open_ones = ids(lambda t: t.state not in TERMINAL)
        self.assertEqual(await self.pages(status="Procesando"), open_ones)
        self.assertEqual(await self.pages(status="Completada"), ids(lambda t: t.state is State.COMPLETED))
        self.assertEqual(await self.pages(status="Fallida"), ids(lambda t: t.state is State.FAILED))
        self.assertEqual(await self.pages(status="Cancelada"), ids(lambda t: t.state is State.CANCELLED))
        self.assertEqual(await self.pages(kind="other"), [t.id for t in reversed(other)])
        self.assertEqual(await self.pages(kind="nothing"), [])
        self.assertEqual(await self.pages(kind="other", state="queued"), [t.id for t in reversed(other)])
        self.assertEqual(await self.pages(kind="other", status="Procesando", limit=1), [t.id for t in reversed(other)])
        self.assertEqual(await self.pages(status="Completada", state="queued"), [])

    async def test_filter_looks_at_no_more_than_its_bound(self) -> None:
        [needle] = await self.create(1, State.WAITING, kind="needle")
        for _ in range(6):
            await self.create(1000, State.WAITING)
        for query in (TaskQuery(10, kind="needle"), TaskQuery(10, kind="needle", status="Procesando")):
            page = await self.store.list_tasks(self.ana.id, query)
            self.assertEqual(len(page.tasks), 0)
            self.assertIsNotNone(page.before)
        self.assertEqual(await self.pages(kind="needle"), [needle.id])
        self.assertEqual(await self.pages(kind="needle", state="waiting"), [needle.id])

    async def test_list_shows_no_payload_and_no_large_result(self) -> None:
        small, large = await self.running(2, payload='{"x":1}')
        await self.finish(small, result="[1]")
        await self.finish(large, result='"' + "x" * 100_000 + '"')
        page = await self.store.list_tasks(self.ana.id, TaskQuery(10))
        [second, first] = page.tasks
        self.assertEqual((first.result, first.payload), ("[1]", "{}"))
        self.assertEqual(len(second.result or ""), LISTED_RESULT_BYTES + 1)
