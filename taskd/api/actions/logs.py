"""The action about logs: get_log."""

from __future__ import annotations

from functools import partial

from twisted.internet.interfaces import IReactorTime

from taskd.api.cursors import log_cursor, place_of
from taskd.api.log_follow import LogFollow
from taskd.api.log_pages import read_lines, read_tail, view_lines
from taskd.api.owners import Owners
from taskd.api.principal import Principal
from taskd.api.reply import Reply
from taskd.api.states import StateReader
from taskd.api.subscriptions import Subscriptions
from taskd.events.watch_hub import Hub
from taskd.model.errors import RateLimited
from taskd.ports.logs import LogPlace
from taskd.ports.store import IStore
from taskd.protocol import limits
from taskd.protocol import messages as m


class LogActions:
    """Pages of a log, and following it."""

    def __init__(self, clock: IReactorTime, store: IStore, states: StateReader, hub: Hub, owners: Owners) -> None:
        self._owners = owners
        self._clock = clock
        self._store = store
        self._states = states
        self._hub = hub

    async def get_log(self, principal: Principal, subscriptions: Subscriptions, request: m.GetLog) -> Reply:
        user_id = await self._owners.of_task(principal, request.task_id)
        after = None if request.cursor is None else place_of(request.cursor)
        follow = self._new_follow(user_id, subscriptions, request.task_id) if request.follow else None
        try:
            async with subscriptions.large_reply:
                await self._states.own_states(user_id, [request.task_id], "task_id")
                read = read_tail if request.tail else read_lines
                found = await read(self._store, request.task_id, after, request.limit, limits.MAX_PAGE_CHARS)
        except BaseException:
            if follow is not None:
                follow.close()
            raise
        last = found.lines[-1].place if found.lines else after
        fields = {
            "status": "success",
            "lines": view_lines(found.lines),
            "cursor": None if last is None else log_cursor(last),
            "more": found.more,
            "cut": found.cut,
        }
        if follow is None:
            return Reply(fields)
        return Reply(fields, after_sent=partial(_begin, subscriptions, follow, last))

    def _new_follow(self, user_id: int, subscriptions: Subscriptions, task_id: int) -> LogFollow:
        """A follow that has not begun. It counts from now on, and ends with the connection's other subscriptions."""
        if len({task_id, *(follow.task_id for follow in subscriptions.follows)}) > limits.MAX_FOLLOWS:
            text = f"this connection follows {limits.MAX_FOLLOWS} logs already; end some with unwatch, or use another"
            raise RateLimited(text, retry_after=1)
        follow = LogFollow(
            self._clock,
            self._store,
            self._states,
            self._hub,
            user_id,
            task_id,
            subscriptions.send,
            subscriptions.large_reply,
            subscriptions.follows.discard,
        )
        subscriptions.follows.add(follow)
        return follow


def _begin(subscriptions: Subscriptions, follow: LogFollow, after: LogPlace | None) -> None:
    """The reply is sent: this follow takes the place of an earlier one of the same task."""
    if not follow.closed:
        for other in tuple(subscriptions.follows):
            if other is not follow and other.task_id == follow.task_id:
                other.close()
        follow.begin(after)
