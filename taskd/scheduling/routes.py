"""Which routes are open: for which kinds of which queues this server dispatches tasks.

A route is open while a living worker serves it; the routes of the default kind are always open. An open route has a
window and a dispatcher. The tasks of all other routes stay in the store and cost no memory, whatever kinds users name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from taskd.model.tasks import DEFAULT_KIND, Route
from taskd.ports.workers import WorkerStatus
from taskd.scheduling.dispatcher import Dispatcher
from taskd.scheduling.served_kinds import ServedKind, Serving, served_kinds, serving_by_route
from taskd.scheduling.window import Window, Windows


class Routes:
    """Opens and closes the routes of ``queues``, each with a window of ``limit`` tasks. ``make_dispatcher`` makes the
    dispatcher of a route."""

    _log = Logger()

    def __init__(
        self,
        limit: int,
        queues: Sequence[str],
        make_dispatcher: Callable[[Route, Window], Dispatcher],
    ) -> None:
        self.dispatchers: dict[Route, Dispatcher] = {}
        self.queues = tuple(queues)
        self.windows = Windows(limit, self.wake)
        self._make_dispatcher = make_dispatcher
        self._always_open = tuple(Route(queue, DEFAULT_KIND) for queue in queues)
        self._workers: Sequence[WorkerStatus] = ()
        self._seen: object = None
        self._serving: Mapping[Route, Serving] = {}
        self._stopping: set[Deferred[None]] = set()
        self._stopped = False
        for route in self._always_open:
            self._open(route)

    def serve(self, workers: Sequence[WorkerStatus]) -> None:
        """These are the living workers that take tasks: open and close routes."""
        seen = [(worker.info, worker.hung, worker.stalled) for worker in workers]
        if seen != self._seen and not self._stopped:
            self._seen, self._workers = seen, workers
            self._serving = serving_by_route(workers)
            self._open_and_close()

    def serving(self, route: Route) -> Serving | None:
        """Who serves a route, None if no living worker does."""
        return self._serving.get(route)

    def kinds(self) -> list[ServedKind]:
        """The kinds that living workers serve in the queues of this server, by name."""
        return list(served_kinds(self._workers, self.queues))

    def add_backlog(self, waiting: Sequence[tuple[Route, int]]) -> None:
        """Tasks of these (route, user id) pairs have joined the backlog."""
        for route, user_id in waiting:
            self.windows.mark_backlogged(route, user_id)
        for route in dict.fromkeys(route for route, _ in waiting):
            self.wake(route)

    def wake(self, route: Route) -> None:
        """There may be something to dispatch."""
        dispatcher = self.dispatchers.get(route)
        if dispatcher is not None:
            dispatcher.wake()

    def tick(self) -> None:
        """Let all dispatchers look into the store."""
        for dispatcher in self.dispatchers.values():
            dispatcher.tick()

    async def stop(self) -> None:
        """Start no more turns; done when those under way have ended."""
        self._stopped = True
        for dispatcher in self.dispatchers.values():
            await dispatcher.stop()
        for stopping in tuple(self._stopping):
            await stopping

    def _open_and_close(self) -> None:
        wanted = dict.fromkeys((*self._always_open, *(r for r in self._serving if r.queue in self.queues)))
        for route in [route for route in self.dispatchers if route not in wanted]:
            self._close(route)
        for route in wanted:
            if route not in self.dispatchers:
                self._log.info("route {route} is open: a worker serves it", route=route.name)
                self._open(route).tick()

    def _open(self, route: Route) -> Dispatcher:
        dispatcher = self.dispatchers[route] = self._make_dispatcher(route, self.windows.open(route))
        return dispatcher

    def _close(self, route: Route) -> None:
        """Its messages stay in the broker and its waiting tasks in the store, until a worker serves it again."""
        self._log.info("route {route} is closed: no living worker serves it", route=route.name)
        self.windows.close(route)
        stopping = self.dispatchers.pop(route).stop()
        if not stopping.called:
            self._stopping.add(stopping)
            stopping.addCallback(self._stopped_dispatcher, stopping)

    def _stopped_dispatcher(self, _: None, stopping: Deferred[None]) -> None:
        self._stopping.discard(stopping)
