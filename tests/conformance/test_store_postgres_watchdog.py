"""What a watchdog gives back on PostgreSQL while its worker is blocked, beside everything else that goes on there."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet import reactor

from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.ports.workers import Culprit
from taskd.store.postgres.beats import BeatConnection
from tests.conformance.postgres import Hooks, until


class GivingBack(Hooks):
    """What a blocked worker has not begun."""

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        await super().setUp()
        self.watchdog = BeatConnection(self.server.dsn(self.database))
        self.addCleanup(self.watchdog.close)

    def give_back(self, *begun: Task, worker: str = "w") -> int:
        """Beat, and give back all but these."""
        beat = self.watchdog.vouch(worker, "blocked")
        return self.watchdog.give_back(worker, beat, self.pairs(begun))

    def pairs(self, tasks: Sequence[Task]) -> list[tuple[int, int]]:
        """As they stand on the board."""
        return [(task.id, task.dispatch) for task in tasks]

    async def states(self, *tasks: Task) -> list[str]:
        return [(await self.get(task)).state.value for task in tasks]

    async def test_what_has_not_begun_waits_again_and_its_attempt_does_not_count(self) -> None:
        unbegun, begun, runs = await self.queued(3)
        [elsewhere] = await self.queued(1, "another")
        await self.begin([runs])
        self.assertEqual(self.give_back(begun), 1)
        task = await self.get(unbegun)
        self.assertEqual((task.state, task.worker, task.attempt), (State.WAITING, None, 0))
        self.assertEqual((task.dispatch, task.version), (unbegun.dispatch, unbegun.version + 1))
        self.assertEqual((task.losses, task.returns, task.started_at, task.error), (0, 0, None, None))
        self.assertEqual(await self.states(begun, runs, elsewhere), ["queued", "running", "queued"])
        self.assertEqual([each[0] for each in await self.standing()], [begun.id, runs.id])
        self.assertEqual(await self.due(), [unbegun.id])
        self.assertEqual(self.give_back(begun), 0)

    async def test_another_assignment_of_what_has_begun(self) -> None:
        [task] = await self.queued()
        await self.release([task])
        [again] = await self.assign()
        self.assertEqual((again.id, again.dispatch), (task.id, 2))
        self.assertEqual(self.give_back(task), 1)
        self.assertEqual(await self.states(again), ["waiting"])

    async def test_what_is_not_wanted_any_more_is_dropped(self) -> None:
        cancelled, retried, begun = await self.queued(3)
        for task in (cancelled, retried, begun):
            await self.store.cancel(self.ana.id, task.id)
        await self.store.retry(self.ana.id, retried.id)
        self.assertEqual(self.give_back(begun), 2)
        self.assertEqual(await self.states(cancelled, retried, begun), ["cancelled", "waiting", "cancelled"])
        self.assertEqual([each[0] for each in await self.standing()], [begun.id])
        self.assertEqual((await self.get(cancelled)).version, cancelled.version + 1)
        self.assertEqual(await self.due(), [retried.id])

    async def test_a_stopped_worker_gives_back_without_a_beat(self) -> None:
        unbegun, begun = await self.queued(2)
        await self.beat()
        before = await self.status()
        beat = self.watchdog.stopped("w", "it was stopped")
        self.assertEqual(beat, before.beat)
        status = await self.status()
        self.assertEqual((status.beat, status.stalled), (before.beat, "it was stopped"))
        self.assertEqual(self.watchdog.give_back("w", beat, self.pairs([begun])), 1)
        self.assertEqual(await self.states(unbegun, begun), ["waiting", "queued"])
        await self.beat()
        self.assertIsNone((await self.status()).stalled)
        [late] = await self.assign()
        self.assertEqual(self.watchdog.give_back("w", beat, self.pairs([begun])), 0, "it has beaten since")
        self.assertEqual(await self.states(late), ["queued"])
        self.assertEqual(self.watchdog.stopped("nobody", "it was stopped"), 0)

    async def test_nothing_after_a_beat_of_the_worker(self) -> None:
        """It may have looked since, and may have begun what it found."""
        [task] = await self.queued()
        beat = self.watchdog.vouch("w", "blocked")
        await self.beat()
        self.assertEqual(self.watchdog.give_back("w", beat, []), 0)
        self.assertEqual(await self.states(task), ["queued"])
        self.assertEqual(self.give_back(), 1)

    async def test_nothing_while_a_beat_of_the_worker_is_under_way(self) -> None:
        """And it does not wait for that, nor does the beat wait for it."""
        [task] = await self.queued()
        beat = self.watchdog.vouch("w", "blocked")
        beating = self.transaction("UPDATE workers SET beat = beat + 1 WHERE name = 'w'")
        asked = reactor.seconds()
        self.assertEqual(self.watchdog.give_back("w", beat, []), 0)
        self.assertLess(reactor.seconds() - asked, 2)
        beating.commit()
        self.assertEqual(await self.states(task), ["queued"])

    async def test_what_somebody_has_locked_is_left_to_the_next_time(self) -> None:
        locked, free = await self.queued(2)
        holder = self.transaction("SELECT FROM tasks WHERE id = %s FOR UPDATE", locked.id)
        self.assertEqual(self.give_back(), 1)
        self.assertEqual(await self.states(locked, free), ["queued", "waiting"])
        holder.rollback()
        self.assertEqual(self.give_back(), 1)
        self.assertEqual(await self.states(locked), ["waiting"])

    async def test_what_changed_since_it_was_seen_is_judged_as_it_is_found(self) -> None:
        [task] = await self.queued()
        beat = self.watchdog.vouch("w", "blocked")
        await self.begin([task])
        self.assertEqual(self.watchdog.give_back("w", beat, []), 0)
        self.assertEqual(await self.states(task), ["running"])

    async def test_nothing_of_the_dead(self) -> None:
        """Servers take that back, and count it as lost."""
        [task] = await self.queued()
        beat = self.watchdog.vouch("w", "blocked")
        await self.die("w", Culprit(task.id, task.dispatch, "it died"))
        self.assertEqual(self.watchdog.give_back("w", beat, []), 0)
        self.assertEqual(self.watchdog.vouch("w", None), 0)
        self.assertEqual(await self.states(task), ["queued"])

    async def test_nothing_over_another_connection_than_that_of_the_beat(self) -> None:
        """A crash of the database may undo the beat; then the worker's next one has the same number."""
        [task] = await self.queued()
        beat = self.watchdog.vouch("w", "blocked")
        self.watchdog.close()
        self.assertEqual(self.watchdog.give_back("w", beat, []), 0)
        self.assertEqual(await self.states(task), ["queued"])
        self.assertEqual(self.give_back(), 1)

    async def test_a_worker_that_drains(self) -> None:
        [task] = await self.queued()
        await self.store.worker_draining("w")
        self.assertEqual(self.give_back(), 1)
        self.assertEqual(await self.states(task), ["waiting"])

    async def test_it_is_on_the_disk_and_its_beat_need_not_be(self) -> None:
        await self.queued()
        self.sql("CREATE TABLE seen (source text, flushed boolean)")
        self.sql("""
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO seen VALUES (TG_TABLE_NAME, current_setting('synchronous_commit') = 'on'); RETURN NULL;
            END $$
        """)
        for table in ("tasks", "workers"):
            self.sql(f"""
                CREATE CONSTRAINT TRIGGER note AFTER UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION note()
            """)
        self.assertEqual(self.give_back(), 1)
        self.assertEqual(self.sql("SELECT * FROM seen ORDER BY source"), [("tasks", True), ("workers", False)])

    async def test_as_many_as_the_board_has_room_for(self) -> None:
        tasks = await self.queued(2)
        others = [(10**12 + n, 1) for n in range(20_000)]
        beat = self.watchdog.vouch("w", "blocked")
        asked = reactor.seconds()
        self.assertEqual(self.watchdog.give_back("w", beat, [*others, *self.pairs(tasks[:1])]), 1)
        self.assertLess(reactor.seconds() - asked, 1)
        self.assertEqual(await self.states(*tasks), ["queued", "waiting"])

    async def test_a_table_that_is_locked_delays_no_beat_of_the_worker(self) -> None:
        await self.queued()
        slow = BeatConnection(self.server.dsn(self.database), statement_timeout=0.5)
        self.addCleanup(slow.close)
        beat = slow.vouch("w", "blocked")
        lock = self.transaction("LOCK TABLE tasks")
        with self.assertRaisesRegex(Exception, "timeout"):
            slow.give_back("w", beat, [])
        await until(lambda: self.blocked() == 0)
        asked = reactor.seconds()
        self.assertTrue((await self.beat()).accepted)
        self.assertLess(reactor.seconds() - asked, 2)
        lock.rollback()


del Hooks
