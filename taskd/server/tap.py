"""``twistd taskserver``: options and wiring."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd import __version__
from taskd.api.accounts import Accounts, HashPool
from taskd.config import Settings
from taskd.config.declarations import GRACE, SERVER
from taskd.config.options import DaemonOptions
from taskd.config.reading import read_option, read_settings
from taskd.daemon import fail, handle_signals, open_broker, open_store, process_name, refuse
from taskd.model.errors import SettingsError, Unavailable
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.server.task_server import TaskServer
from taskd.worker.wiring import open_worker
from taskd.worker.worker import Worker


class Options(DaemonOptions, daemon=SERVER):
    """Command line of the server."""

    longdesc = (
        "Serves tasks to many users. With nothing configured everything runs in this process: SQLite, broker and"
        " worker. With POSTGRES_HOST and RABBITMQ_HOST set, in the environment or in a .env file, tasks are stored in"
        " PostgreSQL and `twistd taskworker` runs them; .env.example lists all variables."
    )


class ServerService(Service):
    """A server with its adapters, and its own worker when it is embedded, from start to drained."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        listen: Sequence[str],
        store: IStore,
        broker: IBroker,
        hashes: HashPool,
        server: TaskServer,
        worker: Worker | None,
        grace: float,
        what: str,
    ) -> None:
        self._reactor = reactor
        self._listen = listen
        self._store = store
        self._broker = broker
        self._hashes = hashes
        self._server = server
        self._worker = worker
        self._grace = grace
        self._what = what
        self._ports: list[IListeningPort] = []
        self._started = False
        self._deaf: BaseException | None = None

    def privilegedStartService(self) -> None:
        # Before privileges are given up, and before anything has begun: who cannot listen must not start.
        for description in self._listen:
            try:
                endpoint = serverFromString(self._reactor, description)
            except Exception as e:
                refuse("taskserver", SettingsError(f"--listen {description}: {e or type(e).__name__}"))
            # TCP and TLS listen at once; an endpoint of a plugin may take its time
            endpoint.listen(self._server.lines).addCallbacks(self._ports.append, self._cannot_listen)
            if self._deaf is not None:
                why = getattr(self._deaf, "socketError", self._deaf)
                refuse("taskserver", SettingsError(f"cannot listen on {description}: {why}"))

    def _cannot_listen(self, failure: Failure) -> None:
        self._deaf = failure.value
        if self.running:
            fail(self._reactor, "taskserver", failure.value)

    def startService(self) -> None:
        super().startService()
        handle_signals(self._reactor, self._hurry)
        self._hashes.start()
        Deferred.fromCoroutine(self._start()).addErrback(self._failed)

    async def _start(self) -> None:
        await self._broker.start()
        try:
            await self._store.start()
        except Unavailable:
            return  # stopped before the database could be reached
        if self._worker is not None:
            await self._store.reset_in_flight()
            await self._worker.start()
        self._server.start()
        self._started = True
        where = ", ".join(str(getattr(a, "port", a)) for a in (port.getHost() for port in self._ports))
        self._log.info(
            "taskd {version} is ready on port {where}, {what}", version=__version__, where=where, what=self._what
        )
        if self._worker is not None:
            self._log.info("In another terminal: bin/taskclient (from a checkout) or taskclient (installed)")

    def _failed(self, failure: Failure) -> None:
        fail(self._reactor, "taskserver", failure.value)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def _hurry(self) -> None:
        self._server.hurry()
        if self._worker is not None:
            self._worker.hurry()

    async def _stop(self) -> None:
        for port in self._ports:
            port.stopListening()
        draining = [Deferred.fromCoroutine(self._server.drain())]
        if self._worker is not None and self._started:
            draining.append(Deferred.fromCoroutine(self._worker.drain(self._grace)))
        try:
            await gatherResults(draining)
            await self._broker.stop()
            await self._store.stop()
        finally:
            # its threads would keep the process alive
            self._hashes.stop()
        self._log.info("the server has stopped")


def makeService(options: Options) -> ServerService:
    """The server as a service. Ends the process with one line when a setting is wrong."""
    from twisted.internet import reactor

    try:
        settings = read_settings(options["env-file"], options=options)
        return _wired(reactor, settings, read_option(options, GRACE))
    except SettingsError as e:
        refuse("taskserver", e)


def _wired(reactor: Any, settings: Settings, grace: int) -> ServerService:
    store, broker = open_store(settings, reactor), open_broker(settings, reactor, settings.queues)
    hashes = HashPool(reactor)
    accounts = Accounts(store, hashes, settings.bcrypt_rounds, settings.session_days * 86_400)
    server = TaskServer(
        reactor,
        store,
        broker,
        accounts,
        queues=settings.queues,
        window=settings.window,
        lease=settings.lease,
        node=process_name(),
        new_id=lambda: str(uuid.uuid4()),
        keep=settings.keep_days * 86_400,
    )
    worker = None
    if settings.embedded:
        worker = open_worker(reactor, store, broker, settings, process_name())
        what = f"embedded: everything in this process, data in {settings.data}"
    else:
        assert settings.postgres is not None and settings.rabbitmq is not None
        what = f"PostgreSQL at {settings.postgres.host}, RabbitMQ at {settings.rabbitmq.host}"
    return ServerService(reactor, settings.listen, store, broker, hashes, server, worker, grace, what)
