"""The suite of IAttemptStore: tasks that are taken back from dead workers."""

from __future__ import annotations

from typing import NamedTuple

from taskd.model.states import State
from taskd.model.tasks import DEFAULT_KIND, FailedAttempt, Task
from taskd.ports.attempts import Held, Outcome
from taskd.ports.logs import Report
from taskd.ports.workers import Culprit, WorkerState
from tests.conformance.store.case import StoreCase

KINDS = {"async": "async", "thread": "thread", "process": "process", "program": "program"}
REASON = "blocked the worker for 300 s at file.py:12 in work()"
LATER_DISPATCH = 7


class Lost(NamedTuple):
    """A task that runs when its worker dies, and whether the attempt is spent."""

    spent: bool
    losses: int = 0
    kind: str = "async"
    attempt: int = 1
    most: int = 3
    culprit: bool = False


CASES = {
    "an innocent": [Lost(False)],
    "many innocents": [Lost(False), Lost(False, kind="thread"), Lost(False, attempt=2)],
    "the last attempt of an innocent": [Lost(False, attempt=3)],
    "the culprit": [Lost(True, culprit=True), Lost(False)],
    "the culprit on its last attempt": [Lost(True, attempt=3, culprit=True), Lost(False, attempt=3)],
    "a culprit among suspects": [Lost(True, 1, culprit=True), Lost(False, 1), Lost(False, 2)],
    "a culprit beside the only suspect": [Lost(True, culprit=True), Lost(False, 2)],
    "the only suspect": [Lost(True, 1), Lost(False), Lost(False, kind="thread")],
    "two suspects": [Lost(False, 1), Lost(False, 2), Lost(False)],
    "a suspect in a thread": [Lost(True, 2, "thread"), Lost(False)],
    "the fourth unspent loss": [Lost(True, 3), Lost(True, 4), Lost(False, 2)],
    "the fourth unspent loss beside a culprit": [Lost(True, culprit=True), Lost(True, 3)],
    "the fourth loss on the last attempt": [Lost(True, 3, attempt=3), Lost(False, 2)],
    "a single attempt": [Lost(True, most=1), Lost(False)],
    "child processes": [Lost(False, kind="process"), Lost(False, kind="program")],
    "a child process with losses": [Lost(False, 1, "process"), Lost(False, 3, "program")],
    "a suspect beside a child process with losses": [Lost(True, 1), Lost(False, 1, "process")],
    "a single attempt in a child process": [Lost(True, kind="process", most=1)],
    "a kind that is not known": [Lost(True, 1, "unknown"), Lost(False, kind="unknown")],
}


class LossTests(StoreCase):
    """The suite of IAttemptStore: tasks that are taken back from dead workers."""

    async def lose(self, lost: Lost, worker: str) -> Task:
        """The running task of a case."""
        [task] = await self.running(1, worker, kind=lost.kind, max_attempts=lost.most)
        while task.attempt < lost.attempt:
            await self.retry_later(task, worker, delay=0)
            [task] = await self.claim((await self.dispatch(kind=lost.kind)).tasks, worker)
        await self.set_losses(task.id, lost.losses)
        await self.store.report(worker, [Report(task.id, task.dispatch, task.attempt, 0.5, "half")])
        return await self.get(task)

    async def check(self, lost: Lost, before: Task, reason: str, worker: str) -> Task:
        """The task after the loss, which is as the case says."""
        after = await self.get(before)
        final = lost.spent and lost.attempt == lost.most
        in_process = lost.kind not in ("process", "program")
        self.assertIs(after.state, State.FAILED if final else State.WAITING)
        self.assertEqual(after.attempt, lost.attempt if lost.spent else lost.attempt - 1)
        self.assertEqual(after.losses, lost.losses + in_process)
        self.assertEqual((after.version, after.dispatch), (before.version + 1, before.dispatch))
        self.assertEqual((after.run_at, after.returns), (before.run_at, 0))
        error = f"attempt {lost.attempt} of {lost.most} was lost: {reason}"
        self.assertEqual(after.error, error if lost.spent else None)
        self.assertEqual((after.progress, after.note), (0.5, "half") if final else (None, None))
        self.assertEqual(after.started_at, before.started_at if final else None)
        self.assertEqual(after.finished_at is not None, final)
        failed = [f for f in await self.store.failed_attempts(before.id) if f.dispatch == before.dispatch]
        expected = FailedAttempt(before.dispatch, lost.attempt, worker, before.started_at, before.run_at, error, None)
        self.assertEqual([f._replace(ended_at=before.run_at) for f in failed], [expected] * lost.spent)
        return after

    async def test_what_a_loss_costs(self) -> None:
        for n, (name, case) in enumerate(CASES.items()):
            worker = f"w{n}"
            await self.serve(worker, **KINDS)
            [innocent] = await self.running(1, "another worker")
            tasks = [await self.lose(lost, worker) for lost in case]
            guilty = [t for t, lost in zip(tasks, case, strict=True) if lost.culprit]
            await self.die(worker, Culprit(guilty[0].id, guilty[0].dispatch, REASON) if guilty else None)
            taken = await self.store.take_back({})
            self.assertEqual(sorted(t.id for t in taken), [t.id for t in tasks], name)
            for lost, task in zip(case, tasks, strict=True):
                after = await self.check(lost, task, REASON if lost.culprit else "its worker died", worker)
                self.assertIn(after, taken, name)
                self.assertIsNone(await self.finish(task, worker), name)
                self.assertEqual(await self.release([task], worker), [], name)
                # due, unless it has failed
                if after.state is State.WAITING:
                    [queued] = (await self.dispatch(kind=lost.kind, limit=1)).tasks
                    self.assertEqual(queued.id, task.id, name)
            self.assertEqual(await self.get(innocent), innocent, name)
            self.assertEqual(list(await self.store.take_back({})), [])

    async def test_a_culprit_of_another_dispatch_spends_nothing(self) -> None:
        [task] = await self.running()
        await self.die("w", Culprit(task.id, LATER_DISPATCH, REASON))
        [back] = await self.store.take_back({})
        self.assertEqual((back.state, back.attempt, back.losses), (State.WAITING, 0, 1))

    async def test_what_has_not_begun_is_no_suspect(self) -> None:
        """A task with losses begins when its worker says so."""
        for most in (3, 1):
            first, second = f"first{most}", f"second{most}"
            [task] = await self.create(1, max_attempts=most)
            await self.set_losses(task.id, 3)
            [claimed] = await self.claim([task], first, begin=False)
            held = Held(task.id, claimed.dispatch, claimed.attempt)
            self.assertEqual(list(await self.store.begin(second, [held])), [])
            [back] = await self.fence(first)
            self.assertEqual((back.state, back.attempt, back.losses), (State.WAITING, 0, 3))
            self.assertEqual(list(await self.store.begin(first, [held])), [])
            [claimed] = await self.claim((await self.dispatch()).tasks, second, begin=False)
            held = Held(task.id, claimed.dispatch, claimed.attempt)
            for _ in range(2):
                self.assertEqual(list(await self.store.begin(second, [held])), [held])
            [back] = await self.fence(second)
            self.assertEqual((back.attempt, back.losses), (1, 4))
            await self.dispatch()

    async def test_suspects_are_counted_for_each_worker(self) -> None:
        one, two = await self.lose(Lost(True, 1), "one"), await self.lose(Lost(True, 1), "two")
        status = {name: (await self.status(name)).beat for name in ("one", "two")}
        taken = await self.store.take_back(status)
        self.assertEqual({t.id: t.attempt for t in taken}, {one.id: 1, two.id: 1})

    async def test_a_silent_worker_is_fenced(self) -> None:
        mine = await self.running(2, max_attempts=1)
        [other] = await self.running(1, "v")
        beat = (await self.status()).beat
        taken = await self.store.take_back({"w": beat, "nobody": 1})
        self.assertEqual({t.id for t in taken}, {t.id for t in mine})
        self.assertEqual({t.error for t in taken}, {"attempt 1 of 1 was lost: its worker stopped answering"})
        self.assertIs((await self.status()).state, WorkerState.FENCED)
        self.assertIs((await self.status("v")).state, WorkerState.SERVING)
        self.assertEqual(await self.get(other), other)

    async def test_an_old_beat_takes_nothing(self) -> None:
        [task] = await self.running()
        beat = (await self.status()).beat
        self.assertTrue(await self.store.beat("w", {}))
        for old in (beat, beat + 2):
            self.assertEqual(list(await self.store.take_back({"w": old})), [])
        self.assertIs((await self.status()).state, WorkerState.SERVING)
        self.assertEqual(await self.get(task), task)
        self.assertEqual([t.id for t in await self.store.take_back({"w": beat + 1})], [task.id])

    async def test_a_draining_worker_keeps_its_tasks_until_it_is_dead(self) -> None:
        [task] = await self.running()
        await self.store.worker_draining("w")
        self.assertEqual(list(await self.store.take_back({})), [])
        self.assertEqual(await self.get(task), task)
        self.assertEqual([t.id for t in await self.fence()], [task.id])

    async def test_what_a_fenced_worker_says_counts_for_nothing(self) -> None:
        [task] = await self.running()
        [back] = await self.fence()
        outcomes = [Outcome(task.id, 1, 1, state, None, "broke") for state in (State.COMPLETED, State.FAILED)]
        for outcome in (*outcomes, Outcome(task.id, 1, 1, State.WAITING, None, "broke")):
            for again in (False, True):
                self.assertEqual(await self.store.finish("w", [outcome], again), {})
        self.assertEqual(await self.release([task]), [])
        self.assertFalse(await self.report(task, "line", progress=0.5))
        self.assertFalse(await self.store.beat("w", {}))
        self.assertEqual(await self.get(task), back)
        # not even when the task is queued again
        [queued] = (await self.dispatch()).tasks
        self.assertEqual(await self.claim([queued]), [])
        self.assertEqual([t.attempt for t in await self.claim([queued], "v")], [1])
        self.assertIsNone(await self.finish(task))
        # it goes on under another name
        await self.serve("w again")
        self.assertTrue(await self.store.beat("w again", {}))

    async def test_orphans_are_taken_back(self) -> None:
        [gone], [fenced], [absent], [kept] = [await self.running(1, name) for name in ("g", "f", "a", "k")]
        await self.die("g")
        await self.store.worker_gone("a")
        taken = await self.store.take_back({"f": (await self.status("f")).beat})
        self.assertEqual(sorted(t.id for t in taken), [gone.id, fenced.id, absent.id])
        self.assertEqual(await self.get(kept), kept)
        # fencing it again changes nothing
        for name in ("g", "f"):
            before = await self.status(name)
            self.assertEqual(await self.fence(name), [])
            self.assertEqual(await self.status(name), before)

    async def test_an_attempt_that_ends_by_itself_clears_the_losses(self) -> None:
        for state in (State.COMPLETED, State.FAILED, State.WAITING):
            [task] = await self.running()
            await self.set_losses(task.id, 3)
            await self.finish(task, state=state)
            self.assertEqual((await self.get(task)).losses, 0, state)
        # one that is given back has not ended by itself
        [task] = await self.running()
        await self.set_losses(task.id, 2)
        [back] = await self.release([task])
        self.assertEqual(back.losses, 2)

    async def test_a_poison_task_fails_after_its_attempts(self) -> None:
        [task] = await self.create(max_attempts=2)
        attempts: list[tuple[int, int]] = []
        while task.state is State.QUEUED:
            worker = f"w{len(attempts)}"
            await self.claim([task], worker)
            [task] = await self.fence(worker)
            attempts.append((task.attempt, task.losses))
            [task] = (await self.dispatch()).tasks or [task]
        self.assertEqual(attempts, [(0, 1), (1, 2), (2, 3)])
        self.assertIs(task.state, State.FAILED)
        self.assertEqual(len(await self.store.failed_attempts(task.id)), 2)

    async def test_reset_takes_everything_in_flight_back(self) -> None:
        await self.serve("w", **KINDS)
        waiting = await self.create(2, State.WAITING)
        queued = await self.create(2)
        done = await self.in_state(State.COMPLETED)
        case = [Lost(False), Lost(False, 1, attempt=2), Lost(False, 2, "thread"), Lost(False, 1, "process")]
        case += [Lost(True, 3), Lost(True, most=1)]
        running = [await self.lose(lost, "w" if n % 2 else "v") for n, lost in enumerate(case)]
        self.assertEqual(await self.store.reset_in_flight(), 8)
        for n, (lost, task) in enumerate(zip(case, running, strict=True)):
            await self.check(lost, task, "its worker stopped answering", "w" if n % 2 else "v")
        for task in (*waiting, *queued):
            after = await self.get(task)
            self.assertEqual((after.state, after.attempt, after.losses), (State.WAITING, 0, 0))
            self.assertEqual(list(await self.store.failed_attempts(task.id)), [])
        self.assertEqual(await self.get(done), done)
        self.assertEqual(list((await self.store.poll_workers()).workers), [])
        self.assertEqual(await self.count_outbox(), 0)
        self.assertEqual(await self.store.count_queued(), {})
        due = {kind: len((await self.dispatch(kind=kind)).tasks) for kind in (DEFAULT_KIND, *KINDS)}
        self.assertEqual(due, {DEFAULT_KIND: 4, "async": 3, "thread": 1, "process": 1, "program": 0})
        self.assertEqual(await self.store.reset_in_flight(), 9)

    async def test_reset_judges_all_as_one_worker(self) -> None:
        for others, attempt in ((0, 1), (1, 0)):
            suspect = await self.lose(Lost(False, 1), "one")
            await self.die("one", Culprit(suspect.id, LATER_DISPATCH, REASON))
            for _ in range(others):
                await self.lose(Lost(False, 1), "two")
            await self.store.reset_in_flight()
            self.assertEqual((await self.get(suspect)).attempt, attempt)
