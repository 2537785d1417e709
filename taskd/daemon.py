"""What both daemons share: adapters chosen by the settings, one clear line when a daemon cannot start, and signals."""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorCore
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd.config import Settings
from taskd.model.errors import SchemaTooNew, SettingsError, TaskdError
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore

_log = Logger(namespace="taskd")

_EXPECTED = (SettingsError, SchemaTooNew, TaskdError, OSError, CannotListenError)

DATABASE = "taskd.sqlite3"
"""The file of the embedded database in the data folder."""


def open_store(settings: Settings, reactor: Any) -> IStore:
    """The store that the settings name, not started yet. Raises SettingsError."""
    if settings.postgres is not None:
        from taskd.store.postgres.store import PostgresStore

        return PostgresStore(settings.postgres.dsn(), reactor)
    from taskd.store.sqlite.database import open_sqlite
    from taskd.store.sqlite.store import SqliteStore

    return SqliteStore(open_sqlite(settings.data / DATABASE, reactor), reactor)


def open_broker(settings: Settings, reactor: Any, queues: Sequence[str]) -> IBroker:
    """The broker that the settings name, not started yet. ``queues`` are the names of work queues."""
    if settings.rabbitmq is not None:
        from taskd.broker.rabbitmq.broker import RabbitBroker

        return RabbitBroker(settings.rabbitmq, reactor, queues)
    from taskd.broker.memory import MemoryBroker

    return MemoryBroker(reactor)


def process_name() -> str:
    """A name that no other process has or had: host, process id and a random part."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def refuse(daemon: str, error: Exception) -> NoReturn:
    """End the process before the reactor runs: one line on standard error, exit status 1."""
    raise SystemExit(f"{daemon}: {error}")


def explain(error: BaseException | None) -> str:
    """One line that tells why a daemon cannot start or continue."""
    text = " ".join(str(error).split())
    return text if isinstance(error, _EXPECTED) and text else f"{type(error).__name__}: {text}"


def fail(reactor: IReactorCore, daemon: str, error: BaseException | None) -> None:
    """End the process while the reactor runs: one line on standard error, exit status 1."""
    print(f"{daemon}: {explain(error)}", file=sys.stderr, flush=True)
    if error is not None and not isinstance(error, _EXPECTED):
        _log.failure("a defect of taskd, please report it", Failure(error))
    # twistd exits with 0 whenever its reactor has run, so set the status at exit, when nothing is left to do
    atexit.register(_exit_1)
    reactor.stop()


def _exit_1() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def handle_signals(reactor: Any, hurry: Callable[[], None]) -> None:
    """Let SIGTERM and SIGINT stop the reactor, which drains the daemon; the exit status is 0.

    The second signal calls ``hurry``, and the third one ends the process at once. twistd's own handlers would make the
    process die of the first signal.
    """

    def stop(number: int, frame: Any) -> None:
        _log.info("{name}: stopping", name=signal.Signals(number).name)
        _handle(second)
        reactor.callFromThread(reactor.stop)

    def second(number: int, frame: Any) -> None:
        _log.info("{name} again: stopping without waiting", name=signal.Signals(number).name)
        _handle(signal.SIG_DFL)
        reactor.callFromThread(hurry)

    # twistd installs its handlers just before the reactor calls this
    reactor.callWhenRunning(_handle, stop)


def _handle(handler: Any) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, handler)
