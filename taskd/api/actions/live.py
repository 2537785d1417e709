"""Actions about live changes: watch, unwatch, wait."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from twisted.internet.interfaces import IReactorTime

from taskd.api.own_tasks import own_listed, that_fit
from taskd.api.principal import Principal
from taskd.api.reply import SUCCESS, Reply
from taskd.api.shared_checks import check_count
from taskd.api.states import StateReader
from taskd.api.subscriptions import Subscriptions
from taskd.events.watch_hub import Hub, Wait, Watch
from taskd.model.errors import AuthRequired, RateLimited
from taskd.model.states import TERMINAL
from taskd.model.tasks import Task
from taskd.ports.store import IStore
from taskd.ports.tasks import TaskQuery
from taskd.protocol import limits
from taskd.protocol import messages as m
from taskd.protocol.views import view

RECHECK = 10.0
"""Seconds after which a wait looks into the store by itself: an event may be lost."""


class LiveActions:
    """Watches and waits register with the hub before they read the store, so that they miss no change in between."""

    def __init__(self, clock: IReactorTime, store: IStore, states: StateReader, hub: Hub) -> None:
        self._clock = clock
        self._store = store
        self._states = states
        self._hub = hub

    async def watch(self, principal: Principal, subscriptions: Subscriptions, request: m.Watch) -> Reply:
        user_id = principal.user_id
        subscriptions.unwatch()
        watch = subscriptions.watch = self._hub.watch(user_id, subscriptions.send)
        try:
            async with subscriptions.large_reply:
                page = await self._store.list_tasks(user_id, TaskQuery(request.limit))
                tasks = that_fit(page.tasks)
                now = self._store.now()
                fields = {"status": "success", "tasks": [view(task, now) for task in tasks]}
                return Reply(fields, after_sent=partial(_open, subscriptions, watch, tasks))
        except BaseException:
            watch.close()
            if subscriptions.watch is watch:
                subscriptions.notify_watch_lost()  # the watch before this one has ended, too
            raise

    async def unwatch(self, principal: Principal, subscriptions: Subscriptions, request: m.Nothing) -> Reply:
        subscriptions.cancel_subscriptions()
        return SUCCESS

    async def wait(self, principal: Principal, subscriptions: Subscriptions, request: m.Wait) -> Reply:
        check_count(request.task_ids, "task_ids")
        user_id, ids = principal.user_id, list(dict.fromkeys(request.task_ids))
        if len(ids) + sum(other.size for other in subscriptions.waits) > limits.MAX_WAITED:
            text = f"this connection waits for {limits.MAX_WAITED} tasks already; watch sends all changes at once"
            raise RateLimited(text, retry_after=1)
        deadline = self._clock.seconds() + request.timeout
        wait = self._hub.wait(ids)
        subscriptions.waits.add(wait)
        try:
            await self._note_ended(user_id, wait, ids)
            while True:
                while wait.remaining and deadline > self._clock.seconds() and not subscriptions.closed:
                    timer = self._clock.callLater(min(deadline - self._clock.seconds(), RECHECK), wait.wake)
                    await wait.changed
                    if timer.active():
                        timer.cancel()
                    wait.rearm()
                    if subscriptions.ended:
                        raise AuthRequired("the session has ended; log in again")
                    if wait.remaining:
                        await self._note_ended(user_id, wait, tuple(wait.remaining))
                async with subscriptions.large_reply:
                    now = self._store.now()
                    tasks = [task async for task in own_listed(self._store, user_id, ids, "task_ids")]
                    again = [task.id for task in tasks if task.state not in TERMINAL]
                    if not again or deadline <= self._clock.seconds() or subscriptions.closed:
                        views = [view(task, now) for task in tasks]
                        return Reply({"status": "success", "done": not again, "tasks": views})
                # the owner has retried these since they had ended
                wait.more(again)
                await self._note_ended(user_id, wait, again)
        finally:
            subscriptions.waits.discard(wait)
            wait.close()

    async def _note_ended(self, user_id: int, wait: Wait, ids: Sequence[int]) -> None:
        """Look which of these have ended: before the wait began, or without an event that arrived."""
        states = await self._states.own_states(user_id, ids, "task_ids")
        wait.ended([task_id for task_id, state in states.items() if state in TERMINAL])


def _open(subscriptions: Subscriptions, watch: Watch, snapshot: Sequence[Task]) -> None:
    """The reply with the snapshot is sent: send events from now on."""
    subscriptions.told_watching = True
    latest = subscriptions.watch
    if watch.closed and latest is not None and latest.closed:
        # A later watch, requested in the same pipeline, failed before this reply was sent, or the client did not read:
        # nothing is watched, although this reply says so.
        subscriptions.notify_watch_lost()
    watch.open(snapshot)
