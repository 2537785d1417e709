"""Actions about the server: hello, ping, health, kinds."""

from __future__ import annotations

from msgspec import structs

from taskd import __version__
from taskd.api.principal import Principal
from taskd.api.reply import SUCCESS, Reply
from taskd.api.subscriptions import Subscriptions
from taskd.health import HealthCheck
from taskd.protocol import limits
from taskd.protocol import messages as m
from taskd.protocol.actions import ACTIONS
from taskd.scheduling.liveness import Liveness
from taskd.scheduling.pools import Pools


class ServerActions:
    """``node`` is the name of this server's process."""

    def __init__(self, pools: Pools, liveness: Liveness, health: HealthCheck, node: str) -> None:
        self._pools = pools
        self._liveness = liveness
        self._health = health
        self._node = node

    async def hello(self, principal: Principal, subscriptions: Subscriptions, request: m.Nothing) -> Reply:
        # the name has the host and the process id, which are no business of strangers
        node = {"node": self._node.rpartition(":")[2]} if principal.user_id else {}
        return Reply(
            {
                "status": "success",
                "server": "taskd",
                "version": __version__,
                "protocol": limits.PROTOCOL_VERSION,
                **node,
                "queues": self._pools.queues,
                "actions": list(ACTIONS),
                "limits": {
                    "line_bytes": limits.MAX_LINE_BYTES,
                    "reply_bytes": limits.MAX_REPLY_BYTES,
                    "batch": limits.MAX_BATCH,
                    "page": limits.MAX_PAGE,
                    "log_lines": limits.MAX_LOG_LINES,
                    "wait_seconds": limits.MAX_WAIT_SECONDS,
                    "pipeline": limits.MAX_PIPELINE,
                },
            }
        )

    async def ping(self, principal: Principal, subscriptions: Subscriptions, request: m.Nothing) -> Reply:
        return SUCCESS

    async def health(self, principal: Principal, subscriptions: Subscriptions, request: m.Nothing) -> Reply:
        health = structs.asdict(await self._health.check())
        alive = self._liveness.alive
        stalled = {worker.info.name: worker.stalled for worker in alive if worker.stalled}
        return Reply({"status": "success", **health, "workers": len(alive), "stalled": stalled})

    async def kinds(self, principal: Principal, subscriptions: Subscriptions, request: m.Nothing) -> Reply:
        return Reply({"status": "success", "kinds": [kind._asdict() for kind in self._pools.kinds()]})
