"""Creates tasks: stores the tasks of many requests in one transaction, and assigns some of them in it."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from itertools import compress, islice
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime

from taskd.batching import Batcher
from taskd.events.publisher import Publisher
from taskd.model.errors import BadRequest, KeyTaken
from taskd.model.states import State
from taskd.model.tasks import NewTask, Route
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.ports.tasks import Keyed
from taskd.protocol.limits import MAX_BATCH
from taskd.scheduling.dispatcher import Dispatcher
from taskd.scheduling.fast_path import FastPath
from taskd.scheduling.idempotency import Created, answers, check_fingerprints, to_be_stored
from taskd.scheduling.ids import Ids
from taskd.scheduling.key_turns import Key, KeyTurns, Turn
from taskd.scheduling.quotas import Quotas


class Submitter:
    """Callers get their answer after the commit; events and hints are sent after that.

    A task that the fast path places is assigned by its creation. Any other task waits in the store: behind older tasks,
    until it is due, or for a worker that serves its route. The submitter tells the dispatcher what waits."""

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        broker: IBroker,
        publisher: Publisher,
        dispatcher: Dispatcher,
        fast_path: FastPath,
        quotas: Quotas,
    ) -> None:
        self._store = store
        self._broker = broker
        self._publisher = publisher
        self._dispatcher = dispatcher
        self._fast_path = fast_path
        self._quotas = quotas
        self.ids = Ids(clock)
        self._giving_ids = DeferredLock()
        self._batcher: Batcher[Sequence[NewTask], Sequence[Created]] = Batcher(
            clock, self._create, max_weight=MAX_BATCH, weigh=len, failed=quotas.not_stored
        )
        self._look_ups: Batcher[Sequence[Key], Mapping[Key, Keyed]] = Batcher(
            clock, self._look_up, max_weight=MAX_BATCH, weigh=len
        )
        self._key_turns = KeyTurns()

    def submit(self, tasks: Sequence[NewTask]) -> Deferred[Sequence[Created]]:
        """Store the tasks of one request, all or none. The result has them in order, once they are committed.

        A task whose key is taken is not stored again. Raises Unavailable, QuotaExceeded, and Conflict when the key
        belongs to a different task.
        """
        for task in tasks:
            if task.key is not None:
                return self._answer_later(self._submit_keyed(tasks))
        if self._quotas.admits(tasks):
            return self._batcher.submit(tasks)
        return self._answer_later(self._submit_checked(tasks))

    def _answer_later(self, work: Coroutine[Any, Any, Sequence[Created]]) -> Deferred[Sequence[Created]]:
        # A caller that gives up stops nothing, as with the batcher: keys are held until their outcome is known.
        answered: Deferred[Sequence[Created]] = Deferred()
        Deferred.fromCoroutine(work).chainDeferred(answered)
        return answered

    async def _submit_checked(self, tasks: Sequence[NewTask]) -> Sequence[Created]:
        await self._quotas.check(tasks)
        return await self._batcher.submit(tasks)

    async def _submit_keyed(self, tasks: Sequence[NewTask]) -> Sequence[Created]:
        check_fingerprints(tasks, {})
        with await self._key_turns.take(_keys(tasks)) as turn:
            while True:
                try:
                    return await self._store_keyed(tasks, turn)
                except KeyTaken:
                    pass  # another server has taken a key between the lookup and the commit

    async def _store_keyed(self, tasks: Sequence[NewTask], turn: Turn) -> Sequence[Created]:
        if unknown := [key for key in turn.keys if key not in turn.known]:
            turn.known.update(await self._look_ups.submit(unknown))
        known = {key: found for (_, key), found in turn.known.items()}
        check_fingerprints(tasks, known)
        fresh = to_be_stored(tasks, known)
        # only what is stored counts: a request that is sent again gets its answer although a quota is used up
        if fresh and not self._quotas.admits(fresh):
            await self._quotas.check(fresh)
        stored = await self._batcher.submit(fresh) if fresh else ()
        for task, created in zip(fresh, stored, strict=True):
            if task.key is not None:
                turn.known[task.user_id, task.key] = Keyed(created.task_id, task.fingerprint or "")
        return answers(tasks, known, stored)

    def drained(self) -> Deferred[None]:
        """Fires when nothing is under way."""
        return self._batcher.drained()

    async def _look_up(self, requests: list[Sequence[Key]]) -> Sequence[Mapping[Key, Keyed]]:
        found = await self._store.find_keys([key for keys in requests for key in keys])
        return [{key: found[key] for key in keys if key in found} for keys in requests]

    async def _create(self, requests: list[Sequence[NewTask]]) -> Sequence[Sequence[Created] | KeyTaken]:
        try:
            return await self._create_all(requests)
        except KeyTaken as e:
            # find out which, so that the batcher need not try everybody's requests in ever smaller batches
            keys = [_keys(tasks) for tasks in requests]
            taken = await self._store.find_keys([key for theirs in keys for key in theirs])
            free = [taken.keys().isdisjoint(theirs) for theirs in keys]
            if all(free):
                raise
            # another key may be taken meanwhile
            created = iter(await self._create(list(compress(requests, free))) if any(free) else ())
            return [next(created) if is_free else KeyTaken(e.message, field=e.field) for is_free in free]

    async def _create_all(self, requests: list[Sequence[NewTask]]) -> Sequence[Sequence[Created]]:
        tasks = [task for request in requests for task in request]
        await self._give_ids(tasks)
        placed = self._fast_path.place(tasks)
        try:
            created = await self._store.create_tasks(tasks, self.ids.spare(len(tasks)))
        except BaseException as e:
            self._fast_path.not_created(placed, isinstance(e, (BadRequest, KeyTaken)))
            self._waiting({task.route for task in tasks if task.worker is None})
            raise
        self.ids.add(created.ids)
        self._quotas.stored(requests)
        workers = self._fast_path.created(placed, created.tasks)
        self._publisher.publish(created.tasks)
        if workers:
            self._broker.hint(workers)
        # only the database knows whether a run_at has passed: at its time of this transaction
        due = {t.route for t in created.tasks if t.state is State.WAITING and t.run_at <= t.created_at}
        self._waiting(due)
        answers = iter([Created(task.id) for task in created.tasks])
        return [list(islice(answers, len(request))) for request in requests]

    async def _give_ids(self, tasks: Sequence[NewTask]) -> None:
        """Tasks of a batch that failed, of which this is a part, have theirs already."""
        new = [task for task in tasks if not task.id]
        if not new:
            return
        # one batch after the other, so that lists have the tasks in the order in which they came
        await self._giving_ids.acquire()
        try:
            while missing := self.ids.missing(len(new)):
                self.ids.drawn(await self._store.draw_ids(missing))
            for task in new:
                task.id = self.ids.take()
        finally:
            self._giving_ids.release()

    def _waiting(self, routes: set[Route]) -> None:
        for route in routes:
            self._dispatcher.came(route)


def _keys(tasks: Sequence[NewTask]) -> list[Key]:
    """The keys of a request, each once."""
    return list(dict.fromkeys((task.user_id, task.key) for task in tasks if task.key is not None))
