"""What both daemons share: their life from start to stop, adapters chosen by the settings, and signals."""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import socket
import sys
from typing import Any, ClassVar, NoReturn

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.config import Settings
from taskd.config.declarations import GRACE
from taskd.config.reading import DaemonOptions, read_option, read_settings
from taskd.model.errors import SchemaTooNew, SettingsError, TaskdError, Unavailable
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore

_EXPECTED = (SettingsError, SchemaTooNew, TaskdError, OSError, CannotListenError)

DATABASE = "taskd.sqlite3"
"""The file of the embedded database in the data folder."""


class Daemon(Service):
    """A daemon with its store and its broker. A subclass adds what the daemon does.

    SIGTERM and SIGINT stop the reactor, which drains the daemon; the exit status is 0. The second signal calls
    :meth:`hurry`, and the third one ends the process at once.
    """

    command: ClassVar[str]
    _log = Logger(namespace="taskd")

    def __init__(self, reactor: Any, settings: Settings, grace: float) -> None:
        self.store, self.broker = open_adapters(settings, reactor)
        self.reactor = reactor
        self.grace = grace
        self.began = False
        """Whether :meth:`begin` was called."""
        self._signalled = False

    @classmethod
    def from_options(cls, options: DaemonOptions) -> Daemon:
        """The daemon as twistd starts it. Ends the process with one line when a setting is wrong."""
        from twisted.internet import reactor

        try:
            settings = read_settings(options["env-file"], options=options)
            return cls(reactor, settings, read_option(options, GRACE))
        except SettingsError as e:
            cls.refuse(e)

    async def begin(self) -> None:
        """Start the work. The store and the broker have been started."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Finish the work; the store and the broker are stopped afterwards. Never fails."""
        raise NotImplementedError

    def hurry(self) -> None:
        """Wait no longer for what :meth:`drain` is waiting for."""
        raise NotImplementedError

    @classmethod
    def refuse(cls, error: object) -> NoReturn:
        """End the process before the reactor runs: one line on standard error, exit status 1."""
        raise SystemExit(f"{cls.command}: {error}")

    def fail(self, failure: Failure) -> None:
        """End the process while the reactor runs: one line on standard error, exit status 1."""
        expected = failure.check(*_EXPECTED)
        text = " ".join(str(failure.value).split())
        line = text if expected and text else f"{type(failure.value).__name__}: {text}"
        print(f"{self.command}: {line}", file=sys.stderr, flush=True)
        if not expected:
            self._log.failure("a defect of taskd, please report it", failure)
        # twistd exits with 0 whenever its reactor has run, so set the status at exit, when nothing is left to do
        atexit.register(_exit_1)
        self.reactor.stop()

    # -- IService

    def startService(self) -> None:
        super().startService()
        # twistd installs its own handlers just before the reactor calls this; they would end the process at once
        self.reactor.callWhenRunning(_handle_signals, self._on_signal)
        Deferred.fromCoroutine(self._start()).addErrback(self.fail)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        await self.broker.start()
        try:
            await self.store.start()
        except Unavailable:
            return  # stopped before the database could be reached
        self.began = True
        await self.begin()

    async def _stop(self) -> None:
        await self.drain()
        await self.broker.stop()
        await self.store.stop()
        self._log.info("{command} has stopped", command=self.command)

    def _on_signal(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if self._signalled:
            self._log.info("{name} again: stopping without waiting", name=name)
            _handle_signals(signal.SIG_DFL)
            self.reactor.callFromThread(self.hurry)
        else:
            self._signalled = True
            self._log.info("{name}: stopping", name=name)
            self.reactor.callFromThread(self.reactor.stop)


def open_adapters(settings: Settings, reactor: Any) -> tuple[IStore, IBroker]:
    """The store and the broker that the settings name, not started yet. Raises SettingsError."""
    if settings.postgres is not None and settings.rabbitmq is not None:
        from taskd.broker.rabbitmq.broker import RabbitBroker
        from taskd.store.postgres.store import PostgresStore

        store = PostgresStore(settings.postgres.dsn(), reactor)
        return store, RabbitBroker(settings.rabbitmq, reactor, settings.queues)
    from taskd.broker.memory import MemoryBroker
    from taskd.store.sqlite.database import open_sqlite
    from taskd.store.sqlite.store import SqliteStore

    return SqliteStore(open_sqlite(settings.data / DATABASE, reactor), reactor), MemoryBroker(reactor)


def process_name() -> str:
    """A name that no other process has or had: host, process id and a random part."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def _handle_signals(handler: Any) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, handler)


def _exit_1() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
