"""``twistd taskworker``: options and wiring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from taskd import __version__
from taskd.config import Settings, check_queue, read_settings, whole_number
from taskd.daemon import fail, handle_signals, open_broker, open_store, process_name, refuse
from taskd.model.errors import SettingsError, Unavailable
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.worker.wiring import Work, WorkOptions, open_worker, read_work
from taskd.worker.worker import Worker

DEFAULT_SLOTS = 100
GRACE = 30


class Options(WorkOptions):
    """Command line of the worker."""

    synopsis = "[options]"
    longdesc = (
        "Runs tasks that taskd servers hand out through RabbitMQ. POSTGRES_HOST, RABBITMQ_HOST and what belongs to them"
        " are set in the environment or in a .env file; .env.example lists all variables."
    )
    optParameters: ClassVar[list[list[Any]]] = [
        ["slots", "s", None, f"How many tasks run at a time on the reactor (default TASKD_SLOTS, {DEFAULT_SLOTS})."],
        ["grace", "g", GRACE, "Seconds that running tasks get to end when the worker is stopped."],
        ["env-file", "e", None, "Read settings from this file instead of ./.env."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["queues"] = []

    def opt_queue(self, name: str) -> None:
        """A queue to take tasks from; repeatable (default RABBITMQ_QUEUE and TASKD_QUEUES)."""
        self["queues"].append(name)

    opt_q = opt_queue


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
        Deferred.fromCoroutine(self._start()).addErrback(self._failed)

    async def _start(self) -> None:
        await self._broker.start()
        try:
            await self._store.start()
        except Unavailable:
            return  # stopped before the database could be reached
        self._started = True
        await self._worker.start()
        self._log.info("taskd {version} worker takes tasks: {what}", version=__version__, what=self._what)

    def _failed(self, failure: Failure) -> None:
        fail(self._reactor, "taskworker", failure.value)

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
        settings = read_settings(options["env-file"])
        if settings.embedded:
            raise SettingsError(
                "RABBITMQ_HOST is not set: the embedded server runs its own worker; set POSTGRES_HOST and"
                " RABBITMQ_HOST to run workers of their own"
            )
        grace = whole_number(options["grace"], "--grace", 0, 86_400) or 0
        queues = [check_queue(q, "--queue") for q in dict.fromkeys(options["queues"])] or settings.queues
        return _wired(reactor, settings, read_work(options, settings, DEFAULT_SLOTS), queues, grace)
    except SettingsError as e:
        refuse("taskworker", e)


def _wired(reactor: Any, settings: Settings, work: Work, queues: Sequence[str], grace: int) -> WorkerService:
    store, broker = open_store(settings, reactor), open_broker(settings, reactor, queues)
    worker = open_worker(reactor, store, broker, settings, work, queues, process_name())
    what = f"{worker.serves} from {', '.join(queues)}"
    return WorkerService(reactor, store, broker, worker, grace, what)
