"""Routes: which kinds of which queues are handed out, by what the living workers serve.

A route is open while somebody serves it, and that of the default kind always: then it has a window and a dispatcher.
The tasks of any other route stay in the store and cost no memory, whatever kinds users name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from taskd.events.records import TaskChange
from taskd.model.errors import Unavailable
from taskd.model.tasks import DEFAULT_KIND, Route
from taskd.ports.store import IStore
from taskd.ports.workers import KindInfo, WorkerInfo
from taskd.scheduling.dispatcher import Dispatcher
from taskd.scheduling.window import Window, Windows


class Serving(NamedTuple):
    """Who serves a route: how many living workers, with how many slots for all that they serve, and how often they
    have a task tried that does not say so itself."""

    workers: int
    slots: int
    max_attempts: int


class ServedKind(NamedTuple):
    """A kind as all living workers together serve it.

    Where they differ the most permissive counts: the longest timeout in seconds (None is the longest of all) and the
    most attempts. The isolation and the first summary that says something are those of the first worker by name.
    """

    kind: str
    queues: Sequence[str]
    isolation: str
    timeout: float | None
    max_attempts: int
    summary: str
    workers: int
    slots: int


class Routes:
    """Opens and closes the routes of ``queues``. ``make`` makes the dispatcher of a route; a worker that was not seen
    for ``lease`` seconds is dead. While the store is away the workers last known count."""

    _log = Logger()

    def __init__(
        self,
        store: IStore,
        windows: Windows,
        queues: Sequence[str],
        lease: float,
        make: Callable[[Route, Window], Dispatcher],
    ) -> None:
        self.dispatchers: dict[Route, Dispatcher] = {}
        self.queues = tuple(queues)
        self._store = store
        self._windows = windows
        self._lease = lease
        self._make = make
        self._always = tuple(Route(queue, DEFAULT_KIND) for queue in queues)
        self._workers: Sequence[WorkerInfo] = ()
        self._serving: Mapping[Route, Serving] = {}
        self._ending: set[Deferred[None]] = set()
        self._asked = self._answered = 0
        self._news = self._looking = self._stopped = False
        for route in self._always:
            self._open(route)

    async def refresh(self) -> None:
        """Ask the store who lives, then open and close what has to be. Raises Unavailable."""
        self._asked += 1
        asked = self._asked
        workers = await self._store.list_workers(self._lease)
        if asked < self._answered or self._stopped:
            return  # somebody has asked later and was answered before
        self._answered = asked
        if workers != self._workers:
            self._workers = workers
            self._serving = _serving(workers)
            self._follow()

    def look(self) -> None:
        """There are news of a worker that has come or gone, or serves something else: refresh."""
        self._news = True
        if not self._looking:
            self._looking = True
            Deferred.fromCoroutine(self._look())

    async def _look(self) -> None:
        try:
            while self._news and not self._stopped:
                self._news = False
                await self.refresh()
        except Unavailable as e:
            self._log.debug("who lives is asked again in the next round: {why}", why=e.message)
        except Exception:
            self._log.failure("the living workers cannot be read")
        finally:
            self._looking = False

    def serving(self, route: Route) -> Serving | None:
        """Who serves a route, None when nobody does."""
        return self._serving.get(route)

    def kinds(self) -> list[ServedKind]:
        """What is served in the queues of this server, by name."""
        return list(_kinds(self._workers, self.queues))

    def wake(self, route: Route) -> None:
        """There may be something to hand over."""
        dispatcher = self.dispatchers.get(route)
        if dispatcher is not None:
            dispatcher.wake()

    def wake_all(self) -> None:
        """There may be something to hand over, or room for it."""
        for dispatcher in self.dispatchers.values():
            dispatcher.wake()

    def changed(self, changes: Sequence[TaskChange]) -> None:
        """Others changed these tasks: there may be room in a window, or more in a backlog."""
        self._windows.heard(changes)
        self.wake_all()

    def tick(self) -> None:
        """Have all dispatchers look into the store."""
        for dispatcher in self.dispatchers.values():
            dispatcher.tick()

    async def stop(self) -> None:
        """No more turns; done when those under way have ended."""
        self._stopped = True
        for dispatcher in self.dispatchers.values():
            await dispatcher.stop()
        for ending in tuple(self._ending):
            await ending

    def _follow(self) -> None:
        wanted = dict.fromkeys((*self._always, *(r for r in self._serving if r.queue in self.queues)))
        for route in [route for route in self.dispatchers if route not in wanted]:
            self._close(route)
        for route in wanted:
            if route not in self.dispatchers:
                self._log.info("route {route} is open: a worker serves it", route=route.name)
                self._open(route).tick()

    def _open(self, route: Route) -> Dispatcher:
        dispatcher = self.dispatchers[route] = self._make(route, self._windows.open(route))
        return dispatcher

    def _close(self, route: Route) -> None:
        """What is in the broker stays there, for the next worker that serves it; what waits, waits in the store."""
        self._log.info("route {route} is closed: no living worker serves it", route=route.name)
        self._windows.close(route)
        ending = self.dispatchers.pop(route).stop()
        if not ending.called:
            self._ending.add(ending)
            ending.addCallback(lambda _: self._ending.discard(ending))


def _serving(workers: Iterable[WorkerInfo]) -> Mapping[Route, Serving]:
    found: dict[Route, Serving] = {}
    for worker in workers:
        for queue in worker.queues:
            for info in worker.kinds:
                route = Route(queue, info.kind)
                count, slots, attempts = found.get(route, (0, 0, 0))
                found[route] = Serving(count + 1, slots + worker.slots, max(attempts, info.max_attempts))
    return found


def _kinds(workers: Iterable[WorkerInfo], queues: Sequence[str]) -> Iterator[ServedKind]:
    pairs = [(info, worker) for worker in workers for info in worker.kinds if set(worker.queues) & set(queues)]
    pairs.sort(key=lambda pair: (pair[0].kind, pair[1].name))
    for kind, same in groupby(pairs, key=lambda pair: pair[0].kind):
        infos: list[KindInfo] = []
        theirs: list[WorkerInfo] = []
        for info, worker in same:
            infos.append(info)
            theirs.append(worker)
        timeouts = [info.timeout for info in infos if info.timeout is not None]
        yield ServedKind(
            kind,
            [queue for queue in queues if any(queue in worker.queues for worker in theirs)],
            infos[0].isolation,
            max(timeouts) if len(timeouts) == len(infos) else None,
            max(info.max_attempts for info in infos),
            next((info.summary for info in infos if info.summary), ""),
            len(theirs),
            sum(worker.slots for worker in theirs),
        )
