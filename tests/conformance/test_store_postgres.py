"""The suite of IStore on PostgreSQL, and several servers and workers on one database."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from taskd.model.errors import Conflict, Unavailable
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Begun, Outcome
from taskd.ports.logs import Report
from taskd.ports.scheduling import Place, Pool, Served
from taskd.ports.tasks import TaskQuery
from taskd.store.listing import SCANNED_ROWS
from taskd.store.postgres.scheduling import TURN, TURN_LOCKS, turn_lock
from taskd.store.postgres.store import PREPARED
from tests.conformance.postgres import Hooks, together, until
from tests.conformance.store.case import Q
from tests.conformance.store.suite import StoreTests


class Suite(Hooks, StoreTests):
    """The suite itself."""


class Shared(Hooks):
    """Several servers and workers on one database."""

    async def test_concurrent_turns_assign_every_task_once_and_share_exactly(self) -> None:
        users = await self.users(5)
        for user in users:
            await self.create(100, user)
        stores = [self.store, *[await self.make() for _ in range(2)]]
        pool = Pool([Place("v", 40), Place("w", 60)], [Served(*Q, 3)])
        for place in pool.places:
            await self.serve(place.worker)
        turns = {store: 0 for store in stores}

        async def dispatcher(store: Any) -> list[Task]:
            found: list[Task] = []
            after = 0
            while turns[store] < 30:
                try:
                    turn = await store.assign(pool, 7, after)
                except Unavailable:
                    # another server had the turn for long
                    continue
                turns[store] += 1
                found += turn.tasks
                after = turn.after_user
                self.assertTrue(turn.backlog)
                self.assertGreaterEqual(min(turn.room.values()), 0)
            return found

        found = [t for tasks in await together(dispatcher(store) for store in stores) for t in tasks]
        self.assertEqual(len({t.id for t in found}), len(found))
        self.assertEqual({t.dispatch for t in found}, {1})
        self.assertEqual(Counter(t.user_id for t in found), {user.id: 20 for user in users})
        self.assertEqual(Counter(t.worker for t in found), {"v": 40, "w": 60})

    async def test_a_turn_sees_what_the_turn_before_it_has_done(self) -> None:
        """Its snapshot is not older than the wait for the other one."""
        await self.create(20)
        await self.serve()
        pool = Pool([Place("w", 10)], [Served(*Q, 3)])
        holder = self.transaction("SELECT pg_advisory_xact_lock(%s, %s)", TURN_LOCKS, turn_lock(""))
        turn = Deferred.fromCoroutine(self.store.assign(pool, 100, 0))
        await until(lambda: self.blocked() == 1)
        text = """
            UPDATE tasks SET state = 'queued', worker = 'w', held = true, dispatch = 1, attempt = 1 WHERE id <= (
                SELECT min(id) + 6 FROM tasks)
        """
        holder.cursor().execute(text)
        holder.commit()
        self.assertEqual(len((await turn).tasks), 3)

    async def test_a_turn_that_waits_too_long_for_another_is_unavailable(self) -> None:
        await self.create(3)
        await self.serve()
        pool = Pool([Place("w", 10)], [Served(*Q, 3)])
        holder = self.transaction("SELECT pg_advisory_xact_lock(%s, %s)", TURN_LOCKS, turn_lock(""))
        store = self.build(size=1)
        await store.start()
        backends = self.backends()
        asked = reactor.seconds()
        with self.assertRaisesRegex(Unavailable, "lock timeout"):
            await store.assign(pool, 100, 0)
        self.assertLess(reactor.seconds() - asked, 2)
        # the connection is not in a failed transaction, and has its own timeouts again
        [(timeouts,)] = await store._call(
            lambda c, again: c.query("SELECT current_setting('lock_timeout') || current_setting('statement_timeout')")
        )
        self.assertEqual(timeouts, "010s")
        holder.rollback()
        self.assertEqual(len((await store.assign(pool, 100, 0)).tasks), 3)
        self.assertEqual(self.backends(), backends)

    async def test_a_turn_waits_only_for_turns_of_its_group(self) -> None:
        await self.create(3)
        await self.serve()
        holder = self.transaction("SELECT pg_advisory_xact_lock(%s, %s)", TURN_LOCKS, turn_lock("render"))
        with self.assertRaisesRegex(Unavailable, "lock timeout"):
            await self.store.assign(Pool([Place("w", 9)], [Served(*Q, 3)], group="render"), 100, 0)
        turn = await self.store.assign(Pool([Place("w", 9)], [Served(*Q, 3)], group="simulate"), 100, 0)
        self.assertEqual(len(turn.tasks), 3)
        holder.rollback()

    async def test_a_client_that_does_not_read_holds_up_no_turn(self) -> None:
        """The answer is large, and its beginning fills all buffers."""
        await self.create(3000)
        self.sql("UPDATE tasks SET task = repeat('x', 4000)")
        await self.serve()
        pool = Pool([Place("w", 2000)], [Served(*Q, 3)])
        with socket.create_connection((self.server.host, self.server.port)) as frozen:
            frozen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.send_turn(frozen, pool, 1000)
            await until(lambda: self.sql("SELECT FROM tasks WHERE held LIMIT 1"))
            for _ in range(3):
                self.assertEqual(len((await self.store.assign(pool, 10, 0)).tasks), 10)
            waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event = 'ClientWrite'"
            await until(lambda: self.sql(waits, self.database) == [(1,)])
            self.assertEqual(len((await self.store.assign(pool, 10, 0)).tasks), 10)

    def send_turn(self, connection: socket.socket, pool: Pool, limit: int) -> None:
        """Take a turn by the bare protocol, as the store does, and read nothing of its answer."""
        places, served = [
            tuple(f"'{{{','.join(map(str, column))}}}'" for column in zip(*rows, strict=True))
            for rows in (pool.places, pool.served)
        ]
        values = ["2", str(turn_lock(pool.group)), *places, *served, "'{}'", "0", str(limit), "1"]
        turn = TURN % tuple(values)
        texts = ";".join(f"PREPARE {name} AS {PREPARED[name]}" for name in ("assign", "told"))
        start = b"\0\3\0\0user\0%s\0database\0%s\0\0" % (self.server.user.encode(), str(self.database).encode())
        connection.sendall(struct.pack("!I", len(start) + 4) + start)
        for text in (texts, turn):
            query = text.encode() + b"\0"
            connection.sendall(b"Q" + struct.pack("!I", len(query) + 4) + query)

    async def test_each_task_is_promoted_once(self) -> None:
        users = await self.users(40)
        for user in users:
            [task] = await self.create(1, user)
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

    async def test_a_turn_replaces_rows_that_another_has_locked(self) -> None:
        tasks = await self.create(5)
        other = self.transaction("SELECT FROM tasks WHERE id = ANY(%s) FOR UPDATE", [t.id for t in tasks[:2]])
        turn = await self.turn({"w": 2})
        self.assertEqual([t.id for t in turn.tasks], [t.id for t in tasks[2:4]])
        self.assertTrue(turn.backlog)
        other.rollback()
        turn = await self.turn({"w": 9})
        self.assertEqual([t.id for t in turn.tasks], [tasks[i].id for i in (0, 1, 4)])
        self.assertFalse(turn.backlog)

    async def test_a_turn_leaves_what_was_cancelled_in_between(self) -> None:
        first, second = await self.create(2)
        text = "UPDATE tasks SET state = 'cancelled', version = version + 1, finished_at = now() WHERE id = %s"
        cancelling = self.transaction(text, first.id)
        turn = await self.turn({"w": 2})
        cancelling.commit()
        self.assertEqual([t.id for t in turn.tasks], [second.id])
        self.assertIs((await self.get(first)).state, State.CANCELLED)

    async def test_promote_skips_rows_that_another_has_locked(self) -> None:
        tasks = await self.create(3)
        for task in tasks:
            await self.postpone(task.id, -1)
        other = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", tasks[0].id)
        self.assertEqual(await self.store.promote(10), [(Q, self.ana.id)])
        self.assertEqual(set(await self.due()), {tasks[1].id, tasks[2].id})
        other.rollback()
        self.assertEqual(await self.store.promote(10), [(Q, self.ana.id)])

    async def test_batches_lock_rows_in_one_order(self) -> None:
        # A statement that waits for the first row must not hold the second
        first, second = await self.queued(2, "v")
        mine = await self.running(2)
        other, third = await self.make(), await self.make()
        backwards = [Begun(t.id, t.dispatch) for t in (second, first)]
        done, put_off = [
            [Outcome(t.id, t.dispatch, t.attempt, state) for t in reversed(mine)]
            for state in (State.COMPLETED, State.WAITING)
        ]
        reports = [Report(t.id, t.dispatch, t.attempt, 0.5) for t in reversed(mine)]
        holder = self.transaction("SELECT FROM tasks WHERE id IN (%s, %s) FOR UPDATE", first.id, mine[0].id)
        waiting = together(
            [
                self.store.begin("v", backwards, False),
                other.finish("w", done),
                other.finish("w", put_off),
                self.release(list(reversed(mine))),
                third.report("w", reports),
            ]
        )
        await until(lambda: self.blocked() == 5)
        self.sql("SELECT FROM tasks WHERE id IN (%s, %s) FOR UPDATE NOWAIT", second.id, mine[1].id)
        holder.rollback()
        begun, completed, failed, released, _ = await waiting
        self.assertEqual(set(begun), {first.id, second.id})
        ended = [*completed, *failed, *[t.id for t in released]]
        self.assertEqual(sorted(set(ended)), [t.id for t in mine])

    async def test_a_begin_that_waits_for_a_cancel_begins_nothing(self) -> None:
        [task] = await self.queued()
        text = "UPDATE tasks SET state = 'cancelled', version = version + 1, finished_at = now() WHERE id = %s"
        cancelling = self.transaction(text, task.id)
        beginning = Deferred.fromCoroutine(self.begin([task]))
        await until(lambda: self.blocked() == 1)
        cancelling.commit()
        self.assertEqual(await beginning, [])

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

    async def test_a_creation_that_runs_twice_at_the_same_time_creates_once(self) -> None:
        tasks = await self.new(3, key="once")
        for n, task in enumerate(tasks):
            task.key = f"key {n}"
        stores = [self.store, *[await self.make() for _ in range(3)]]
        created = await together(store.create_tasks(tasks, 2) for store in stores)
        for each in created:
            self.assertEqual(list(each.tasks), list(created[0].tasks))
        self.assertEqual(self.sql("SELECT count(*) FROM tasks"), [(3,)])
        self.assertEqual(len({task_id for each in created for task_id in each.ids}), 8)

    async def test_ids_that_are_drawn_at_the_same_time_are_different(self) -> None:
        stores = [self.store, await self.make()]
        drawn = await together(stores[n % 2].draw_ids(50) for n in range(8))
        for ids in drawn:
            self.assertEqual(list(ids), sorted(ids))
        self.assertEqual(len({task_id for ids in drawn for task_id in ids}), 400)

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
                    UPDATE tasks SET state = 'waiting', finished_at = NULL, version = version + 1
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
        [needle] = await self.create(1, kind="needle")
        tasks = await self.create(SCANNED_ROWS + 100)
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
