"""What a daemon says of its health: the server in the action ``health``, the worker on its local socket.

The questions to the store and the broker are the same for both. An answer comes within :data:`CHECK_SECONDS`, whatever
the database does; only a daemon whose reactor is blocked does not answer.
"""

from __future__ import annotations

from msgspec import Struct, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from taskd.model.errors import Unavailable
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore

CHECK_SECONDS = 3.0
"""How long the database may take to answer. deploy/healthcheck.py waits a second longer."""


class Health(Struct):
    """Whether this process can do its work, and if not, why. ``store``: the database takes changes. ``schema`` is the
    version of its schema, None while that is not known. ``broker``: hints and events can be sent. ``consuming``:
    they can arrive."""

    healthy: bool
    reasons: list[str] = field(default_factory=list)
    store: bool = False
    schema: int | None = None
    broker: bool = False
    consuming: bool = False


class HealthCheck:
    """Asks this process's store and broker. Requests that come while the database is asked share its answer, so that a
    database that hangs gets one question."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, store: IStore, broker: IBroker) -> None:
        self._clock = clock
        self._store = store
        self._broker = broker
        self._asking = False
        self._waiting: list[Deferred[int | str]] = []

    async def check(self) -> Health:
        """The present health. Never fails."""
        answer = await self._ask_store()
        health = Health(
            False,
            store=isinstance(answer, int),
            schema=answer if isinstance(answer, int) else None,
            broker=self._broker.ready,
            consuming=self._broker.consuming,
        )
        if isinstance(answer, str):
            health.reasons.append(f"store: {answer}")
        if not health.broker:
            health.reasons.append("broker: hints and events cannot be sent")
        if not health.consuming:
            health.reasons.append("broker: hints and events cannot arrive")
        health.healthy = not health.reasons
        return health

    def _ask_store(self) -> Deferred[int | str]:
        """The version of the schema, or why the store is not well."""
        answer: Deferred[int | str] = Deferred()
        answer.addTimeout(CHECK_SECONDS, self._clock, lambda *_: f"no answer within {CHECK_SECONDS:g} s")
        self._waiting.append(answer)
        if not self._asking:
            self._asking = True
            Deferred.fromCoroutine(self._ask())
        return answer

    async def _ask(self) -> None:
        found: int | str
        try:
            found = await self._store.check_writable()
        except Unavailable as e:
            found = str(e)
        except Exception as e:
            self._log.failure("the store cannot be checked")
            found = f"a defect: {type(e).__name__}"
        self._asking = False
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.callback(found)  # a Deferred that has timed out ignores it
