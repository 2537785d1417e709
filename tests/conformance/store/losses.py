"""The suite of IAttemptStore: tasks that are taken back from dead workers."""

from __future__ import annotations

from typing import NamedTuple

from taskd.model.states import State
from taskd.model.tasks import DEFAULT_KIND, FailedAttempt, Route, Task
from taskd.ports.attempts import Outcome
from taskd.ports.logs import Report
from taskd.ports.workers import Culprit, WorkerState
from tests.conformance.store.case import StoreCase

KINDS = {"async": "async", "thread": "thread", "process": "process", "program": "program"}
REASON = "blocked the worker for 300 s at file.py:12 in work()"
LATER_DISPATCH = 7


class Lost(NamedTuple):
    """A task that a worker holds when it dies, and whether the attempt is spent. ``queued``: no begin of it is stored.
    ``entered``: the watchdog knows that it had begun, or that its handler was entered. None if it knows nothing."""

    spent: bool
    losses: int = 0
    kind: str = "async"
    attempt: int = 1
    most: int = 3
    culprit: bool = False
    queued: bool = False
    entered: bool | None = None

    @property
    def candidate(self) -> bool:
        """Whether it may have killed its worker."""
        began = not self.queued or (not self.losses and self.most != 1)
        return began and self.entered is not False and self.kind not in ("process", "program")


NOT_BEGUN = Lost(False, queued=True, entered=False)
"""The watchdog knows that it had not begun."""

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
    "innocents without a stored begin": [Lost(False, queued=True), Lost(False, attempt=3, queued=True), Lost(False)],
    "the culprit without a stored begin": [Lost(True, culprit=True, queued=True), Lost(False, queued=True)],
    "the last attempt of a culprit without a begin": [Lost(True, attempt=3, culprit=True, queued=True)],
    "a suspect that has not begun": [Lost(False, 3, queued=True), Lost(False, 1, queued=True)],
    "the only suspect that has begun": [Lost(True, 1), Lost(False, 1, queued=True), Lost(False, queued=True)],
    "a single attempt that has not begun": [Lost(False, most=1, queued=True), Lost(False, 2, most=1, queued=True)],
    "the last attempt of a single suspect": [Lost(True, 1, attempt=3)],
    "who was entered": [Lost(False, entered=True), Lost(False, entered=False), NOT_BEGUN],
    "the only suspect that was entered": [Lost(True, 1, entered=True), Lost(False, 1, entered=False)],
    "a suspect that had not begun is no suspect": [Lost(True, 1, entered=True), Lost(False, 3, entered=False)],
    "two suspects that were entered": [Lost(False, 1, entered=True), Lost(False, 2, entered=True), NOT_BEGUN],
    "who was entered without a stored begin": [Lost(False, entered=True, queued=True), NOT_BEGUN],
    "a single attempt that was not entered": [Lost(True, most=1, entered=False), Lost(False, entered=True)],
    "nothing had begun": [NOT_BEGUN, Lost(False, attempt=3, queued=True, entered=False)],
    "a culprit beside what had not begun": [Lost(True, culprit=True, entered=True), NOT_BEGUN],
}


class LossTests(StoreCase):
    """The suite of IAttemptStore: tasks that are taken back from dead workers."""

    async def lose(self, lost: Lost, worker: str) -> Task:
        """The task of a case."""
        [task] = await self.queued(1, worker, kind=lost.kind, max_attempts=lost.most)
        while task.attempt < lost.attempt:
            await self.retry_later(task, worker, delay=0)
            [task] = await self.assign(worker, routes=[Route("q", lost.kind)])
        if not lost.queued:
            await self.begin([task], worker)
        await self.set_losses(task.id, lost.losses)
        await self.store.report(worker, [Report(task.id, task.dispatch, task.attempt, 0.5, "half")])
        return await self.get(task)

    async def check(self, lost: Lost, before: Task, reason: str, worker: str, candidate: bool) -> Task:
        """The task after the loss, which is as the case says."""
        after = await self.get(before)
        final = lost.spent and lost.attempt == lost.most
        self.assertIs(after.state, State.FAILED if final else State.WAITING)
        self.assertEqual(after.attempt, lost.attempt if lost.spent else lost.attempt - 1)
        self.assertEqual(after.losses, lost.losses + candidate)
        self.assertEqual((after.version, after.dispatch), (before.version + 1, before.dispatch))
        self.assertEqual((after.run_at, after.returns, after.worker), (before.run_at, 0, None))
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
            pairs = list(zip(case, tasks, strict=True))
            guilty = [task for lost, task in pairs if lost.culprit]
            among = [(task.id, task.dispatch) for lost, task in pairs if lost.entered]
            known = any(lost.entered is not None for lost in case)
            await self.die(
                worker, Culprit(guilty[0].id, guilty[0].dispatch, REASON) if guilty else None, among if known else None
            )
            taken = await self.store.take_back({})
            self.assertEqual(sorted(t.id for t in taken), [t.id for t in tasks], name)
            for lost, task in pairs:
                reason = REASON if lost.culprit else "its worker died"
                after = await self.check(lost, task, reason, worker, lost.candidate)
                self.assertIn(after, taken, name)
                self.assertIsNone(await self.finish(task, worker), name)
                self.assertEqual(await self.release([task], worker), [], name)
            # due, unless they have failed
            again = {t.id for kind in {t.kind for t in tasks} for t in await self.assign(routes=[Route("q", kind)])}
            self.assertEqual(again, {t.id for t in taken if t.state is State.WAITING}, name)
            self.assertEqual(await self.standing(worker), [])
            self.assertEqual(await self.get(innocent), innocent, name)
            self.assertEqual(list(await self.store.take_back({})), [])

    async def test_a_culprit_of_another_dispatch_spends_nothing(self) -> None:
        [task] = await self.running()
        await self.die("w", Culprit(task.id, LATER_DISPATCH, REASON))
        [back] = await self.store.take_back({})
        self.assertEqual((back.state, back.attempt, back.losses), (State.WAITING, 0, 1))

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
        self.assertTrue((await self.beat()).accepted)
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
        self.assertFalse((await self.beat()).accepted)
        self.assertEqual(await self.get(task), back)
        self.assertEqual(await self.begin([task]), [])
        self.assertEqual(await self.look(), [])
        # not even when the task is assigned again
        [other] = await self.assign("v")
        self.assertEqual((other.id, other.dispatch, other.attempt), (task.id, 2, 1))
        self.assertIsNone(await self.finish(task))
        self.assertIsNone(await self.finish(other))
        self.assertEqual(await self.get(task), other)
        # it goes on under another name
        await self.serve("w again")
        self.assertTrue((await self.beat("w again")).accepted)

    async def test_orphans_are_taken_back(self) -> None:
        [gone], [fenced], [absent], [kept] = [await self.running(1, name) for name in ("g", "f", "a", "k")]
        await self.die("g")
        await self.forget("a")
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
        await self.create(max_attempts=2)
        attempts: list[tuple[int, int]] = []
        task: Task | None = None
        while task is None or task.state is State.WAITING:
            worker = f"w{len(attempts)}"
            await self.next_attempt(worker)
            [task] = await self.fence(worker)
            attempts.append((task.attempt, task.losses))
        self.assertEqual(attempts, [(0, 1), (1, 2), (2, 3)])
        self.assertIs(task.state, State.FAILED)
        self.assertEqual(len(await self.store.failed_attempts(task.id)), 2)

    async def test_a_cancelled_or_retried_task_of_the_dead_is_only_let_go(self) -> None:
        for n, make in enumerate((self.queued, self.running)):
            worker = f"w{n}"
            cancelled, retried = await make(2, worker)
            for task in (cancelled, retried):
                await self.set_losses(task.id, 3)
                await self.store.cancel(self.ana.id, task.id)
            await self.store.retry(self.ana.id, retried.id)
            before = [await self.get(task) for task in (cancelled, retried)]
            await self.die(worker, Culprit(retried.id, 1, REASON))
            self.assertEqual(list(await self.store.take_back({})), [])
            self.assertEqual(await self.standing(worker), [])
            after = [await self.get(task) for task in (cancelled, retried)]
            self.assertEqual(
                [(t.state, t.version, t.attempt, t.losses, t.error) for t in after],
                [(t.state, t.version, t.attempt, t.losses, t.error) for t in before],
            )
            self.assertEqual(list(await self.store.failed_attempts(retried.id)), [])
            self.assertEqual(await self.due(), [retried.id])

    async def test_a_cancelled_suspect_is_no_suspect(self) -> None:
        cancelled, suspect = [await self.lose(Lost(True, 1), "w") for _ in range(2)]
        await self.store.cancel(self.ana.id, cancelled.id)
        [back] = await self.fence()
        self.assertEqual((back.id, back.attempt, back.losses), (suspect.id, 1, 2))

    async def test_reset_takes_everything_in_flight_back(self) -> None:
        await self.serve("w", **KINDS)
        waiting = await self.create(2)
        queued = await self.queued(2)
        [cancelled] = await self.queued()
        cancelled = await self.store.cancel(self.ana.id, cancelled.id)
        done = await self.in_state(State.COMPLETED)
        case = [Lost(False), Lost(False, 1, attempt=2), Lost(False, 2, "thread"), Lost(False, 1, "process")]
        case += [Lost(True, 3), Lost(True, most=1), Lost(False, 1, queued=True), Lost(False, most=1, queued=True)]
        names = ["w" if n % 2 else "v" for n in range(len(case))]
        held = [await self.lose(lost, name) for lost, name in zip(case, names, strict=True)]
        self.assertEqual(await self.store.reset_in_flight(), 10)
        for lost, task, name in zip(case, held, names, strict=True):
            await self.check(lost, task, "its worker stopped answering", name, lost.candidate)
        for task in queued:
            after = await self.get(task)
            # it may have begun: a queue is not a proof that it has not
            self.assertEqual((after.state, after.attempt, after.losses), (State.WAITING, 0, 1))
            self.assertEqual(list(await self.store.failed_attempts(task.id)), [])
        for task in (*waiting, cancelled, done):
            self.assertEqual(await self.get(task), task)
        self.assertEqual(list((await self.store.poll_workers()).workers), [])
        for name in ("v", "w"):
            self.assertEqual(await self.standing(name), [])
        due = {kind: len(await self.due(kind=kind)) for kind in (DEFAULT_KIND, *KINDS)}
        self.assertEqual(due, {DEFAULT_KIND: 4, "async": 5, "thread": 1, "process": 1, "program": 0})
        self.assertEqual(await self.store.reset_in_flight(), 11)

    async def test_reset_judges_all_as_one_worker(self) -> None:
        for others, attempt in ((0, 1), (1, 0)):
            suspect = await self.lose(Lost(False, 1), "one")
            await self.die("one", Culprit(suspect.id, LATER_DISPATCH, REASON))
            for _ in range(others):
                await self.lose(Lost(False, 1), "two")
            await self.store.reset_in_flight()
            self.assertEqual((await self.get(suspect)).attempt, attempt)
