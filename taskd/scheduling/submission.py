"""Creates tasks: stores the tasks of many requests in one transaction, and sends some straight to the broker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from taskd.batching import Batcher
from taskd.events.publisher import Publisher
from taskd.model.errors import KeyTaken
from taskd.model.states import State
from taskd.model.tasks import NewTask, Route
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.ports.tasks import Keyed
from taskd.protocol.limits import MAX_BATCH
from taskd.scheduling.idempotency import Created, answers, check_fingerprints, to_be_stored
from taskd.scheduling.outbox import Outbox
from taskd.scheduling.window import Windows

Key = tuple[int, str]
"""A user's id and an idempotency key."""


class Submitter:
    """Callers get their answer after the commit; messages are published after that.

    A task that gets a place in the window of its route goes straight to the broker. Any other task waits in the store:
    behind older tasks, until it is due, or for a worker that serves its route. ``backlogged`` is called with the
    routes that have something new to dispatch."""

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        broker: IBroker,
        outbox: Outbox,
        windows: Windows,
        publisher: Publisher,
        new_id: Callable[[], str],
        backlogged: Callable[[Route], None],
    ) -> None:
        self._store = store
        self._broker = broker
        self._outbox = outbox
        self._windows = windows
        self._publisher = publisher
        self._new_id = new_id
        self._backlogged = backlogged
        self._batcher: Batcher[Sequence[NewTask], Sequence[Created]] = Batcher(
            clock, self._create, max_weight=MAX_BATCH, weigh=len
        )
        self._look_ups: Batcher[Sequence[Key], Mapping[Key, Keyed]] = Batcher(
            clock, self._look_up, max_weight=MAX_BATCH, weigh=len
        )

    def submit(self, tasks: Sequence[NewTask]) -> Deferred[Sequence[Created]]:
        """Store the tasks of one request, all or none. The result has them in order, once they are committed.

        A task whose key is taken is not stored again. Raises Unavailable, and Conflict when the key belongs to a
        different task.
        """
        for task in tasks:
            if task.key is not None:
                return Deferred.fromCoroutine(self._submit_keyed(tasks))
        return self._batcher.submit(tasks)

    async def _submit_keyed(self, tasks: Sequence[NewTask]) -> Sequence[Created]:
        keys = list(dict.fromkeys((task.user_id, task.key) for task in tasks if task.key is not None))
        while True:
            known = {key: found for (_, key), found in (await self._look_ups.submit(keys)).items()}
            check_fingerprints(tasks, known)
            fresh = to_be_stored(tasks, known)
            try:
                stored = await self._batcher.submit(fresh) if fresh else ()
            except KeyTaken:
                # another request has taken the key between the lookup and the commit
                continue
            return answers(tasks, known, stored)

    def drained(self) -> Deferred[None]:
        """Fires when nothing is under way."""
        return self._batcher.drained()

    async def _look_up(self, requests: list[Sequence[Key]]) -> Sequence[Mapping[Key, Keyed]]:
        found = await self._store.find_keys([key for keys in requests for key in keys])
        return [{key: found[key] for key in keys if key in found} for keys in requests]

    async def _create(self, requests: list[Sequence[NewTask]]) -> Sequence[Sequence[Created]]:
        batch = self._new_id()
        published, self._outbox.published = self._outbox.published, []
        tasks = [task for request in requests for task in request]
        for task in tasks:
            task.state = self._first_state(task)
        try:
            stored = await self._store.create_tasks(batch, tasks, published)
        except BaseException:
            self._outbox.published += published
            for task in tasks:
                if task.state is State.QUEUED:
                    self._windows.release(task.route, 1)
            raise
        for task, row in zip(tasks, stored, strict=True):
            # only the database knows whether a run_at has passed: at its time of this transaction
            if task.run_at is not None and row.run_at <= row.created_at:
                self._windows.mark_backlogged(task.route, task.user_id)
        self._publisher.publish(stored)
        self._outbox.publish(batch, stored)
        for route in dict.fromkeys(task.route for task in tasks if task.state is State.WAITING):
            self._backlogged(route)
        created = iter([Created(task.id) for task in stored])
        return [list(islice(created, len(request))) for request in requests]

    def _first_state(self, task: NewTask) -> State:
        """QUEUED if it goes straight to the broker, else WAITING: then the store knows when it is due."""
        window = self._windows.by_route.get(Route(task.queue, task.kind))
        if window is None or task.delay or task.run_at is not None:
            return State.WAITING
        # While the broker is away, tasks wait in the store; the dispatcher sends them when it is back.
        if self._broker.ready and window.admit(task.user_id):
            return State.QUEUED
        window.mark_backlogged(task.user_id)
        return State.WAITING
