"""PostgreSQL connections that die, hang or are cut at the worst moment, and a server that is stopped."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec.structs import replace
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from taskd.model.errors import BadRequest, Unavailable, UsernameInUse
from taskd.model.states import State
from taskd.model.tasks import NewTask, Task
from taskd.ports.attempts import Begun, Held, Outcome
from taskd.ports.logs import Report
from taskd.ports.scheduling import Place, Pool, Served
from taskd.ports.workers import digest
from taskd.store.postgres.store import PostgresStore
from tests import services
from tests.conformance.postgres import Hooks, together, until
from tests.conformance.store.case import Q


class Failing(Hooks):
    """Connections that die, hang and are cut at the worst moment."""

    async def test_not_yet_started(self) -> None:
        store = self.build()
        with self.assertRaisesRegex(Unavailable, "cannot be reached yet"):
            await store.find_user("ana")
        await store.stop()
        with self.assertRaisesRegex(Unavailable, "the store is closed"):
            await store.find_user("ana")
        with self.assertRaisesRegex(Unavailable, "the store is closed"):
            await store.start()

    async def test_host_name_is_resolved(self) -> None:
        store = self.build(dsn={"host": "localhost"})
        await store.start()
        self.assertIsNotNone(await store.find_user("ana"))

    async def test_killed_backends_are_replaced(self) -> None:
        for _ in range(3):
            await self.create()
            pids = self.backends()
            self.assertGreater(self.kill(), 0)
            tasks = await together(self.create() for _ in range(20))
            self.assertEqual(len({t.id for [t] in tasks}), 20)
            self.assertEqual(self.backends() & pids, set())

    async def test_backends_killed_while_statements_run(self) -> None:
        work = together(self.create(3) for _ in range(100))
        for count in (60, 120, 180):
            await until(lambda count=count: self.sql("SELECT count(*) FROM tasks")[0][0] >= count)  # type: ignore[misc]
            # the earlier backends may be gone and no new one connected yet
            await until(self.kill)
        ids = [t.id for tasks in await work for t in tasks]
        self.assertEqual(len(set(ids)), 300)
        self.assertEqual(self.sql("SELECT count(*) FROM tasks"), [(300,)])

    async def test_slow_statement_is_given_up_and_the_connection_lives_on(self) -> None:
        store = self.build(size=1, statement_timeout=1)
        await store.start()
        before = self.backends()
        [task] = await self.queued()
        holder = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", task.id)
        with self.assertRaisesRegex(Unavailable, "statement timeout"):
            await store.begin("w", [Begun(task.id, 1)], False)
        holder.rollback()
        self.assertEqual(len(await store.begin("w", [Begun(task.id, 1)], False)), 1)
        self.assertEqual(before - self.backends(), set())

    async def test_connection_that_hangs_is_given_up(self) -> None:
        store, proxy = await self.through_proxy(statement_timeout=1)
        rows = await self.new()
        proxy.swallow_answer()
        [task] = (await store.create_tasks(rows)).tasks
        self.assertEqual(self.sql("SELECT id FROM tasks"), [(task.id,)])

    async def test_statements_that_daemons_need_to_go_on_are_given_up_early(self) -> None:
        await self.serve()
        [task] = await self.queued()
        pool = Pool([Place("w", 3)], [Served(*Q, 3)])
        calls: list[Callable[[Any], Awaitable[Any]]] = [
            lambda store: store.look("w", []),
            lambda store: store.standing("w"),
            lambda store: store.beat("w", {}, [], digest([])),
            lambda store: store.poll_workers(),
            lambda store: store.assign(pool, 10, 0),
        ]

        async def unanswered(call: Callable[[Any], Awaitable[Any]]) -> Any:
            # without their own timeout they would wait for longer than this test may take
            store, proxy = await self.through_proxy(statement_timeout=600)
            proxy.swallow_answer()
            try:
                return await call(store)
            except Unavailable as e:
                return e.message.partition(":")[0]

        look, standing, *others = await together(unanswered(call) for call in calls)
        self.assertEqual([found.task.id for found in look], [task.id])
        self.assertEqual([found.task_id for found in standing], [task.id])
        self.assertEqual(others, ["the connection to the database was lost; try again"] * 3)

    async def test_a_look_behind_a_lock_is_given_up_early_and_its_connection_lives_on(self) -> None:
        store = self.build(size=1, statement_timeout=600)
        await store.start()
        await self.queued()
        before = self.backends()
        holder = self.transaction("LOCK TABLE tasks")
        with self.assertRaisesRegex(Unavailable, "statement timeout"):
            await store.look("w", [])
        holder.rollback()
        self.assertEqual(len(await store.look("w", [])), 1)
        self.assertEqual(before - self.backends(), set())

    async def test_handshake_that_is_cut_is_retried(self) -> None:
        store, proxy = await self.through_proxy()
        for _ in range(3):
            proxy.cut_after_commit()
            self.kill()
            await until(lambda: proxy.fate is None)
            self.assertIsNotNone(await store.find_user("ana"))

    async def test_values_that_the_server_refuses_are_bad_requests(self) -> None:
        [task] = await self.running()
        for result in ("no json", "[" * 300_000 + "]" * 300_000):
            with self.assertRaisesRegex(BadRequest, "cannot be stored"):
                await self.finish(task, result=result)
        self.assertEqual(await self.get(task), task)

    async def test_a_text_with_nul_is_a_bad_request(self) -> None:
        for call in (lambda: self.beat("w\0"), lambda: self.look("w\0"), lambda: self.turn({"w\0": 1})):
            with self.assertRaisesRegex(BadRequest, "NUL"):
                await call()
        self.assertIsNotNone(await self.store.find_user("ana"))

    async def test_a_turn_that_fails_leaves_the_connection_outside_of_a_transaction(self) -> None:
        store = self.build(size=1)
        await store.start()
        await self.create()
        await self.serve()
        with self.assertRaisesRegex(BadRequest, "cannot be stored"):
            await store.assign(Pool([Place("w", 2**40)], [Served(*Q, 3)]), 10, 0)
        self.assertEqual(len((await store.assign(Pool([Place("w", 2)], [Served(*Q, 3)]), 10, 0)).tasks), 1)
        states = "SELECT DISTINCT state FROM pg_stat_activity WHERE datname = %s AND application_name = 'taskd'"
        self.assertEqual(self.sql(states, self.database), [("idle",)])

    async def test_deadlock_is_retried(self) -> None:
        first, second = await self.queued(2)
        ours = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", second.id)
        beginning = Deferred.fromCoroutine(self.begin([first, second]))
        await until(lambda: self.blocked() == 1)
        # the backend whose deadlock_timeout ends first is the victim: that must be the store's
        ours.cursor().execute("SET deadlock_timeout = '10s'")
        closing = deferToThread(ours.cursor().execute, "SELECT FROM tasks WHERE id = %s FOR UPDATE", (first.id,))
        await closing
        ours.rollback()
        self.assertEqual(len(await beginning), 2)

    # -- the ambiguous commit

    async def ambiguous(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """The answer of ``call`` when the connection is cut after its commit."""
        if not hasattr(self, "cut"):
            self.cut, self.proxy = await self.through_proxy()
        # this opens its one connection, so that the cut hits the call
        await self.cut.find_user("ana")
        self.proxy.cut_after_commit()
        answer = await call(self.cut)
        self.assertIsNone(self.proxy.fate, "nothing was cut")
        return answer

    async def test_created_once(self) -> None:
        await self.serve()
        rows = [*await self.new(2, key=None), *await self.new(1, key="k"), *await self.new(1, worker="w")]
        created = await self.ambiguous(lambda store: store.create_tasks(rows, 3))
        self.assertEqual([t.id for t in created.tasks], [t.id for t in rows])
        self.assertEqual([t.state for t in created.tasks], [State.WAITING] * 3 + [State.QUEUED])
        self.assertEqual(await self.pages(), [t.id for t in reversed(rows)])
        self.assertEqual([await self.get(t) for t in created.tasks], list(created.tasks))
        self.assertEqual(len(set(created.ids)), 3)
        self.assertGreater(min(created.ids), max(t.id for t in rows))

    async def test_what_was_assigned_and_released_since_is_returned_as_it_is(self) -> None:
        """The first run has committed, and others have seen it, before its repetition."""
        await self.serve()
        [row] = await self.new(1, worker="w")
        [first] = (await self.store.create_tasks([row])).tasks
        await self.release([first])
        [again] = (await self.store.create_tasks([row])).tasks
        self.assertEqual((again.state, again.dispatch, again.attempt, again.version), (State.WAITING, 1, 0, 2))

    async def test_ids_that_were_drawn_are_drawn_again(self) -> None:
        ids = await self.ambiguous(lambda store: store.draw_ids(5))
        self.assertEqual((len(set(ids)), list(ids)), (5, sorted(ids)))
        self.assertGreater(min(await self.store.draw_ids(1)), max(ids))

    async def test_a_turn_whose_answer_is_lost_is_not_repeated(self) -> None:
        await self.create(5)
        await self.serve()
        pool = Pool([Place("w", 3)], [Served(*Q, 3)])
        with self.assertRaisesRegex(Unavailable, "connection to the database was lost"):
            await self.ambiguous(lambda store: store.assign(pool, 10, 0))
        # the worker finds what it has assigned, and the next turn counts it
        self.assertEqual(len(await self.look()), 3)
        turn = await self.store.assign(pool, 10, 0)
        self.assertEqual((len(turn.tasks), turn.backlog, dict(turn.room)), (0, True, {"w": 0}))

    async def test_begun_finished_and_released_once(self) -> None:
        done, given = await self.queued(2)
        begun = [Begun(t.id, t.dispatch, 0.5) for t in (done, given)]
        calls: list[Callable[[Any], Awaitable[Any]]] = [
            lambda store: store.begin("w", begun, True),
            lambda store: store.begin("w", begun, False),
        ]
        for call in calls:
            started = await self.ambiguous(call)
            self.assertEqual([started[t.id].version for t in (done, given)], [2, 2])
        outcome = Outcome(done.id, 1, 1, State.COMPLETED, "1")
        finished = await self.ambiguous(lambda store: store.finish("w", [outcome]))
        self.assertEqual(finished[done.id].version, 3)
        self.assertEqual(finished[done.id].started_at, started[done.id].started_at)
        held = [Held(given.id, 1)]
        [back] = await self.ambiguous(lambda store: store.release("w", held, stopping=True))
        self.assertEqual((back.state, back.attempt, back.version, back.returns), (State.WAITING, 0, 3, 1))
        self.assertEqual([(await self.get(t)).version for t in (done, given)], [3, 3])

    async def test_what_ended_before_it_was_stored_as_running_ends_once(self) -> None:
        tasks = await self.queued(3)
        states = (State.COMPLETED, State.FAILED, State.WAITING)
        outcomes = [
            Outcome(t.id, 1, 1, state, None, "x", None, 60, 0.1) for t, state in zip(tasks, states, strict=True)
        ]
        finished = await self.ambiguous(lambda store: store.finish("w", outcomes))
        self.assertEqual([finished[t.id].version for t in tasks], [3, 3, 3])
        self.assertEqual([(await self.get(t)).version for t in tasks], [3, 3, 3])

    async def test_failed_and_retried_once(self) -> None:
        failed, later = await self.running(2)
        outcomes = [
            Outcome(failed.id, 1, 1, State.FAILED, None, "broke"),
            Outcome(later.id, 1, 1, State.WAITING, None, "broke", None, 60),
        ]
        finished = await self.ambiguous(lambda store: store.finish("w", outcomes))
        self.assertEqual([finished[t.id].version for t in (failed, later)], [3, 3])
        self.assertEqual(finished[later.id].run_at, (await self.get(later)).run_at)
        self.assertEqual(await self.count_rows(), (2, 0, 2))
        [task] = [await self.ambiguous(lambda store: store.retry(self.ana.id, failed.id))]
        self.assertEqual((task.state, task.version), (State.WAITING, 4))

    async def test_reported_once(self) -> None:
        [task] = await self.running()
        reports = [Report(task.id, 1, 1, 0.5, "half", 1, ["one", "two"])]
        self.assertEqual(await self.ambiguous(lambda store: store.report("w", reports)), {task.id})
        [chunk] = await self.store.read_log(task.id, None, 10)
        self.assertEqual(list(chunk.lines), ["one", "two"])

    async def test_deleted_once(self) -> None:
        task = await self.in_state(State.FAILED)
        await self.backdate(task.id, 100, 100)
        await self.ambiguous(lambda store: store.delete_finished(50, 0, 10))
        self.assertEqual(await self.count_rows(), (0, 0, 0))

    async def test_registered_and_cancelled_once(self) -> None:
        user = await self.ambiguous(lambda store: store.create_user("Zoe", "zoe", "$2b$hash"))
        self.assertEqual((await self.store.find_user("zoe")).user, user)
        with self.assertRaises(UsernameInUse):
            await self.store.create_user("Zoe", "zoe", "$2b$other")
        [task] = await self.create()
        cancelled = await self.ambiguous(lambda store: store.cancel(self.ana.id, task.id))
        self.assertEqual((cancelled.state, cancelled.version), (State.CANCELLED, 2))

    async def test_statements_that_are_not_repeated_are_unavailable_and_run_once(self) -> None:
        [delayed] = await self.create()
        [running] = await self.running()
        await self.die("w")
        await self.postpone(delayed.id, -1)
        calls: list[tuple[Callable[[Any], Awaitable[Any]], Task, int]] = [
            (lambda store: store.promote(10), delayed, 1),
            (lambda store: store.take_back({}), running, 3),
        ]
        for call, task, version in calls:
            with self.assertRaisesRegex(Unavailable, "connection to the database was lost"):
                await self.ambiguous(call)
            self.assertEqual((await self.get(task)).version, version)
        self.assertEqual(list(await self.store.promote(10)), [])
        self.assertEqual(set(await self.due()), {delayed.id, running.id})

    async def test_registered_once_and_a_beat_is_not_repeated(self) -> None:
        worker = await self.serve("model")
        await self.ambiguous(lambda store: store.register(replace(worker, name="w")))
        before = await self.status()
        calls: list[Callable[[Any], Awaitable[Any]]] = [
            lambda store: store.beat("w", {}, [], digest([])),
            lambda store: store.poll_workers(),
        ]
        for call in calls:
            with self.assertRaisesRegex(Unavailable, "connection to the database was lost"):
                await self.ambiguous(call)
        self.assertEqual((await self.status()).beat, before.beat + 1)


class Outage(TestCase):
    """A separate server that is stopped."""

    def setUp(self) -> None:
        services.require("postgres")
        self.server = services.Postgres(fsync=False)
        self.addCleanup(self.server.stop, "immediate")
        self.store = PostgresStore(self.server.dsn(), reactor, 2, wait=0.5, retry=1.0)
        self.addCleanup(self.store.stop)

    async def test_goes_away_and_comes_back(self) -> None:
        starting = Deferred.fromCoroutine(self.store.start())
        with self.assertRaisesRegex(Unavailable, "cannot be reached yet"):
            await self.store.find_user("ana")
        self.assertFalse(self.store.ready)
        await deferToThread(self.server.start)
        await starting
        self.assertTrue(self.store.ready)
        user = await self.store.create_user("Ana", "ana", "x")
        epochs = {(await self.store.poll_workers()).epoch}
        numbers = iter(await self.store.draw_ids(100_000))
        confirmed: list[str] = []
        unknown: list[str] = []

        async def submit() -> None:
            """Create tasks until the store is unavailable."""
            while True:
                text = uuid.uuid4().hex
                try:
                    new = NewTask(user.id, text, id=next(numbers))
                    [task] = (await self.store.create_tasks([new])).tasks
                except Unavailable:
                    unknown.append(text)
                    return
                self.assertEqual(task.task, text)
                confirmed.append(text)

        for mode in ("immediate", "fast"):
            submitters = together(submit() for _ in range(4))
            goal = len(confirmed) + 50
            await until(lambda goal=goal: len(confirmed) >= goal)  # type: ignore[misc]
            await deferToThread(self.server.stop, mode)
            await submitters
            await until(lambda: not self.store.ready)
            asked = reactor.seconds()
            with self.assertRaisesRegex(Unavailable, "cannot be reached now") as refusal:
                await self.store.find_user("ana")
            self.assertIsNotNone(refusal.exception.retry_after)
            self.assertLess(reactor.seconds() - asked, 2)
            await deferToThread(self.server.start)
            await until(lambda: self.store.ready)
            self.assertIsNotNone(await self.store.find_user("ana"))
            epochs.add((await self.store.poll_workers()).epoch)
        self.assertEqual(len(epochs), 3)
        stored = [text for (text,) in self.server.query("SELECT task FROM tasks")]
        self.assertEqual(len(stored), len(set(stored)))
        self.assertEqual(set(confirmed) - set(stored), set())
        self.assertEqual(set(stored) - set(confirmed) - set(unknown), set())

    async def test_stop_while_starting(self) -> None:
        starting = Deferred.fromCoroutine(self.store.start())
        await until(lambda: self.store._waiting is not None)
        await self.store.stop()
        with self.assertRaisesRegex(Unavailable, "the store is closed"):
            await starting


del Hooks, TestCase
