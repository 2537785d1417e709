"""Publishes what was taken back from workers, and has it assigned again."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from taskd.events.publisher import Publisher
from taskd.model.tasks import Task
from taskd.scheduling.dispatcher import Dispatcher

LOGGED_IDS = 20
"""Ids that one line of the log names at most."""


class TakeBack:
    """What happens to tasks that were taken back."""

    _log = Logger()

    def __init__(self, publisher: Publisher, dispatcher: Dispatcher) -> None:
        self._publisher = publisher
        self._dispatcher = dispatcher

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
        self._dispatcher.changed(tasks)
