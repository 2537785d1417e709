"""What both daemons share: their life from start to stop, adapters chosen by the settings, and signals."""

from __future__ import annotations

import atexit
import gc
import os
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.config import Settings
from taskd.config.declarations import GRACE, SECRETS
from taskd.config.reading import DaemonOptions, exposed_secrets, read_option, read_settings
from taskd.daemon_log import escape_log
from taskd.hardening import erase_variables, forbid_inspection
from taskd.model.errors import SchemaTooNew, SettingsError, TaskdError, Unavailable
from taskd.model.visible import visible
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore

if TYPE_CHECKING:
    from taskd.store.postgres.store import PostgresStore
    from taskd.store.sqlite.store import SqliteStore

_EXPECTED = (SettingsError, SchemaTooNew, TaskdError, OSError, CannotListenError)

DATABASE = "taskd.sqlite3"
"""The file of the embedded database in the data folder."""

LOCK_FILE = "lock"
"""The file in the data folder that a server holds locked while it runs."""

COLLECT_AFTER = 10_000
"""So many more objects than at the last collection start the garbage collector. Tasks on their way are thousands of
objects that end without it. With Python's own 700 it looked at most of them again and again, which took a tenth of a
daemon's time."""


MAX_FILES = 1_048_576
"""More open files than a daemon needs. Where the system allows any number, a program that closes all possible files at
its start would take minutes."""

BROKER_SECONDS = 1.0
"""How long a start waits for the broker. Without it hints are dropped, and the first tasks begin a little later."""


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
        self._is_process = False

    @classmethod
    def from_options(cls, options: DaemonOptions) -> Daemon:
        """The daemon as twistd starts it. Ends the process with one line when a setting is wrong.

        From now on other processes of this user, such as programs that run as tasks, cannot look into this one, and
        its environment has no passwords that they or handlers could find.
        """
        from twisted.internet import reactor

        use_monotonic_clock(reactor)
        forbid_inspection()
        escape_log()
        raise_file_limit()
        try:
            settings = read_settings(options["env-file"], options=options)
            # before the handlers are imported, and before anything else is started
            erase_variables(SECRETS)
            if warning := exposed_secrets(options["env-file"]):
                cls._log.warn("{warning}", warning=warning)
            daemon = cls(reactor, settings, read_option(options, GRACE))
        except SettingsError as e:
            cls.refuse(e)
        daemon._is_process = True
        return daemon

    async def begin(self) -> None:
        """Start the work. The store and the broker have been started."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Finish the work; the store and the broker are stopped afterwards, even if this fails."""
        raise NotImplementedError

    def hurry(self) -> None:
        """Wait no longer for what :meth:`drain` is waiting for."""
        raise NotImplementedError

    def leave(self) -> None:
        """Everything has stopped, and the process is about to end: let nothing keep it. Only called when the process is
        this daemon's own, as :meth:`from_options` makes it."""

    @classmethod
    def refuse(cls, error: object) -> NoReturn:
        """End the process before the reactor runs: one line on standard error, exit status 1."""
        raise SystemExit(f"{cls.command}: {visible(str(error))}")

    def fail(self, failure: Failure) -> None:
        """End the process while the reactor runs: one line on standard error, exit status 1. Only a log line if it ends
        already: then a start that did not come to its end is no failure."""
        if not self.running:
            self._log.failure("the start was not finished", failure)
            return
        expected = failure.check(*_EXPECTED)
        text = " ".join(str(failure.value).split())
        line = text if expected and text else f"{type(failure.value).__name__}: {text}"
        print(f"{self.command}: {visible(line)}", file=sys.stderr, flush=True)
        if not expected:
            self._log.failure("a defect of taskd, please report it", failure)
        # twistd exits with 0 whenever its reactor has run, so set the status at exit, when nothing is left to do
        atexit.register(_exit_1)
        self.reactor.stop()

    # -- IService

    def startService(self) -> None:
        super().startService()
        if self._is_process:
            # again: twistd may have changed to another user (--uid), which the kernel takes as a reason to allow it
            forbid_inspection()
        # twistd installs its own handlers just before the reactor calls this; they would end the process at once
        self.reactor.callWhenRunning(_handle_signals, self._on_signal)
        Deferred.fromCoroutine(self._start()).addErrback(self.fail)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        try:
            await self.store.start()
        except Unavailable:
            return  # stopped before the database could be reached
        # the database has the id of the installation, after which the broker names its queues
        await self.broker.start()
        deadline = self.reactor.seconds() + BROKER_SECONDS
        while self.running and not self.broker.ready and self.reactor.seconds() < deadline:
            await deferLater(self.reactor, 0.02)
        if self.running:
            self.began = True
            await self.begin()
            if self._is_process:
                spare_collections()

    async def _stop(self) -> None:
        await self._finish("the work", self.drain)
        await self._finish("the broker", self.broker.stop)
        await self._finish("the store", self.store.stop)
        self._log.info("{command} has stopped", command=self.command)
        if self._is_process:
            self.leave()

    async def _finish(self, what: str, stop: Callable[[], Awaitable[None]]) -> None:
        """Whatever fails here, the rest is stopped too."""
        try:
            await stop()
        except Exception:
            self._log.failure("stopping {what}", what=what)

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


def use_monotonic_clock(reactor: Any) -> None:
    """Let the reactor's timers follow a clock that nobody can set.

    Twisted's reactors read ``time.time`` (Twisted #2424): after the system's clock is set back an hour, nothing that
    was scheduled happens for an hour, and after it is set forward, all of it at once. A timer is an absolute time of
    this clock, so it is replaced before anything is scheduled. Timers of Twisted and of pika follow it as well: all of
    them ask the reactor. Its ``seconds()`` are no time of day from now on.
    """
    if reactor.getDelayedCalls():
        raise RuntimeError("something is scheduled already, by the reactor's old clock")
    reactor.seconds = time.monotonic


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows it: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def file_limit() -> int:
    """How many files this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_FILES if soft == resource.RLIM_INFINITY else soft


def spare_collections() -> None:
    """Let the garbage collector run seldom, and leave alone what exists now: modules and wiring live as long as the
    process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])


def open_adapters(settings: Settings, reactor: Any) -> tuple[IStore, IBroker]:
    """The store and the broker that the settings name, not started yet. Raises SettingsError."""
    store = open_store(settings, reactor)
    if settings.rabbitmq is not None:
        from taskd.broker.rabbitmq.broker import RabbitBroker

        return store, RabbitBroker(settings.rabbitmq, reactor, lambda: store.installation)
    from taskd.broker.memory import MemoryBroker

    return store, MemoryBroker(reactor)


def open_store(settings: Settings, reactor: Any, migrate: bool = True) -> PostgresStore | SqliteStore:
    """The store that the settings name, not started yet. With ``migrate`` False its start changes no schema. Raises
    SettingsError, DataInUse."""
    if settings.postgres is not None:
        from taskd.store.postgres.store import PostgresStore

        return PostgresStore(settings.postgres.dsn(), reactor, installation=settings.installation, migrate=migrate)
    from taskd.store.sqlite.database import open_sqlite
    from taskd.store.sqlite.store import SqliteStore
    from taskd.store.wall_clock import WallClock

    sqlite = open_sqlite(settings.data / DATABASE, reactor)
    return SqliteStore(sqlite, reactor, WallClock(), settings.installation, migrate)


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
