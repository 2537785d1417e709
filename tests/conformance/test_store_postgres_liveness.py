"""Several servers on PostgreSQL that watch over workers: what they lock, wait for and flush."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg2
from msgspec import structs
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from taskd.model.errors import KeyTaken, Unavailable
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Begun, Claim
from taskd.ports.scheduling import Place, Pool, Served
from taskd.ports.workers import Beaten, Culprit, digest
from tests.conformance.postgres import Hooks, together, until
from tests.conformance.store.case import Q


class Liveness(Hooks):
    """Several servers that watch over workers."""

    async def suspects(self, count: int) -> list[Task]:
        """Tasks of a worker that has died, each with a loss."""
        tasks = await self.running(count)
        for task in tasks:
            await self.set_losses(task.id, 1)
        await self.die("w")
        return tasks

    async def test_a_task_that_is_just_being_finished_is_no_suspect(self) -> None:
        done, suspect = await self.suspects(2)
        text = """
            UPDATE tasks SET state = 'completed', held = false, finished_at = now(), version = version + 1 WHERE id = %s
        """
        finishing = self.transaction(text, done.id)
        taking = Deferred.fromCoroutine(self.store.take_back({}))
        await until(lambda: self.blocked() == 1)
        finishing.commit()
        self.assertEqual([(t.id, t.attempt) for t in await taking], [(suspect.id, 1)])
        self.assertIs((await self.get(done)).state, State.COMPLETED)

    async def test_what_a_new_worker_got_meanwhile_stays_with_it(self) -> None:
        [task] = await self.suspects(1)
        text = "UPDATE tasks SET worker = 'new', dispatch = dispatch + 1, version = version + 3 WHERE id = %s"
        assigning = self.transaction(text, task.id)
        taking = Deferred.fromCoroutine(self.store.take_back({}))
        await until(lambda: self.blocked() == 1)
        # the statement that waits has not seen this worker
        await self.serve("new")
        assigning.commit()
        self.assertEqual(list(await taking), [])
        self.assertEqual(list(await self.store.take_back({})), [])
        self.assertIs((await self.get(task)).state, State.RUNNING)

    async def test_a_suspect_whose_row_is_locked_is_counted(self) -> None:
        tasks = await self.suspects(2)
        holder = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", tasks[1].id)
        taking = Deferred.fromCoroutine(self.store.take_back({}))
        await until(lambda: self.blocked() == 1)
        holder.rollback()
        self.assertEqual({t.id: t.attempt for t in await taking}, {t.id: 0 for t in tasks})

    async def test_several_servers_take_each_task_once(self) -> None:
        stores = [self.store, *[await self.make() for _ in range(2)]]
        for n in range(10):
            tasks = [t for name in ("a", "b", "c") for t in await self.running(5, f"{name}{n}")]
            beats = {f"{name}{n}": (await self.status(f"{name}{n}")).beat for name in ("a", "b", "c")}
            orders = [beats, dict(reversed(beats.items())), {}]
            taken = await together(s.take_back(order) for s, order in zip(stores, orders, strict=True))
            found = [t.id for each in taken for t in each]
            found += [t.id for t in await self.store.take_back({})]
            self.assertEqual(sorted(found), sorted(t.id for t in tasks))
            self.assertEqual({(await self.get(t)).losses for t in tasks}, {1})

    async def test_a_fence_that_waits_for_a_beat_takes_nothing(self) -> None:
        [task] = await self.running()
        beating = self.transaction("UPDATE workers SET beat = beat + 1 WHERE name = 'w'")
        taking = Deferred.fromCoroutine(self.fence())
        await until(lambda: self.blocked() == 1)
        beating.commit()
        self.assertEqual(await taking, [])
        self.assertEqual(await self.get(task), task)

    async def test_a_begin_that_a_fence_overtakes_is_judged_as_it_is_found(self) -> None:
        [task] = await self.queued()
        holder = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", task.id)
        beginning = Deferred.fromCoroutine(self.begin([task]))
        await until(lambda: self.blocked() == 1)
        taking = Deferred.fromCoroutine(self.fence())
        await until(lambda: self.blocked() == 2)
        holder.rollback()
        self.assertEqual(len(await beginning), 1)
        self.assertEqual([(t.id, t.version) for t in await taking], [(task.id, 3)])

    async def test_what_a_fence_overtakes_is_taken_back_next_time(self) -> None:
        """A creation or a turn that has seen the worker as serving commits after the worker was fenced."""
        await self.serve()
        turn = self.transaction("""
            INSERT INTO tasks (user_id, task, queue, state, worker, held, dispatch, attempt)
            VALUES (1, 'late', 'q', 'queued', 'w', true, 1, 1) RETURNING id
        """)
        self.assertEqual(await self.fence(), [])
        turn.commit()
        self.assertEqual([(t.task, t.state) for t in await self.store.take_back({})], [("late", State.WAITING)])

    async def test_a_reason_that_cannot_be_read_stops_nobody(self) -> None:
        for n, reason in enumerate(("nul\0", "lone \udc80", "emoji \U0001f600")):
            [task] = await self.running(1, f"w{n}")
            with contextlib.suppress(psycopg2.DataError):
                await self.die(f"w{n}", Culprit(task.id, 1, reason))
            self.sql("UPDATE workers SET state = 'gone'")
            self.assertEqual([t.id for t in await self.store.take_back({})], [task.id])
        [lost] = await self.store.failed_attempts(task.id)
        self.assertEqual(lost.error, f"attempt 1 of 3 was lost: {reason}")

    async def test_neither_turns_nor_creations_nor_begins_wait_for_beats(self) -> None:
        [task] = await self.queued()
        await self.create()
        self.transaction("SELECT FROM workers FOR UPDATE")
        self.assertEqual(len(await self.begin([task])), 1)
        self.assertEqual(len((await self.store.assign(Pool([Place("w", 9)], [Served(*Q, 3)]), 9, 0)).tasks), 1)
        [created] = await self.create(1, worker="w")
        self.assertIs(created.state, State.QUEUED)

    async def test_a_lock_on_tasks_delays_no_beat_and_no_poll(self) -> None:
        await self.serve()
        self.transaction("LOCK TABLE tasks")
        before = await self.status()
        asked = reactor.seconds()
        # what it holds cannot be compared now
        self.assertEqual(await self.beat("w", [(1, 1)]), Beaten(True, True))
        self.assertLess(reactor.seconds() - asked, 2)
        self.assertEqual((await self.status()).beat, before.beat + 1)

    async def test_nothing_is_assigned_before_all_have_said_what_they_hold(self) -> None:
        """After PostgreSQL has gone on from an older state: it says so by another timeline."""
        await self.serve()
        await self.serve("v")
        [waits, _] = await self.create(2)
        self.sql("UPDATE workers SET timeline = '00000000'")
        for name, other in (("w", "v"), ("v", None)):
            self.assertEqual(len((await self.turn({"w": 9, "v": 9})).tasks), 0)
            self.assertIs((await self.create(1, worker=name))[0].state, State.WAITING)
            self.assertEqual(await self.beat(name), Beaten(True, True, asserted=False))
            self.assertFalse((await self.status(name)).asserted)
            await self.store.assert_held(name, [Claim(waits.id, 1, 1, 3, 2, waits.created_at)] if other else [])
            self.assertTrue((await self.status(name)).asserted)
            self.assertEqual((await self.beat(name)).asserted, True)
            # a worker that has said it may get a new task, which nobody can have
            self.assertIs((await self.create(1, worker=name))[0].state, State.QUEUED)
        turn = await self.turn({"w": 9, "v": 9})
        self.assertEqual(
            (len(turn.tasks), await self.look("w", [])), (3, [waits.id, *(await self.look("w", [waits.id]))])
        )

    async def test_what_a_worker_says_before_it_has_said_what_it_holds_is_for_later(self) -> None:
        [done] = await self.queued()
        lost, begun = (await self.running(2)), None
        self.sql("UPDATE workers SET timeline = '00000000'")
        self.sql("UPDATE tasks SET state = 'waiting', held = false, worker = NULL, started_at = NULL, dispatch = 0")
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: self.standing(),
            lambda: self.finish(done),
            lambda: self.retry_later(lost[0]),
        ]
        for call in calls:
            with self.assertRaisesRegex(Unavailable, "older state"):
                await call()
        self.assertEqual(await self.look(), [])
        claims = [Claim(t.id, t.dispatch, t.attempt, 3, t.version, t.created_at) for t in (done, *lost)]
        self.assertEqual(len(await self.store.assert_held("w", claims)), 3)
        self.assertIsNotNone(await self.finish(done))
        self.assertIsNotNone(await self.retry_later(lost[0]))
        self.assertEqual(await self.standing(), [(lost[1].id, 1, True)])
        begun = await self.begin([lost[1]])
        self.assertEqual(len(begun), 1)

    async def test_nothing_is_found_before_all_have_said_what_they_hold(self) -> None:
        """What stands under the name of one may run at another one, whose later assignment is lost."""
        [task] = await self.queued()
        await self.serve("v")
        self.sql("UPDATE workers SET timeline = '00000000'")
        await self.store.assert_held("w", [])
        self.assertEqual(await self.look(), [])
        await self.store.assert_held("v", [Claim(task.id, 2, 1, 3, 3, task.created_at)])
        self.assertEqual((await self.look(), await self.standing("v")), ([], [(task.id, 2, True)]))

    async def test_a_worker_that_waits_for_locked_tasks_can_be_vouched_for(self) -> None:
        [task] = await self.queued()
        self.sql("UPDATE workers SET timeline = '00000000'")
        holder = self.transaction("SELECT FROM tasks FOR UPDATE")
        claims = [Claim(task.id, 1, 1, 3, 2, task.created_at)]
        with self.assertRaisesRegex(Unavailable, "lock timeout"):
            await self.store.assert_held("w", claims)
        holder.rollback()
        self.assertEqual(list(await self.store.assert_held("w", claims)), [task.id])

    async def test_keys_in_any_order_on_two_servers_do_not_deadlock(self) -> None:
        other = await self.make()
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = %s"
        before = self.sql(deadlocks, self.database)

        async def create(store: Any, names: Sequence[str]) -> int:
            rows = [row for name in names for row in await self.new(1, key=name)]
            try:
                return len((await store.create_tasks(rows)).tasks)
            except KeyTaken:
                return 0

        for n in range(20):
            names = [f"{n} {i}" for i in range(100)]
            made = await together([create(self.store, names), create(other, names[::-1])])
            self.assertEqual(sorted(made), [0, 100])
        self.assertEqual(self.sql(deadlocks, self.database), before)

    async def test_the_dead_are_not_waited_for(self) -> None:
        await self.serve()
        await self.serve("v")
        await self.create()
        self.sql("UPDATE workers SET timeline = '00000000' WHERE name = 'v'")
        self.assertEqual(len((await self.turn()).tasks), 0)
        await self.fence("v")
        self.assertEqual(len((await self.turn()).tasks), 1)

    async def test_an_id_that_was_drawn_again_is_replaced(self) -> None:
        rows = await self.new(3)
        same = [structs.replace(rows[0]), structs.replace(rows[1], task="of somebody else", user_id=self.ben.id)]
        await self.store.create_tasks(same)
        created = (await self.store.create_tasks(rows)).tasks
        self.assertEqual([t.task for t in created], [row.task for row in rows])
        self.assertEqual([t.id for t in created], [row.id for row in rows])
        self.assertEqual([t.id == before.id for t, before in zip(created, same, strict=False)], [True, False])
        self.assertEqual(len(await self.pages()), 3)
        self.assertEqual(await self.pages(self.ben), [same[1].id])

    async def test_the_digest_of_a_worker_that_holds_much(self) -> None:
        tasks = await self.queued(2000)
        self.sql("UPDATE tasks SET id = id + 100000000000000000")
        held = [(t.id + 10**17, t.dispatch) for t in tasks]
        self.assertEqual(await self.beat("w", held), Beaten(True, True))
        self.assertEqual(await self.beat("w", held[1:]), Beaten(True, False))

    async def test_connected_while_the_connection_of_the_last_beat_is_open(self) -> None:
        other = self.build(size=1)
        await other.start()
        await other.register(await self.serve("model"))
        await other.beat("model", {}, [], digest([]))
        self.assertTrue((await self.status("model")).connected)
        await other.stop()
        await until(lambda: len(self.backends()) == 2)
        self.assertFalse((await self.status("model")).connected)
        await self.beat("model")
        self.assertTrue((await self.status("model")).connected)
        self.sql("UPDATE workers SET pid = NULL")
        self.assertFalse((await self.status("model")).connected)

    async def test_a_poll_changes_nothing_but_fails_where_a_beat_would(self) -> None:
        await self.serve()
        await self.die("w")
        version = self.sql("SELECT xmin, ctid FROM workers")
        self.assertEqual(len((await self.store.poll_workers()).workers), 1)
        self.assertEqual(self.sql("SELECT xmin, ctid FROM workers"), version)
        store = self.build(size=1)
        await store.start()
        for call in (lambda: store.poll_workers(), lambda: store.beat("w", {}, [], digest([]))):
            # the pool replaces a connection that was refused a change
            connection = await store._pool.acquire()
            await connection.query("SET default_transaction_read_only = on")
            store._pool.release(connection)
            with self.assertRaises(Unavailable):
                await call()
        await self.age_workers(4000)
        self.assertEqual(list((await self.store.poll_workers()).workers), [])

    async def test_the_epoch_changes_when_all_connections_were_lost(self) -> None:
        store = self.build(size=1)
        await store.start()
        before = (await store.poll_workers()).epoch
        self.kill()
        # a poll may still meet the dead connection
        with contextlib.suppress(Unavailable):
            await store.poll_workers()
        self.assertNotEqual((await store.poll_workers()).epoch, before)

    async def test_marks_and_beats_do_not_wait_for_the_disk_but_everything_else_does(self) -> None:
        [given, kept], [suspect] = await self.queued(2), await self.queued()
        await self.create()
        pool = Pool([Place("w", 9)], [Served(*Q, 3)])
        flushed = {
            "create": (True, lambda: self.create(1, worker="w")),
            "turn": (True, lambda: self.store.assign(pool, 9, 0)),
            "mark": (False, lambda: self.begin([given, kept])),
            "begin": (True, lambda: self.store.begin("w", [Begun(suspect.id, 1)], True)),
            "beat": (False, self.beat),
            "release": (True, lambda: self.release([given])),
            "take back": (True, self.fence),
            "reset": (True, self.store.reset_in_flight),
        }
        # a trigger at the commit sees whether the commit waits
        self.sql("CREATE TABLE seen (flushed boolean)")
        self.sql("""
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit') = 'on'); RETURN NULL; END $$
        """)
        for table in ("tasks", "workers"):
            self.sql(f"""
                CREATE CONSTRAINT TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {table} DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION note()
            """)
        for name, (waits, call) in flushed.items():
            self.sql("DELETE FROM seen")
            await call()
            self.assertEqual(self.sql("SELECT DISTINCT flushed FROM seen"), [(waits,)], name)

    async def test_now_before_anything_is_known(self) -> None:
        self.assertLess(abs(self.build().now() - datetime.now(timezone.utc)), timedelta(seconds=5))

    async def test_now_is_learned_from_every_answer_that_tells_it(self) -> None:
        await self.serve()
        for learn in (self.store.poll_workers, self.beat, self.store._open):
            self.store._zero -= timedelta(days=1)
            await learn()
            self.assertLess(abs(self.store.now() - self.sql("SELECT clock_timestamp()")[0][0]), timedelta(seconds=1))


del Hooks
