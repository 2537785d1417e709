"""The suite of IQuotaStore."""

from __future__ import annotations

from taskd.model.quotas import Quota
from taskd.model.states import State
from taskd.ports.accounts import SETTLE_SECONDS, Entry
from taskd.ports.quotas import Usage, UsageDelta
from tests.conformance.store.case import StoreCase

HOUR = 3600


class QuotaTests(StoreCase):
    """The suite of IQuotaStore."""

    async def usage(self, user_id: int | None = None, open_limit: int = 100, unlimited: int = 0) -> Usage:
        user_id = user_id or self.ana.id
        found: Usage = (await self.store.read_usage([user_id], open_limit, unlimited))[user_id]
        return found

    async def test_a_new_user_has_nothing(self) -> None:
        self.assertEqual(await self.usage(), Usage(Quota()))

    async def test_usage_is_added_by_user(self) -> None:
        ana, ben = self.ana.id, self.ben.id
        await self.store.add_usage([UsageDelta(ana, 3, 100), UsageDelta(ben, 1, 10)])
        await self.store.add_usage([UsageDelta(ben, 0, -4)])
        await self.store.add_usage([UsageDelta(ana, 2, 2**40)])
        await self.store.add_usage([])
        found = await self.store.read_usage([ben, ana], 100)
        self.assertEqual([(found[u].daily, found[u].bytes) for u in (ana, ben)], [(5, 100 + 2**40), (1, 6)])

    async def test_the_oldest_hour_leaves_within_a_day(self) -> None:
        await self.store.add_usage([UsageDelta(self.ana.id, 1, 0)])
        usage = await self.usage()
        assert usage.frees_in is not None
        self.assertGreater(usage.frees_in, 23 * HOUR - 60)
        self.assertLessEqual(usage.frees_in, 24 * HOUR)
        await self.age_usage(5)
        aged = await self.usage()
        assert aged.frees_in is not None
        self.assertLess(abs(usage.frees_in - aged.frees_in - 5 * HOUR), 60)

    async def test_hours_without_tasks_free_nothing(self) -> None:
        await self.store.add_usage([UsageDelta(self.ana.id, 0, 7)])
        usage = await self.usage()
        self.assertEqual((usage.daily, usage.bytes, usage.frees_in), (0, 7, None))

    async def test_tasks_count_for_24_hours_and_bytes_for_ever(self) -> None:
        await self.store.add_usage([UsageDelta(self.ana.id, 3, 100)])
        await self.age_usage(23)
        await self.store.add_usage([UsageDelta(self.ana.id, 1, 1)])
        usage = await self.usage()
        self.assertEqual((usage.daily, usage.bytes), (4, 101))
        await self.age_usage(1)
        usage = await self.usage()
        self.assertEqual((usage.daily, usage.bytes), (1, 101))

    async def test_unknown_users_are_missing(self) -> None:
        self.assertEqual(list(await self.store.read_usage([self.ana.id, 999, 2**63, -1], 100)), [self.ana.id])
        self.assertEqual(await self.store.read_usage([], 100), {})

    # open tasks

    async def test_open_tasks_are_those_that_have_not_ended(self) -> None:
        for state in State:
            await self.in_state(state)
        [postponed] = await self.create()
        await self.postpone(postponed.id)
        await self.create(3, self.ben)
        # waiting, queued, running and the postponed one
        self.assertEqual((await self.usage()).open, 4)
        self.assertEqual((await self.usage(self.ben.id)).open, 3)

    async def test_open_tasks_are_counted_up_to_one_more_than_the_limit(self) -> None:
        await self.create(5)
        self.assertEqual([(await self.usage(open_limit=n)).open for n in (10, 5, 4, 2)], [5, 5, 5, 3])
        await self.store.set_quota("ana", {"open": 1})
        self.assertEqual((await self.usage(open_limit=10)).open, 2)
        await self.store.set_quota("ana", {"open": 0})
        self.assertEqual([(await self.usage(unlimited=n)).open for n in (0, 3, 10)], [0, 3, 5])
        await self.store.set_quota("ana", {"open": None})
        self.assertEqual([(await self.usage(open_limit=0, unlimited=n)).open for n in (0, 3)], [0, 3])

    # limits of a user

    async def test_limits_of_a_user(self) -> None:
        self.assertEqual(await self.store.set_quota("ana", {"open": 5, "bytes": 2**50}), Quota(5, None, 2**50))
        self.assertEqual(await self.store.set_quota("ana", {"daily": 0}), Quota(5, 0, 2**50))
        self.assertEqual(await self.store.set_quota("ana", {"open": None}), Quota(None, 0, 2**50))
        self.assertEqual(await self.store.set_quota("ana", {}), Quota(None, 0, 2**50))
        self.assertEqual((await self.usage()).quota, Quota(None, 0, 2**50))
        self.assertEqual((await self.usage(self.ben.id)).quota, Quota())
        self.assertIsNone(await self.store.set_quota("nobody", {"open": 5}))

    async def test_a_change_is_in_the_audit_once(self) -> None:
        entry = Entry("set_quota", 9, "root", address="192.0.2.1", details="open 5")
        for _ in range(2):
            await self.store.set_quota("ana", {"open": 5}, entry)
        await self.store.set_quota("nobody", {"open": 5}, entry)
        [row] = await self.store.list_audit(None, 10, action="set_quota")
        found = row.entry
        self.assertEqual(
            (found.actor_id, found.actor, found.address, found.details), (9, "root", "192.0.2.1", "open 5")
        )
        self.assertEqual((found.subject_id, found.subject, found.outcome, found.number), (self.ana.id, "ana", "ok", 1))

    # what is deleted

    async def test_deleted_tasks_give_their_bytes_back(self) -> None:
        payload, result = '{"a":"ñ"}', '"\N{SNOWMAN}"'
        [task] = await self.running(payload=payload)
        await self.report(task, "ñandú", "two")
        await self.report(task, "x", first_line=3)
        await self.finish(task, result=result)
        [theirs] = await self.running(user=self.ben)
        await self.finish(theirs)
        [kept] = await self.create(payload="{}")
        for each in (task, theirs, kept):
            await self.backdate(each.id, 1000, None if each is kept else 900)
        size = len(task.task) + len(payload.encode()) + len(result.encode()) + len("ñandú\ntwo".encode()) + 1
        await self.store.add_usage(
            [UsageDelta(self.ana.id, 2, size + 2), UsageDelta(self.ben.id, 1, 2 + len(theirs.task))]
        )
        self.assertEqual(await self.store.delete_finished(100, 0, 10), (2, None))
        usage = await self.usage()
        self.assertEqual((usage.daily, usage.bytes), (2, 2))
        self.assertEqual((await self.usage(self.ben.id)).bytes, 0)
        self.assertEqual(await self.store.delete_finished(100, 0, 10), (0, None))
        self.assertEqual((await self.usage()).bytes, 2)

    async def test_bytes_are_never_below_zero(self) -> None:
        await self.store.add_usage([UsageDelta(self.ana.id, 1, 10)])
        await self.age_usage(30)
        await self.store.add_usage([UsageDelta(self.ana.id, 0, -50), UsageDelta(self.ben.id, 0, -50)])
        self.assertEqual((await self.usage()).bytes, 0)
        self.assertEqual((await self.usage(self.ben.id)).bytes, 0)
        # the missing 40 are not a gift
        self.assertEqual(await self.store.fold_usage(10), 1)
        await self.store.add_usage([UsageDelta(self.ana.id, 0, 5)])
        self.assertEqual((await self.usage()).bytes, 5)

    async def test_an_hour_that_took_bytes_away_is_folded_into_what_there_was(self) -> None:
        ana = self.ana.id
        for size, left in ((1000, 1000), (-500, 500), (-700, 0), (5, 5)):
            await self.store.add_usage([UsageDelta(ana, 1, size)])
            await self.age_usage(24)
            self.assertEqual(await self.store.fold_usage(10), 1)
            self.assertEqual((await self.usage()).bytes, left)

    async def test_later_hours_make_up_for_what_was_taken_away(self) -> None:
        ana = self.ana.id
        await self.store.add_usage([UsageDelta(ana, 1, 1000)])
        await self.age_usage(24)
        await self.store.fold_usage(10)
        await self.store.add_usage([UsageDelta(ana, 1, -1200)])
        await self.age_usage(24)
        await self.store.add_usage([UsageDelta(ana, 1, 300)])
        self.assertEqual(await self.store.fold_usage(10), 1)
        self.assertEqual((await self.usage()).bytes, 100)
        await self.age_usage(24)
        self.assertEqual(await self.store.fold_usage(10), 1)
        self.assertEqual((await self.usage()).bytes, 100)

    async def test_an_hour_without_bytes_gives_nothing_either(self) -> None:
        [task] = await self.running()
        await self.finish(task)
        await self.backdate(task.id, 1000, 900)
        await self.store.add_usage([UsageDelta(self.ana.id, 1, 0)])
        self.assertEqual(await self.store.delete_finished(100, 0, 10), (1, None))
        await self.age_usage(24)
        self.assertEqual(await self.store.fold_usage(10), 1)
        # what was deleted without having been counted is not a debt
        await self.store.add_usage([UsageDelta(self.ana.id, 0, 5)])
        self.assertEqual((await self.usage()).bytes, 5)

    # hours that have passed

    async def test_hours_that_have_passed_are_folded(self) -> None:
        for size in (100, 10, 1):
            await self.store.add_usage([UsageDelta(self.ana.id, 1, size), UsageDelta(self.ben.id, 1, 0)])
            await self.age_usage(24)
        await self.store.add_usage([UsageDelta(self.ana.id, 1, 1000)])
        self.assertEqual([await self.store.fold_usage(4) for _ in range(3)], [4, 2, 0])
        usage = await self.usage()
        self.assertEqual((usage.daily, usage.bytes), (1, 1111))
        self.assertEqual(await self.usage(self.ben.id), Usage(Quota()))
        self.assertEqual(await self.count_usage(), 2)

    async def test_what_counts_is_not_folded(self) -> None:
        await self.store.add_usage([UsageDelta(self.ana.id, 1, 1)])
        await self.age_usage(23)
        self.assertEqual(await self.store.fold_usage(10), 0)
        self.assertEqual((await self.usage()).daily, 1)

    async def test_users_who_are_purged_are_forgotten(self) -> None:
        await self.store.add_usage([UsageDelta(self.ana.id, 1, 5)])
        await self.age_usage(24)
        await self.store.fold_usage(10)
        await self.store.add_usage([UsageDelta(self.ana.id, 1, 5), UsageDelta(self.ben.id, 1, 5)])
        await self.store.delete_user(self.ana.id)
        await self.store.purge_deleted(self.ana.id, 10)
        await self.age_accounts(SETTLE_SECONDS + 1)
        self.assertTrue(await self.store.purge_deleted(self.ana.id, 10))
        self.assertEqual(await self.store.deleted_users(), [])
        self.assertEqual(await self.count_usage(), 1)
        self.assertEqual((await self.usage(self.ben.id)).bytes, 5)

    async def test_deleted_users_are_forgotten(self) -> None:
        await self.store.add_usage([UsageDelta(self.ana.id, 1, 5)])
        await self.age_usage(24)
        await self.store.fold_usage(10)
        await self.store.add_usage([UsageDelta(self.ana.id, 1, 5)])
        await self.age_usage(24)
        await self.store.delete_user(self.ana.id)
        self.assertEqual(await self.store.read_usage([self.ana.id], 100), {})
        self.assertEqual(await self.store.fold_usage(10), 1)
        self.assertEqual(await self.count_usage(), 0)
        self.assertIsNone(await self.store.set_quota("ana", {"open": 5}))
