"""The suite of IWorkerStore."""

from __future__ import annotations

from taskd.ports.workers import KindInfo, WorkerInfo
from tests.conformance.store.case import StoreCase


class WorkerTests(StoreCase):
    """The suite of IWorkerStore."""

    async def test_workers_are_listed_while_they_are_seen(self) -> None:
        simulate = KindInfo("simulate", "async", None, 3, "Sleeps.")
        picture = KindInfo("picture:\N{SNOWMAN}", "process", 60.5, 5, 'two\nlines "quoted" \\ \'')
        one = WorkerInfo("b-1", ["tasks", "mail"], [simulate, picture], 10)
        two = WorkerInfo("a-2", [], [], 1)
        self.assertEqual(list(await self.store.list_workers(60)), [])
        await self.store.worker_seen(one)
        await self.store.worker_seen(two)
        self.assertEqual(list(await self.store.list_workers(60)), [two, one])
        self.assertEqual(list(await self.store.list_workers(0)), [])
        # a new record replaces the old one
        changed = WorkerInfo("b-1", ["tasks"], [picture], 20)
        await self.store.worker_seen(changed)
        self.assertEqual(list(await self.store.list_workers(60)), [two, changed])
        await self.age_workers(100)
        await self.store.worker_seen(two)
        self.assertEqual(list(await self.store.list_workers(60)), [two])
        self.assertEqual(list(await self.store.list_workers(200)), [two, changed])
        for _ in range(2):
            await self.store.worker_gone("a-2")
        self.assertEqual(list(await self.store.list_workers(200)), [changed])

    async def test_workers_not_seen_for_a_day_are_forgotten(self) -> None:
        worker = WorkerInfo("w", ["q"], [], 1)
        await self.store.worker_seen(worker)
        await self.age_workers(86_000)
        await self.store.list_workers(60)
        self.assertEqual(list(await self.store.list_workers(10**6)), [worker])
        await self.age_workers(1000)
        await self.store.list_workers(60)
        self.assertEqual(list(await self.store.list_workers(10**6)), [])
