"""Writes refused logins into the audit: not one row each, but one an account, source and minute, with their number."""

from __future__ import annotations

from collections import Counter

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from taskd.model.errors import TaskdError
from taskd.ports.accounts import NO_GUESS, Entry, IAccountStore

FLUSH_SECONDS = 60.0
"""How long a refusal waits at the most until it is in the audit, while the store can be reached."""

SOON_SECONDS = 2.0
"""The same when other servers should know of it."""

MAX_ROWS = 1_000
"""Rows a flush. Beyond them, refusals without a guess are counted without account and source, because they are so cheap
that they could fill the database. Guesses need no bound: each has cost a hash, and none is made while the store cannot
be reached."""

BATCH = 1_000
"""Rows that are stored at a time."""


class RefusalLog:
    """Collects refusals in memory and stores them. What cannot be stored is kept and tried again."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, store: IAccountStore, most: int = MAX_ROWS) -> None:
        self._clock = clock
        self._store = store
        self._most = most
        self._rows: Counter[Entry] = Counter()
        self._guesses: Counter[str] = Counter()
        """Guesses that the audit does not have yet, also those that are being stored, by account."""
        self._timer: IDelayedCall | None = None
        self._flushing: list[Deferred[None]] | None = None

    def add(self, entry: Entry) -> None:
        """Count a refusal, whose outcome is the code of the error. ``entry.number`` is without effect."""
        row = msgspec.structs.replace(entry, number=1)
        # without an account it is no guess, and has cost no hash
        guess = bool(entry.subject) and entry.outcome not in NO_GUESS
        if not guess and row not in self._rows and len(self._rows) >= self._most:
            row = Entry(entry.action, outcome=entry.outcome)
        self._rows[row] += 1
        if guess:
            self._guesses[entry.subject] += 1
        self._flush_in(FLUSH_SECONDS)

    def pending(self, subject: str) -> int:
        """Guesses at this account that were added and that the audit perhaps does not have yet."""
        return self._guesses[subject]

    def hurry(self) -> None:
        """Other servers should soon know of what was added."""
        if self._rows:
            self._flush_in(SOON_SECONDS)

    async def stop(self) -> None:
        """Store what waits. What cannot be stored now is lost, which the log says."""
        while self._flushing is not None:
            ended: Deferred[None] = Deferred()
            self._flushing.append(ended)
            await ended
        await self._flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._rows:
            self._log.warn("{number} refused logins are missing in the audit", number=self._rows.total())

    def _flush_in(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._clock.callLater(seconds, self._flush_now)
        elif self._timer.getTime() > self._clock.seconds() + seconds:
            self._timer.reset(seconds)

    def _flush_now(self) -> None:
        self._timer = None
        if self._flushing is not None:
            self._flush_in(SOON_SECONDS)
            return
        Deferred.fromCoroutine(self._flush()).addErrback(lambda f: self._log.failure("cannot store refusals", f))

    async def _flush(self) -> None:
        """Store all rows that wait now, a batch after the other."""
        rows, self._rows = self._rows, Counter()
        self._flushing = []
        try:
            while rows:
                batch = [msgspec.structs.replace(row, number=rows[row]) for row in list(rows)[:BATCH]]
                await self._store.audit(batch)
                for entry in batch:
                    number = rows.pop(msgspec.structs.replace(entry, number=1))
                    if entry.outcome not in NO_GUESS:
                        self._guesses[entry.subject] -= number
                        if self._guesses[entry.subject] <= 0:
                            del self._guesses[entry.subject]
        except TaskdError as e:
            self._log.warn("refused logins are not in the audit yet: {error}", error=e.message)
        finally:
            self._rows.update(rows)
            waiting, self._flushing = self._flushing, None
            if self._rows:
                self._flush_in(FLUSH_SECONDS)
            for ended in waiting:
                ended.callback(None)
