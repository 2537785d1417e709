"""Defects of taskd that the simulation has found and that are not repaired yet.

Each is repaired here, in the simulation only, so that it can look for the next one. When taskd has the repair, take it
out here: nothing may be left in this module for long.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred, succeed

from taskd.model import Task
from taskd.ports import TaskQuery
from taskd.server import actions, outbox
from taskd.server.hub import GAP
from taskd.wire import messages as m

_publish = outbox.Outbox.publish


def publish(self: outbox.Outbox, batch: str, tasks: Sequence[Task]) -> Deferred[None]:
    """A turn of the dispatcher that found nothing has no row to settle. If the first run of its batch straggles, the
    row that it stores in the end must not be settled by the second run, which found nothing."""
    return _publish(self, batch, tasks) if tasks else succeed(None)


async def watch(self: Any, peer: actions.Peer, request: m.Watch) -> actions.Answer:
    """Of two watches asked for in one go, the failure of the first is no gap of the second; and when the second fails,
    the reply to the first, which comes behind the gap, must not look as if it lived."""
    user, before = actions._user(peer), peer.watch
    gap = before is not None and not before.closed
    peer.unwatch()
    mine = peer.watch = self._hub.watch(user.id, peer.send)

    def after() -> None:
        now = peer.watch
        if mine.closed and now is not None and now is not mine and now.closed:
            peer.send(GAP)
        mine.open(tasks)

    try:
        async with peer.reading:
            page = await self._store.list_tasks(user.id, TaskQuery(request.limit))
            tasks = actions._that_fit(page.tasks)
            return actions.Then({"status": "success", "tasks": self._views(tasks)}, after)
    except BaseException:
        mine.close()
        if gap and peer.watch is mine:
            peer.send(GAP)
        raise


def renew(query: Callable[..., list[Any]], worker: str, until: int, held: Iterable[int]) -> frozenset[int]:
    """A worker must renew the leases of what it runs only. A claim that was committed unseen, and whose message was
    lost before the worker could ask again, is otherwise kept alive for as long as the worker runs anything: nobody runs
    the task, and nobody takes it back. ``ITaskStore.renew`` needs a third parameter for it, the ids."""
    rows = query(
        "UPDATE tasks SET lease_until = ? WHERE worker = ? AND state = 'running'"
        " AND id IN (SELECT value FROM json_each(?)) RETURNING id",
        *(until, worker, json.dumps(sorted(held))),
    )
    return frozenset(task_id for (task_id,) in rows)


REPAIRS: Sequence[tuple[type, str, Callable[..., Any]]] = (
    (outbox.Outbox, "publish", publish),
    (actions.Actions, "watch", watch),
)


@contextmanager
def repaired() -> Iterator[None]:
    """taskd as it will be."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in REPAIRS]
    for owner, name, repair in REPAIRS:
        setattr(owner, name, repair)
    try:
        yield
    finally:
        for owner, name, original in before:
            setattr(owner, name, original)
