"""Password hashes: their cost, and work that takes as long for every wrong password.

The work of bcrypt doubles with each round of its cost. So the hashes of the costs r, r + 1, ..., s - 1 take together
what one of cost s takes less one of cost r: with them, a check of any hash takes as long as one of cost s.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import bcrypt
from twisted.logger import Logger

from taskd.model.limits import MAX_PASSWORD_BYTES
from taskd.ports.store import IStore

READ_SECONDS = timedelta(hours=1)
"""How long the highest cost that the store has named is used."""

_COST = re.compile(r"\$2[abxy]\$(\d\d)\$")
_NO_SALT = "." * 22

_log = Logger()


def rounds_of(stored: str) -> int | None:
    """The cost of a stored hash, None for what is no hash of bcrypt."""
    found = _COST.match(stored)
    return None if found is None else int(found[1])


def make_hash(secret: bytes, rounds: int) -> str:
    """A new hash. Runs in a thread."""
    return bcrypt.hashpw(secret, bcrypt.gensalt(rounds)).decode()


def matches(secret: bytes, stored: str, rounds: int) -> bool:
    """Whether this is the password of the stored hash, which is empty if there is none. Runs in a thread. A wrong
    password takes as long as a hash of this cost, whatever is stored, unless that costs more."""
    done: int | None = None
    if stored:
        try:
            # an overlong password cannot be right
            if bcrypt.checkpw(secret[:MAX_PASSWORD_BYTES], stored.encode()) and len(secret) <= MAX_PASSWORD_BYTES:
                return True
            done = rounds_of(stored)
        except BaseException as e:  # a corrupt hash raises pyo3's PanicException, which is no Exception
            _log.error("a stored password hash cannot be read: {error}", error=repr(e))
    for cost in [rounds] if done is None else range(done, rounds):
        bcrypt.hashpw(b"", f"$2b${cost:02}${_NO_SALT}".encode())
    return False


class HighestCost:
    """The highest cost of a hash: that of new ones, or of older ones from before the setting was lowered."""

    def __init__(self, store: IStore, rounds: int) -> None:
        self._store = store
        self._rounds = self._highest = rounds
        self._read_at: datetime | None = None

    async def get(self) -> int:
        """The highest cost. Reads it from the store at first and every READ_SECONDS; who asks meanwhile gets the one
        from before. Raises Unavailable."""
        before, now = self._read_at, self._store.now()
        if before is None or abs(now - before) >= READ_SECONDS:
            self._read_at = now
            try:
                self._highest = max(self._rounds, await self._store.highest_rounds())
            except BaseException:
                self._read_at = before
                raise
        return self._highest
