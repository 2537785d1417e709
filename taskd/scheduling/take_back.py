"""Puts tasks that were taken back from a worker or the broker into the backlog, and publishes their change."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from taskd.events.publisher import Publisher
from taskd.model.states import State
from taskd.model.tasks import Task
from taskd.scheduling.routes import Routes

LOGGED_IDS = 20
"""Ids that one line of the log names at most."""


class TakeBack:
    """What several duties do with the tasks that they took back."""

    _log = Logger()

    def __init__(self, publisher: Publisher, routes: Routes) -> None:
        self._publisher = publisher
        self._routes = routes

    def taken(self, tasks: Sequence[Task], why: str) -> None:
        """These tasks are waiting again, or have failed for good. One with an error has lost an attempt."""
        if not tasks:
            return
        self._log.info(
            "{count} tasks taken back, {spent} attempts spent, {why}: {ids}",
            count=len(tasks),
            spent=sum(task.error is not None for task in tasks),
            why=why,
            ids=[task.id for task in tasks[:LOGGED_IDS]],
        )
        self._publisher.publish(tasks)
        self._routes.add_backlog([(task.route, task.user_id) for task in tasks if task.state is State.WAITING])
