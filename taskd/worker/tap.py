"""``twistd taskworker``: options and wiring."""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from taskd import __version__
from taskd.config import Settings
from taskd.config.declarations import WORKER
from taskd.config.reading import DaemonOptions
from taskd.daemon import Daemon, process_name
from taskd.health import HealthCheck
from taskd.model.errors import SettingsError
from taskd.worker.executors.ending import leave_threads_behind
from taskd.worker.health import HealthSocket
from taskd.worker.wiring import open_worker


class Options(DaemonOptions, daemon=WORKER):
    """Command line of the worker."""

    longdesc = (
        "Runs tasks that taskd servers assign to it. Set POSTGRES_HOST and RABBITMQ_HOST, with their users and"
        " passwords, in the environment or in a .env file; .env.example lists all variables."
    )


class WorkerService(Daemon):
    """A worker with its adapters, from start to drained."""

    command = WORKER
    _log = Logger()

    def __init__(self, reactor: Any, settings: Settings, grace: float) -> None:
        if settings.embedded:
            raise SettingsError(
                "RABBITMQ_HOST is not set: the embedded server runs its own worker; set POSTGRES_HOST and"
                " RABBITMQ_HOST to run separate workers"
            )
        super().__init__(reactor, settings, grace)
        self._worker = open_worker(reactor, self.store, self.broker, settings, process_name)
        self._what = f"{self._worker.serves} from {', '.join(settings.queues)}"
        self._health: HealthSocket | None = None
        if settings.health is not None:
            self._health = HealthSocket(reactor, HealthCheck(reactor, self.store, self.broker), settings.health)

    def startService(self) -> None:
        super().startService()
        # while the daemon connects
        self.reactor.callWhenRunning(self._worker.watch)

    async def begin(self) -> None:
        if self._health is not None:
            self._health.start()
        await self._worker.start()
        self._log.info("taskd {version} worker takes tasks: {what}", version=__version__, what=self._what)

    async def drain(self) -> None:
        if self.began:
            await self._worker.drain(self.grace)
        else:
            self._worker.end_watch()
        if self._health is not None:
            await self._health.stop()

    def hurry(self) -> None:
        self._worker.hurry()

    def leave(self) -> None:
        leave_threads_behind(self.reactor)


makeService = WorkerService.from_options
