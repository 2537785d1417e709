"""``twistd taskworker``: options and wiring."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from taskd import __version__
from taskd.config.declarations import GRACE, WORKER
from taskd.config.options import DaemonOptions
from taskd.config.reading import read_option, read_settings
from taskd.daemon import fail, handle_signals, open_broker, open_store, process_name, refuse
from taskd.model.errors import SettingsError, Unavailable
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.worker.wiring import open_worker
from taskd.worker.worker import Worker


class Options(DaemonOptions, daemon=WORKER):
    """Command line of the worker."""

    longdesc = (
        "Runs tasks that taskd servers hand out through RabbitMQ. Set POSTGRES_HOST and RABBITMQ_HOST, with their users"
        " and passwords, in the environment or in a .env file; .env.example lists all variables."
    )


class WorkerService(Service):
    """A worker with its adapters, from start to drained."""

    _log = Logger()

    def __init__(self, reactor: Any, store: IStore, broker: IBroker, worker: Worker, grace: float, what: str) -> None:
        self._reactor = reactor
        self._store = store
        self._broker = broker
        self._worker = worker
        self._grace = grace
        self._what = what
        self._started = False

    def startService(self) -> None:
        super().startService()
        handle_signals(self._reactor, self._worker.hurry)
        started = Deferred.fromCoroutine(self._start())
        started.addErrback(lambda failure: fail(self._reactor, "taskworker", failure.value))

    async def _start(self) -> None:
        await self._broker.start()
        try:
            await self._store.start()
        except Unavailable:
            return  # stopped before the database could be reached
        self._started = True
        await self._worker.start()
        self._log.info("taskd {version} worker takes tasks: {what}", version=__version__, what=self._what)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._started:
            await self._worker.drain(self._grace)
        await self._broker.stop()
        await self._store.stop()
        self._log.info("the worker has stopped")


def makeService(options: Options) -> WorkerService:
    """The worker as a service. Ends the process with one line when a setting is wrong."""
    from twisted.internet import reactor

    try:
        settings = read_settings(options["env-file"], options=options)
        if settings.embedded:
            raise SettingsError(
                "RABBITMQ_HOST is not set: the embedded server runs its own worker; set POSTGRES_HOST and"
                " RABBITMQ_HOST to run separate workers"
            )
        store, broker = open_store(settings, reactor), open_broker(settings, reactor, settings.queues)
        worker = open_worker(reactor, store, broker, settings, process_name())
        what = f"{worker.serves} from {', '.join(settings.queues)}"
        return WorkerService(reactor, store, broker, worker, read_option(options, GRACE), what)
    except SettingsError as e:
        refuse("taskworker", e)
