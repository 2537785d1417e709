"""The suite of ITaskStore: pages of a list and their filters."""

from __future__ import annotations

from collections.abc import Callable

from taskd.model.errors import BadRequest, NotFound
from taskd.model.limits import LISTED_RESULT_BYTES
from taskd.model.states import TERMINAL, State
from taskd.model.tasks import Task
from taskd.model.users import User
from taskd.ports.tasks import TaskQuery
from tests.conformance.store.case import TEXTS, StoreCase


class ListingTests(StoreCase):
    """The suite of ITaskStore: pages of a list and their filters."""

    async def test_ids_that_no_task_can_have(self) -> None:
        [task] = await self.create()
        for number in (10**30, 2**63, 0, -1, -(10**30)):
            self.assertEqual(list(await self.store.get_tasks(self.ana.id, [number])), [])
            self.assertEqual(list(await self.store.get_listed(self.ana.id, [number])), [])
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
        other = await self.queued(2, kind="other")
        [retrying] = await self.running()
        await self.retry_later(retrying, delay=0)
        [scheduled] = await self.create()
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

    async def test_a_filter_reads_a_bounded_number_of_rows(self) -> None:
        [needle] = await self.create(1, kind="needle")
        for _ in range(6):
            await self.create(1000)
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
