"""How a store starts: it tries to open its database, with growing delays, until it can."""

from __future__ import annotations

import random

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from taskd.model.backoff import Backoff
from taskd.model.errors import SchemaTooOld, Unavailable
from taskd.store.refusals import closed

MIN_DELAY = 0.1
MAX_DELAY = 5.0

BACKOFF = Backoff(first=MIN_DELAY, longest=MAX_DELAY)
"""Seconds between attempts to reach the database."""


class Startable:
    """A store on the database ``name``. start() opens it, stop() closes it and ends a start() that still tries.

    It applies the migrations that the database lacks; with ``migrate`` False it raises SchemaTooOld instead."""

    log = Logger()
    installation = ""
    migrated = 0
    """How many migrations the start has applied."""

    def __init__(self, name: str, clock: IReactorTime, migrate: bool = True) -> None:
        self._name = name
        self._clock = clock
        self._may_migrate = migrate
        self._waiting: Deferred[None] | None = None
        self._stopped = False

    async def start(self) -> None:
        failures = 0
        while True:
            why = None if self._stopped else await self._open()
            if self._stopped:
                raise closed()
            if why is None:
                return
            if not failures:
                self.log.warn("{name}: cannot connect, retrying: {reason}", name=self._name, reason=why)
            failures += 1
            self._waiting = deferLater(self._clock, BACKOFF.delay(failures, random.random()))
            try:
                await self._waiting
            except CancelledError:
                if not self._stopped:
                    raise

    async def start_once(self) -> None:
        """Like start(), but raise Unavailable, with the reason, when the database cannot be reached."""
        why = await self._open()
        if why is not None:
            raise Unavailable(f"{self._name}: cannot connect: {why}")

    def _check_pending(self, pending: int) -> None:
        if pending and not self._may_migrate:
            raise SchemaTooOld(f"the database lacks {pending} migrations: run taskadmin migrate, or start a daemon")
        self.migrated = pending

    async def stop(self) -> None:
        self._stopped = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def _open(self) -> str | None:
        """Connect and migrate. Returns why that is not possible yet, None when it is done."""
        raise NotImplementedError
