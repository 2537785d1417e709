"""The action overview: how much work there is by queue and kind."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorTime

from taskd.api.principal import Principal
from taskd.api.reply import Reply
from taskd.api.subscriptions import Subscriptions
from taskd.events.end_rates import EndRates
from taskd.ports.overview import Counted, Overview
from taskd.ports.store import IStore
from taskd.protocol import messages as m
from taskd.scheduling.pools import Pools

KEPT = 1.0
"""Seconds for which the counts of a user are kept: whoever asks again and again makes the database count once."""


class OverviewActions:
    """An operator or admin sees the tasks of all users, everybody else only the user's own. ``rates`` is what this
    server has heard of the ends of tasks."""

    def __init__(self, clock: IReactorTime, store: IStore, pools: Pools, rates: EndRates) -> None:
        self._clock = clock
        self._store = store
        self._pools = pools
        self._rates = rates
        self._kept: dict[int | None, tuple[float, Overview]] = {}

    async def overview(self, principal: Principal, subscriptions: Subscriptions, request: m.Nothing) -> Reply:
        user_id = None if principal.operator else principal.user_id
        async with subscriptions.large_reply:
            found = await self._counts(user_id)
            rates = self._rates.by_minute(user_id)
            return Reply(
                {
                    "status": "success",
                    "scope": "all" if principal.operator else "own",
                    "rate_seconds": round(self._rates.seconds, 1),
                    "routes": [self._view(counted, rates.get(counted.route, 0.0)) for counted in found.routes],
                    "more": found.more,
                }
            )

    async def _counts(self, user_id: int | None) -> Overview:
        oldest_kept = self._clock.seconds() - KEPT
        self._kept = {user: kept for user, kept in self._kept.items() if kept[0] > oldest_kept}
        if user_id in self._kept:
            return self._kept[user_id][1]
        began = self._clock.seconds()
        found = await self._store.count_tasks(user_id, self._pools.routes())
        self._kept[user_id] = began, found
        return found

    def _view(self, counted: Counted, rate: float) -> dict[str, Any]:
        route = counted.route
        serving = self._pools.serving(route)
        return {
            "queue": route.queue,
            "kind": route.kind,
            "waiting": counted.waiting,
            "delayed": counted.delayed,
            "queued": counted.queued,
            "running": counted.running,
            "slots": 0 if serving is None else serving.slots,
            "hung": 0 if serving is None else serving.hung,
            "rate": round(rate, 1),
            "oldest": None if counted.oldest is None else round(counted.oldest, 1),
            "more": sorted(counted.more),
        }
