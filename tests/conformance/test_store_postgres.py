"""The suite of IStore on PostgreSQL, and several servers and workers on one database."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred

from taskd.model.errors import Conflict
from taskd.model.states import State
from taskd.model.tasks import NewTask, Task
from taskd.ports.attempts import Claim, Outcome
from taskd.ports.logs import Report
from taskd.ports.tasks import TaskQuery
from taskd.store.listing import SCANNED_ROWS
from tests.conformance.postgres import Hooks, together, until
from tests.conformance.store.case import Q, new_batch
from tests.conformance.store.suite import StoreTests


class Suite(Hooks, StoreTests):
    """The suite itself."""


class Shared(Hooks):
    """Several servers and workers on one database."""

    async def test_concurrent_dispatchers_dispatch_every_task_once(self) -> None:
        users = await self.users(5)
        for i, user in enumerate(users):
            await self.create(20 + 60 * i, State.WAITING, user)
        stores = [self.store, *[await self.make() for _ in range(2)]]

        async def dispatcher(store: Any) -> list[Task]:
            found: list[Task] = []
            after, idle = None, 0
            while idle < 3:
                turn = await store.dispatch(new_batch(), Q, 17, after)
                found += turn.tasks
                after = turn.last_user
                idle = 0 if turn.tasks else idle + 1
            return found

        found = [t for tasks in await together(dispatcher(store) for store in stores) for t in tasks]
        # tasks that one server had locked when another came by are left to the next round
        found += await dispatcher(self.store)
        self.assertEqual(len({t.id for t in found}), len(found))
        self.assertEqual({t.dispatch for t in found}, {1})
        self.assertEqual(len(found), sum(20 + 60 * i for i in range(5)))
        # in the batch that created the task, and in one batch that dispatched it
        times = "SELECT count(*) FROM outbox, unnest(task_ids) AS i GROUP BY i"
        self.assertEqual({times for (times,) in self.sql(times)}, {2})

    async def test_each_task_is_promoted_once(self) -> None:
        users = await self.users(40)
        for user in users:
            [task] = await self.create(1, State.WAITING, user)
            await self.postpone(task.id, -1)
        stores = [self.store, *[await self.make() for _ in range(2)]]

        async def promoter(store: Any) -> list[Any]:
            found: list[Any] = []
            while due := await store.promote(3):
                found += due
            return found

        found = [pair for pairs in await together(promoter(store) for store in stores) for pair in pairs]
        found += await promoter(self.store)
        self.assertEqual(sorted(found), [(Q, user.id) for user in users])

    async def test_dispatch_skips_rows_that_another_has_locked(self) -> None:
        tasks = await self.create(5, State.WAITING)
        other = self.transaction("SELECT FROM tasks WHERE id = ANY(%s) FOR UPDATE", [t.id for t in tasks[:2]])
        turn = await self.dispatch(2)
        self.assertEqual([t.id for t in turn.tasks], [t.id for t in tasks[2:4]])
        other.rollback()
        self.assertEqual([t.id for t in (await self.dispatch(9)).tasks], [tasks[i].id for i in (0, 1, 4)])

    async def test_promote_skips_rows_that_another_has_locked(self) -> None:
        tasks = await self.create(3, State.WAITING)
        for task in tasks:
            await self.postpone(task.id, -1)
        other = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", tasks[0].id)
        self.assertEqual(await self.store.promote(10), [(Q, self.ana.id)])
        self.assertEqual({t.id for t in (await self.dispatch()).tasks}, {tasks[1].id, tasks[2].id})
        other.rollback()
        self.assertEqual(await self.store.promote(10), [(Q, self.ana.id)])

    async def test_batches_lock_rows_in_one_order(self) -> None:
        # A statement that waits for the first row must not hold the second
        first, second = await self.create(2)
        mine = sorted(await self.running(2), key=lambda t: t.id)
        other, third = await self.make(), await self.make()
        await self.serve("v")
        backwards = [Claim(t.id, t.dispatch) for t in (second, first)]
        done, put_off = [
            [Outcome(t.id, t.dispatch, t.attempt, state) for t in reversed(mine)]
            for state in (State.COMPLETED, State.WAITING)
        ]
        reports = [Report(t.id, t.dispatch, t.attempt, 0.5) for t in reversed(mine)]
        holder = self.transaction("SELECT FROM tasks WHERE id IN (%s, %s) FOR UPDATE", first.id, mine[0].id)
        waiting = together(
            [
                self.store.claim("v", backwards),
                other.finish("w", done),
                other.finish("w", put_off),
                self.release(list(reversed(mine))),
                third.report("w", reports),
            ]
        )
        await until(lambda: self.blocked() == 5)
        self.sql("SELECT FROM tasks WHERE id IN (%s, %s) FOR UPDATE NOWAIT", second.id, mine[1].id)
        holder.rollback()
        claimed, completed, failed, released, _ = await waiting
        self.assertEqual({t.id for t in claimed}, {first.id, second.id})
        ended = [*completed, *failed, *[t.id for t in released]]
        self.assertEqual(sorted(set(ended)), [t.id for t in mine])

    async def test_a_claim_that_waits_for_a_cancel_claims_nothing(self) -> None:
        [task] = await self.create()
        text = "UPDATE tasks SET state = 'cancelled', version = version + 1, finished_at = now() WHERE id = %s"
        cancelling = self.transaction(text, task.id)
        claiming = Deferred.fromCoroutine(self.claim([task]))
        await until(lambda: self.blocked() == 1)
        cancelling.commit()
        self.assertEqual(await claiming, [])

    async def test_either_finish_or_cancel_wins(self) -> None:
        for finish_first in (True, False):
            [task] = await self.running()
            other = await self.make()
            holder = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", task.id)

            async def cancel(store: Any = other, task: Task = task) -> Any:
                try:
                    return await store.cancel(task.user_id, task.id)
                except Conflict:
                    return None

            async def finish(task: Task = task) -> Any:
                return await self.finish(task)

            rivals: list[Callable[[], Coroutine[Any, Any, Any]]] = (
                [finish, cancel] if finish_first else [cancel, finish]
            )
            answers = []
            for n, rival in enumerate(rivals, 1):
                answers.append(Deferred.fromCoroutine(rival()))
                await until(lambda n=n: self.blocked() == n)  # type: ignore[misc]
            holder.rollback()
            won, lost = [await answer for answer in answers]
            self.assertTrue(won)
            self.assertFalse(lost)
            self.assertIs((await self.get(task)).state, State.COMPLETED if finish_first else State.CANCELLED)

    async def test_finish_that_waits_for_a_take_over_is_fenced(self) -> None:
        [task] = await self.running(worker="one")
        text = "UPDATE tasks SET worker = 'two', attempt = 2, version = version + 1 WHERE id = %s"
        taking = self.transaction(text, task.id)
        finishing = Deferred.fromCoroutine(self.finish(task, "one"))
        await until(lambda: self.blocked() == 1)
        taking.commit()
        self.assertIsNone(await finishing)
        self.assertIs((await self.get(task)).state, State.RUNNING)

    async def test_a_repeated_batch_is_kept_after_it_was_settled(self) -> None:
        # a third run may still be delayed in the network, and must find that the id is taken
        batch, rows = new_batch(), [NewTask(self.ana.id, "t", state=State.QUEUED)]
        first = list(await self.store.create_tasks(batch, rows))
        for _ in range(2):
            self.assertEqual(list(await self.store.create_tasks(batch, rows)), first)
            await self.store.mark_published([batch])

    async def test_cancel_of_a_task_that_is_retried_in_between(self) -> None:
        task = await self.in_state(State.FAILED)
        store, proxy = await self.through_proxy()
        requests = 0

        def retry() -> None:
            nonlocal requests
            requests += 1
            if requests == 2:
                # its first statement has found the task failed
                text = """
                    UPDATE tasks SET state = 'waiting', finished_at = NULL, dispatched_at = NULL, version = version + 1
                    WHERE id = %s
                """
                self.sql(text, task.id)

        proxy.before = retry
        cancelled = await store.cancel(task.user_id, task.id)
        self.assertIs(cancelled.state, State.CANCELLED)

    async def test_of_several_retries_one_wins(self) -> None:
        task = await self.in_state(State.FAILED)
        stores = [self.store, await self.make()]
        holder = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", task.id)
        retrying = together(store.retry(task.user_id, task.id) for store in stores)
        await until(lambda: self.blocked() == 2)
        holder.rollback()
        for found in await retrying:
            self.assertEqual((found.state, found.version), (State.WAITING, task.version + 1))

    async def test_an_attempt_is_recorded_as_it_was(self) -> None:
        [task] = await self.running(worker="one")
        text = "UPDATE tasks SET worker = 'two', attempt = 2, version = version + 1 WHERE id = %s"
        taking = self.transaction(text, task.id)
        failing = Deferred.fromCoroutine(self.finish(task, "one", state=State.WAITING, error="broke"))
        saying = Deferred.fromCoroutine(self.store.report("one", [Report(task.id, 1, 1, 0.5, "half", 1, ["line"])]))
        await until(lambda: self.blocked() == 2)
        taking.commit()
        self.assertIsNone(await failing)
        self.assertEqual(await saying, frozenset())
        self.assertEqual(await self.count_rows(), (1, 0, 0))
        self.assertIsNone((await self.get(task)).progress)

    async def test_a_page_and_its_end_come_from_one_snapshot(self) -> None:
        [needle] = await self.create(1, State.WAITING, kind="needle")
        tasks = await self.create(SCANNED_ROWS + 100, State.WAITING)
        store, proxy = await self.through_proxy()
        requests = 0

        def finish_the_newest() -> None:
            nonlocal requests
            requests += 1
            if requests == 2:
                text = "UPDATE tasks SET state = 'cancelled', finished_at = now() WHERE id > %s"
                self.sql(text, tasks[100].id)

        proxy.before = finish_the_newest
        query = TaskQuery(10, kind="needle", status="Procesando")
        page = await store.list_tasks(self.ana.id, query)
        self.assertEqual(len(page.tasks), 0)
        finish_the_newest()
        assert page.before is not None
        page = await store.list_tasks(self.ana.id, TaskQuery(10, page.before, kind="needle", status="Procesando"))
        self.assertEqual([t.id for t in page.tasks], [needle.id])


del Hooks, StoreTests
