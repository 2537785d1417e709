"""Renews the leases of what runs, and stops what is not this worker's any more."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.events.records import decode_cancel_order
from taskd.model.errors import Unavailable
from taskd.model.tasks import Task
from taskd.ports.store import IStore
from taskd.worker.held import HeldState, HeldTask, HeldTasks, ack
from taskd.worker.reclaim import Reclaim
from taskd.worker.registration import Registration

RENEWALS = 3
"""Renewals in the time of one lease, so that two may be lost."""

ACK_AFTER = 600.0
"""Seconds after which a running task is acked early: RabbitMQ closes a channel whose delivery stays unacked for its
consumer_timeout, 30 minutes by default. From then on only the lease protects the task."""


class Leases:
    """Renews leases and the worker's registration. A cancelled task is found by the next renewal, or at once by an
    order: either way the store decides whether the task is still this worker's."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        held: HeldTasks,
        reclaim: Reclaim,
        registration: Registration,
        name: str,
        lease: float,
    ) -> None:
        self._clock = clock
        self._store = store
        self._held = held
        self._reclaim = reclaim
        self._registration = registration
        self._name = name
        self._lease = lease
        self._renewals = LoopingCall(self._start_renewal)
        self._renewals.clock = clock

    def start(self) -> None:
        """Begin to renew."""
        self._renewals.start(self._lease / RENEWALS, now=False)

    def stop(self) -> None:
        """Renew no more."""
        if self._renewals.running:
            self._renewals.stop()

    def cancel_ordered(self, body: bytes) -> None:
        """A server has cancelled tasks, perhaps of this worker. The order may be old: the store decides."""
        try:
            task_ids = decode_cancel_order(body).task_ids
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            text = "a cancel order cannot be decoded, cancelling takes until the next renewal: {why}"
            self._log.warn(text, why=str(e))
            return
        running = self._held.running
        if ours := {task_id: running[task_id] for task_id in task_ids if task_id in running}:
            self._renew_soon(ours)

    def report_fenced(self, task: Task) -> None:
        """The store has refused a report of this attempt."""
        held = self._held.running.get(task.id)
        if held is not None and held.attempt is not None and held.attempt.task is task:
            self._renew_soon({task.id: held})

    def _start_renewal(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._renew_all())

    async def _renew_all(self) -> None:
        now = self._clock.seconds()
        running = dict(self._held.running)
        ack([held for held in running.values() if now - held.since >= ACK_AFTER])
        if not self._held.draining:
            await self._registration.renew()
        await self._renew(running)

    def _renew_soon(self, running: Mapping[int, HeldTask]) -> None:
        Deferred.fromCoroutine(self._renew(running)).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("renewing leases failed", failure)

    async def _renew(self, running: Mapping[int, HeldTask]) -> None:
        if not running:
            return
        try:
            ours = await self._store.renew(self._name, self._lease, list(running))
        except Unavailable as e:
            self._log.warn("leases were not renewed: {why}", why=e.message)
            return
        except Exception:
            self._log.failure("leases were not renewed")
            return
        try:
            reclaimed = await self._reclaim.reclaim([held for task_id, held in running.items() if task_id not in ours])
        except Unavailable:
            return
        for task_id, held in running.items():
            if task_id not in ours and held not in reclaimed and self._held.running.get(task_id) is held:
                self._stop(task_id, held)

    def _stop(self, task_id: int, held: HeldTask) -> None:
        if held.state is HeldState.FINISHING or held.attempt is None or held.attempt.stopped:
            return
        self._log.info("task {id} is not this worker's any more: stopped", id=task_id)
        held.attempt.stop()
        ack([held])
