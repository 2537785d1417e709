"""The suite of ILogStore."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from taskd.model.states import State
from taskd.ports.logs import Report
from taskd.ports.tasks import TaskQuery
from tests.conformance.store.case import TEXTS, StoreCase


class LogTests(StoreCase):
    """The suite of ILogStore."""

    async def test_progress_and_note(self) -> None:
        [task] = await self.running()
        steps: Sequence[tuple[float | None, str | None, float | None, str | None]] = [
            (0.25, None, 0.25, None),
            (None, "resizing \N{SNOWMAN}", 0.25, "resizing \N{SNOWMAN}"),
            (None, None, 0.25, "resizing \N{SNOWMAN}"),
            (1 / 3, 'nul\0 \ud800 "quoted" back\\slash {NULL}', 1 / 3, 'nul ? "quoted" back\\slash {NULL}'),
            (1.0, "NULL", 1.0, "NULL"),
            (0.0, "", 0.0, None),
        ]
        for progress, note, shown_progress, shown_note in steps:
            self.assertTrue(await self.report(task, progress=progress, note=note))
            after = await self.get(task)
            self.assertEqual((after.progress, after.note), (shown_progress, shown_note))
            # the state did not change, so the version did not either
            self.assertEqual((after.version, after.state), (task.version, State.RUNNING))
        [listed] = (await self.store.list_tasks(self.ana.id, TaskQuery(1))).tasks
        self.assertEqual((listed.progress, listed.note), (0.0, None))

    async def test_reports_are_fenced(self) -> None:
        [mine] = await self.running()
        [theirs] = await self.running(worker="v")
        ended = await self.in_state(State.COMPLETED)
        [waiting] = await self.create()
        cancelled, retried = await self.running(2)
        for task in (cancelled, retried):
            await self.store.cancel(self.ana.id, task.id)
        await self.store.retry(self.ana.id, retried.id)
        others = [await self.get(task) for task in (theirs, ended, waiting, cancelled, retried)]
        keys = [(mine.id, 1, 1), (mine.id, 2, 1), (mine.id, 1, 2), (theirs.id, 1, 1), (ended.id, 1, 1)]
        keys += [(waiting.id, 1, 1), (waiting.id, 0, 0), (10**15, 1, 1)]
        # they are still held, but are to be stopped
        keys += [(cancelled.id, 1, 1), (retried.id, 1, 1), (retried.id, 1, 0)]
        reports = [Report(*key, 0.5, f"{n}", 1 + n, [f"line {n}"]) for n, key in enumerate(keys)]
        self.assertEqual(await self.store.report("w", reports), {mine.id})
        self.assertEqual(await self.log(mine), [((1, 1, 1), ["line 0"])])
        self.assertEqual((await self.get(mine)).note, "0")
        for task in others:
            self.assertEqual(await self.get(task), task)
            self.assertEqual(await self.log(task), [])
        self.assertEqual(await self.store.report("w", []), frozenset())

    async def test_an_attempt_reports_before_its_begin_is_stored(self) -> None:
        [task] = await self.queued()
        self.assertTrue(await self.report(task, "line", progress=0.5, note="half"))
        after = await self.get(task)
        self.assertEqual((after.progress, after.note), (0.5, "half"))
        self.assertEqual((after.state, after.version), (State.QUEUED, 1))
        self.assertEqual(await self.log(task), [((1, 1, 1), ["line"])])
        [running] = await self.begin([task])
        self.assertEqual((running.progress, running.note), (0.5, "half"))

    async def test_several_reports_of_a_task_count_in_their_order(self) -> None:
        one, two = await self.running(2)
        reports = [
            Report(two.id, 1, 1, 0.1, "first", 1, ["a"]),
            Report(one.id, 1, 1, 0.2, None, 1, ["b"]),
            Report(two.id, 1, 1, 0.3, None, 2, ["c"]),
        ]
        self.assertEqual(await self.store.report("w", reports), {one.id, two.id})
        after = await self.get(two)
        self.assertEqual((after.progress, after.note), (0.3, "first"))
        self.assertEqual(await self.log(two), [((1, 1, 1), ["a"]), ((1, 1, 2), ["c"])])

    async def test_lines_are_stored_unchanged(self) -> None:
        [task] = await self.running()
        lines = [text.replace("\r\n", " ").replace("\n", " ") for text in TEXTS]
        await self.report(task, "", *lines, "")
        await self.report(task, "", first_line=len(lines) + 3)
        await self.report(task, "nul\0", "lone \ud800", first_line=len(lines) + 4)
        expected = ["", *lines, "", "", "nul", "lone ?"]
        chunks = await self.store.read_log(task.id, None, 10)
        self.assertEqual([line for chunk in chunks for line in chunk.lines], expected)
        self.assertEqual([chunk.place.line for chunk in chunks], [1, len(lines) + 3, len(lines) + 4])
        for chunk in chunks:
            assert task.started_at is not None
            self.assertLess(abs(chunk.at - task.started_at), timedelta(minutes=10))
            self.assertEqual(chunk.at.utcoffset(), timedelta(0))

    async def test_log_bytes(self) -> None:
        [task] = await self.running()
        self.assertEqual(await self.store.log_bytes(task.id), 0)
        await self.report(task, "abc", "\N{SNOWMAN}")
        await self.report(task, "xy", first_line=3)
        self.assertEqual(await self.store.log_bytes(task.id), 7 + 2)
        self.assertEqual(await self.store.log_bytes(10**15), 0)

    async def test_a_report_repeated_stores_nothing_twice(self) -> None:
        [task] = await self.running()
        for _ in range(2):
            await self.report(task, "one", "two", progress=0.5)
        self.assertEqual(await self.log(task), [((1, 1, 1), ["one", "two"])])
        # the repetition contains lines that were written meanwhile
        await self.report(task, "one", "two", "three")
        await self.report(task, "one", "two")
        self.assertEqual(await self.log(task), [((1, 1, 1), ["one", "two", "three"])])
        self.assertEqual(await self.store.log_bytes(task.id), 13)

    async def test_a_log_can_be_read_from_any_place(self) -> None:
        [task] = await self.running()
        await self.report(task, "a1", "a2", "a3")
        await self.report(task, "a4", first_line=4)
        await self.report(task, "a9", "a10", first_line=9)
        await self.retry_later(task)
        again = await self.next_attempt()
        await self.report(again, "b1", "b2")
        everything = [
            ((1, 1, 1), ["a1", "a2", "a3"]),
            ((1, 1, 4), ["a4"]),
            ((1, 1, 9), ["a9", "a10"]),
            ((2, 2, 1), ["b1", "b2"]),
        ]
        self.assertEqual(await self.log(task), everything)
        # (place, index of the first chunk): the chunk with the place, unless all its lines are at the place or before
        # it
        cases = [
            ((0, 0, 0), 0),
            ((1, 0, 7), 0),
            ((1, 1, 0), 0),
            ((1, 1, 1), 0),
            ((1, 1, 2), 0),
            ((1, 1, 3), 1),
            ((1, 1, 4), 2),
            ((1, 1, 7), 2),
            ((1, 1, 9), 2),
            ((1, 1, 10), 3),
            ((1, 1, 2**40), 3),
            ((1, 2, 1), 3),
            ((2, 1, 9), 3),
            ((2, 2, 1), 3),
            ((2, 2, 2), 4),
            ((2**40, 1, 1), 4),
        ]
        for place, first in cases:
            self.assertEqual(await self.log(task, place), everything[first:], place)
            self.assertEqual(await self.log(task, place, 1), everything[first : first + 1], place)
        self.assertEqual(await self.log(task, None, 2), everything[:2])
        [other] = await self.create()
        self.assertEqual(await self.log(other), [])

    async def test_the_oldest_lines_are_cut(self) -> None:
        [task] = await self.running()
        await self.report(task, "a1", "a2")
        await self.retry_later(task)
        again = await self.next_attempt()
        await self.report(again, "b1", "b2")
        await self.report(again, "b3", "b4", first_line=3)
        # the log of another task with the same numbers does not change
        other = await self.in_state(State.WAITING)
        other = await self.next_attempt()
        await self.report(other, "other")
        await self.report(again, keep_from=1)
        self.assertEqual(len(await self.log(task)), 3)
        # the first cut line also cuts earlier attempts; a chunk is cut when all its lines are
        await self.report(again, "b5", first_line=5, keep_from=2)
        self.assertEqual([place for place, _ in await self.log(task)], [(2, 2, 1), (2, 2, 3), (2, 2, 5)])
        for _ in range(2):
            await self.report(again, "b6", first_line=6, keep_from=3)
            self.assertEqual([place for place, _ in await self.log(task)], [(2, 2, 3), (2, 2, 5), (2, 2, 6)])
        self.assertEqual(await self.store.log_bytes(task.id), 5 + 2 + 2)
        # lines that are cut at once need not be stored
        await self.report(again, "b7", "b8", first_line=7, keep_from=9)
        self.assertEqual(await self.log(task), [])
        await self.report(again, "b9", "b10", first_line=9, keep_from=10)
        self.assertEqual(await self.log(task, (2, 2, 3)), [((2, 2, 9), ["b9", "b10"])])
        self.assertEqual(await self.log(other), [((1, 1, 1), ["other"])])
