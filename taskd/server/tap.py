"""``twistd taskserver``: options and wiring."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd import __version__
from taskd.api.accounts import Accounts
from taskd.api.hash_queue import HashPool, default_threads
from taskd.api.local_users import LocalUsers
from taskd.api.login_guard import open_guard
from taskd.config import Settings
from taskd.config.declarations import SERVER
from taskd.config.reading import DaemonOptions
from taskd.daemon import DATABASE, LOCK_FILE, Daemon, file_limit, process_name
from taskd.server.listening import open_endpoint
from taskd.server.task_server import TaskServer
from taskd.server.tls import Listeners
from taskd.server.user_names import UserNames
from taskd.worker.executors.ending import leave_threads_behind
from taskd.worker.executors.forks import own_files
from taskd.worker.wiring import open_worker
from taskd.worker.worker import Worker


class Options(DaemonOptions, daemon=SERVER):
    """Command line of the server."""

    longdesc = (
        "Serves tasks to many users. With nothing configured everything runs in this process: SQLite, broker and"
        " worker. With POSTGRES_HOST and RABBITMQ_HOST set, in the environment or in a .env file, tasks are stored in"
        " PostgreSQL and `twistd taskworker` runs them; .env.example lists all variables."
    )


class ServerService(Daemon):
    """A server with its adapters, and its own worker when it is embedded, from start to drained."""

    command = SERVER
    _log = Logger()

    def __init__(self, reactor: Any, settings: Settings, grace: float) -> None:
        super().__init__(reactor, settings, grace)
        store, broker = self.store, self.broker
        threads = settings.hash_threads or default_threads()
        self._hashes = HashPool(reactor, threads)
        self._guard = open_guard(
            reactor,
            store,
            self._hashes,
            threads,
            logins=settings.logins_per_minute,
            registrations=settings.registrations_per_hour,
            guesses=settings.guesses_per_hour,
        )
        self._names = UserNames(reactor) if settings.local_users else None
        local = LocalUsers(store, self._guard, self._names, settings.admins) if self._names is not None else None
        self._server = TaskServer(
            reactor,
            store,
            broker,
            Accounts(
                store,
                self._guard,
                settings.bcrypt_rounds,
                settings.session_days * 86_400,
                admins=settings.admins,
                idle=settings.session_idle_days * 86_400,
                registration=settings.registration,
                reveal_unknown=settings.reveal_unknown_users,
                local=local,
                admin_totp=settings.admin_totp,
            ),
            queues=settings.queues,
            lease=None if settings.embedded else settings.lease,
            node=process_name(),
            keep=settings.keep_days * 86_400,
            audit_days=settings.audit_days,
            quotas=settings.quota,
            limits=settings.connections,
            max_connections=max_connections(file_limit(), settings.connections.spare_files),
        )
        self._worker: Worker | None = None
        if settings.postgres is None or settings.rabbitmq is None:
            self._worker = open_worker(reactor, store, broker, settings, process_name)
            # a daemon that a handler forks must not keep the data folder locked
            own_files(settings.data / DATABASE, settings.data / LOCK_FILE)
            self._what = f"embedded: everything in this process, data in {settings.data}"
        else:
            self._what = f"PostgreSQL at {settings.postgres.host}, RabbitMQ at {settings.rabbitmq.host}"
        self._listen = settings.listen
        self._listeners = Listeners(reactor)
        self._limits = settings.connections
        self._ports: list[IListeningPort] = []
        self._deaf: Failure | None = None

    def privilegedStartService(self) -> None:
        # Before privileges are given up, and before anything has begun: who cannot listen must not start.
        for description in self._listen:
            try:
                listen = open_endpoint(
                    self.reactor, description, self._server.lines, self._limits, self._listeners.endpoint
                )
            except Exception as e:
                self.refuse(f"--listen {description}: {e or type(e).__name__}")
            # TCP and TLS listen at once; an endpoint of a plugin may take its time
            listen().addCallbacks(self._ports.append, self._cannot_listen)
            if self._deaf is not None:
                why = getattr(self._deaf.value, "socketError", self._deaf.value)
                self.refuse(f"cannot listen on {description}: {why}")

    def _cannot_listen(self, failure: Failure) -> None:
        self._deaf = failure
        if self.running:
            self.fail(failure)

    def startService(self) -> None:
        self._hashes.start()
        if self._names is not None:
            self._names.start()
        self.reactor.callWhenRunning(self._listeners.reload_on_hangup)
        super().startService()

    async def begin(self) -> None:
        if self._worker is not None:
            await self.store.reset_in_flight()
            await self._worker.start()
        self._server.start()
        where = ", ".join(str(getattr(a, "port", a)) for a in (port.getHost() for port in self._ports))
        self._log.info(
            "taskd {version} is ready on port {where}, {what}", version=__version__, where=where, what=self._what
        )
        if self._worker is not None:
            self._log.info("In another terminal: bin/taskclient (from a checkout) or taskclient (installed)")

    async def drain(self) -> None:
        for port in self._ports:
            maybeDeferred(port.stopListening).addErrback(self._cannot_finish)
        draining = [Deferred.fromCoroutine(self._server.drain())]
        if self._worker is not None and self.began:
            draining.append(Deferred.fromCoroutine(self._worker.drain(self.grace)))
        for each in draining:
            each.addErrback(self._cannot_finish)
        await DeferredList(draining)
        await self._guard.stop()
        # its threads would keep the process alive
        self._hashes.stop()

    def _cannot_finish(self, failure: Failure) -> None:
        self._log.failure("stopping the server", failure)

    def hurry(self) -> None:
        self._server.hurry()
        if self._worker is not None:
            self._worker.hurry()

    def leave(self) -> None:
        leave_threads_behind(self.reactor)


def max_connections(files: int, spare: int) -> int:
    """How many clients a process may have that may open so many files, of which so many are for other things."""
    return max(files - spare, files // 2)


makeService = ServerService.from_options
