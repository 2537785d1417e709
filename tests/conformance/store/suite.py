"""The suite of IStore: every promise of the ports, against the store that a test case makes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from zope.interface.verify import verifyClass, verifyObject

from taskd.model.errors import Conflict, Unavailable
from taskd.model.states import MOVES, TERMINAL, State
from taskd.model.tasks import Task
from taskd.ports.logs import Report
from taskd.ports.store import IStore
from taskd.store.migrations import load
from tests.conformance.store.accounts import AccountTests
from tests.conformance.store.assigning import AssigningTests
from tests.conformance.store.attempts import AttemptTests
from tests.conformance.store.creation import CreationTests
from tests.conformance.store.holding import HoldingTests
from tests.conformance.store.line import LineTests
from tests.conformance.store.listing import ListingTests
from tests.conformance.store.logs import LogTests
from tests.conformance.store.losses import LossTests
from tests.conformance.store.overview import OverviewTests
from tests.conformance.store.promotion import PromotionTests
from tests.conformance.store.quotas import QuotaTests
from tests.conformance.store.retries import RetryTests
from tests.conformance.store.sessions import SessionTests
from tests.conformance.store.shares import ShareTests
from tests.conformance.store.tasks import TaskTests
from tests.conformance.store.totp import TotpTests
from tests.conformance.store.workers import WorkerTests


class StoreTests(
    AccountTests,
    SessionTests,
    TotpTests,
    QuotaTests,
    CreationTests,
    TaskTests,
    ListingTests,
    AssigningTests,
    ShareTests,
    PromotionTests,
    OverviewTests,
    LineTests,
    HoldingTests,
    AttemptTests,
    RetryTests,
    LossTests,
    LogTests,
    WorkerTests,
):
    """The tests of all themes, of the interface, and of the moves between states."""

    async def test_provides_its_interface(self) -> None:
        verifyClass(IStore, type(self.store))
        verifyObject(IStore, self.store)
        self.assertIs(self.store.ready, True)

    async def test_is_not_ready_once_stopped(self) -> None:
        await self.store.stop()
        self.assertIs(self.store.ready, False)
        await self.store.stop()

    async def test_a_store_that_takes_changes_tells_the_version_of_its_schema(self) -> None:
        self.assertEqual(await self.store.check_writable(), len(load("postgres")))
        await self.store.stop()
        with self.assertRaises(Unavailable):
            await self.store.check_writable()

    async def test_all_stores_of_a_database_have_the_id_of_one_installation(self) -> None:
        self.assertRegex(self.store.installation, "^[0-9a-f]{8}$")

    async def test_no_method_makes_an_illegal_move(self) -> None:
        async def cancel(task: Task) -> None:
            with suppress(Conflict):
                await self.store.cancel(task.user_id, task.id)

        async def retry(task: Task) -> None:
            with suppress(Conflict):
                await self.store.retry(task.user_id, task.id)

        async def take_back(task: Task) -> None:
            await self.serve()
            await self.fence()
            # so that the next one can have this name
            await self.store.worker_gone("w")

        methods: dict[str, Callable[[Task], Awaitable[Any]]] = {
            "assign": lambda t: self.turn(),
            "assign to another": lambda t: self.turn({"v": 100}),
            "promote": lambda t: self.store.promote(100),
            "begin": lambda t: self.begin([t]),
            "begin by another": lambda t: self.begin([t], "v"),
            "complete": lambda t: self.finish(t),
            "fail": lambda t: self.finish(t, state=State.FAILED),
            "retry at once": lambda t: self.finish(t, state=State.WAITING),
            "retry later": lambda t: self.finish(t, state=State.WAITING, delay=60.0),
            "report": lambda t: self.store.report("w", [Report(t.id, t.dispatch, t.attempt, None, None, 1, ["x"])]),
            "release": lambda t: self.release([t]),
            "stop": lambda t: self.release([t], stopping=True),
            "cancel": cancel,
            "retry": retry,
            "take back": take_back,
            "take orphans back": lambda t: self.store.take_back({}),
            "worker gone": lambda t: self.store.worker_gone("w"),
            "reset": lambda t: self.store.reset_in_flight(),
        }
        ends = ("complete", "fail", "retry at once", "retry later")
        for state in State:
            for name, method in methods.items():
                before = await self.in_state(state)
                await method(before)
                after = await self.get(before)
                what = f"{name} on {state.value}"
                if after.state is state and after.attempt == before.attempt:
                    self.assertEqual(after, before, what)
                    continue
                self.assertIn(after.state, MOVES[state], what)
                # an end without a stored begin counts both changes
                changes = 2 if state is State.QUEUED and name in ends else 1
                self.assertEqual(after.version, before.version + changes, what)
                self.assertEqual(after.finished_at is not None, after.state in TERMINAL, what)
