"""Several servers on PostgreSQL that watch over workers: what they lock, wait for and flush."""

from __future__ import annotations

import contextlib
import json
from datetime import datetime, timedelta, timezone

import psycopg2
from msgspec.structs import replace
from twisted.internet.defer import Deferred

from taskd.model.errors import Unavailable
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.attempts import Claim
from taskd.ports.workers import Culprit
from tests.conformance.postgres import Hooks, together, until


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
        text = "UPDATE tasks SET state = 'completed', finished_at = now(), version = version + 1 WHERE id = %s"
        finishing = self.transaction(text, done.id)
        taking = Deferred.fromCoroutine(self.store.take_back({}))
        await until(lambda: self.blocked() == 1)
        finishing.commit()
        self.assertEqual([(t.id, t.attempt) for t in await taking], [(suspect.id, 1)])
        self.assertIs((await self.get(done)).state, State.COMPLETED)

    async def test_what_a_new_worker_has_claimed_meanwhile_stays_with_it(self) -> None:
        [task] = await self.suspects(1)
        text = "UPDATE tasks SET worker = 'new', dispatch = dispatch + 1, version = version + 3 WHERE id = %s"
        claiming = self.transaction(text, task.id)
        taking = Deferred.fromCoroutine(self.store.take_back({}))
        await until(lambda: self.blocked() == 1)
        # the statement that waits has not seen this worker
        await self.serve("new")
        claiming.commit()
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

    async def test_only_what_was_entered_at_the_death_is_a_suspect(self) -> None:
        entered, other, waiting = await self.running(3)
        among = [{"task_id": entered.id, "dispatch": 1}, {"task_id": other.id, "dispatch": 2}]
        self.sql(f"UPDATE workers SET state = 'gone', culprit = '{json.dumps({'among': among})}'")
        await self.store.take_back({})
        found = [(t.attempt, t.losses) for t in [await self.get(each) for each in (entered, other, waiting)]]
        self.assertEqual(found, [(0, 1), (0, 0), (0, 0)])

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

    async def test_a_claim_that_a_fence_overtakes_is_taken_back_next_time(self) -> None:
        [task] = await self.create()
        await self.serve()
        holder = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", task.id)
        claiming = Deferred.fromCoroutine(self.claim([task]))
        await until(lambda: self.blocked() == 1)
        self.assertEqual(await self.fence(), [])
        holder.rollback()
        self.assertEqual(len(await claiming), 1)
        self.assertEqual([t.id for t in await self.store.take_back({})], [task.id])

    async def test_a_reason_that_cannot_be_read_stops_nobody(self) -> None:
        for n, reason in enumerate(("nul\0", "lone \udc80", "emoji \U0001f600")):
            [task] = await self.running(1, f"w{n}")
            with contextlib.suppress(psycopg2.DataError):
                await self.die(f"w{n}", Culprit(task.id, 1, reason))
            self.sql("UPDATE workers SET state = 'gone'")
            self.assertEqual([t.id for t in await self.store.take_back({})], [task.id])
        [lost] = await self.store.failed_attempts(task.id)
        self.assertEqual(lost.error, f"attempt 1 of 3 was lost: {reason}")

    async def test_claims_do_not_wait_for_beats(self) -> None:
        [task] = await self.create()
        await self.serve()
        self.transaction("SELECT FROM workers FOR UPDATE")
        self.assertEqual(len(await self.store.claim("w", [Claim(task.id, 1)])), 1)

    async def test_a_lock_on_tasks_delays_no_beat_and_no_poll(self) -> None:
        await self.serve()
        self.transaction("LOCK TABLE tasks")
        before = await self.status()
        self.assertTrue(await self.store.beat("w", {}))
        self.assertEqual((await self.status()).beat, before.beat + 1)

    async def test_connected_while_the_connection_of_the_last_beat_is_open(self) -> None:
        other = self.build(size=1)
        await other.start()
        await other.register(await self.serve("model"))
        await other.beat("model", {})
        self.assertTrue((await self.status("model")).connected)
        await other.stop()
        await until(lambda: len(self.backends()) == 2)
        self.assertFalse((await self.status("model")).connected)
        await self.store.beat("model", {})
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
        for call in (lambda: store.poll_workers(), lambda: store.beat("w", {})):
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

    async def test_claims_and_beats_do_not_wait_for_the_disk_but_fences_and_releases_do(self) -> None:
        given, kept = await self.create(2)
        await self.serve("v")
        flushed = {
            "claim": (False, lambda: self.claim([given, kept])),
            "beat": (False, lambda: self.store.beat("w", {})),
            "release": (True, lambda: self.release([replace(given, attempt=1)])),
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
                CREATE CONSTRAINT TRIGGER note AFTER UPDATE OR DELETE ON {table} DEFERRABLE INITIALLY DEFERRED
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
        for learn in (self.store.poll_workers, lambda: self.store.beat("w", {}), self.store._open):
            self.store._zero -= timedelta(days=1)
            await learn()
            self.assertLess(abs(self.store.now() - self.sql("SELECT clock_timestamp()")[0][0]), timedelta(seconds=1))


del Hooks
