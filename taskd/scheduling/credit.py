"""How many tasks one server may assign at their creation, without a turn."""

from __future__ import annotations

from collections.abc import Collection, Mapping

SHARE = 0.5
"""The part of a worker's room that a server uses without a turn. Nobody knows how many servers there are; two of them
share the room exactly."""

LEAST = 1.0
"""What a server may use at least of a worker that has room at all."""

SHORT = 0.5
"""Tasks that cost no more than this may use all the room: two servers that do so at the same time have assigned what
the worker ends in some tenths of a second."""


class Credit:
    """The room of each worker of a pool, as the last turn found it, and what this server has done to it since.

    A turn happens at the latest a second after some of the credit was used, and whatever it finds in flight counts. So
    servers can only exceed the room, by their number times the credit of one, if they all get new tasks within the same
    second of a pool that was idle before; with short tasks, by their number times the room. What has then to wait for
    longer than a second is given back, and goes through turns.
    """

    def __init__(self) -> None:
        self._room: dict[str, float] = {}
        self._reserve: dict[str, float] = {}
        self._unanswered: dict[str, float] = {}
        self._unseen: dict[str, float] = {}
        self.freed = 0.0
        """The costs of what has ended in this pool since the last turn began, by whomever it was assigned."""

    @property
    def room_left(self) -> bool:
        """Whether a turn may find room: it is not known, or there is some, or there is more than the last turn saw."""
        return not self._room or self.freed > 0 or max(self._room.values()) > 0

    def best(self, cost: float) -> tuple[str, float]:
        """The worker for which there is the most credit for a task of this cost, and how much: 0 or less if there is
        none."""
        found, most = "", 0.0
        for worker, room in self._room.items():
            left = room if cost <= SHORT else room - self._reserve[worker]
            if left > most:
                found, most = worker, left
        return found, most

    def take(self, worker: str, cost: float) -> None:
        """Use credit for a creation that is about to be sent to the store."""
        self._room[worker] -= cost
        for costs in (self._unanswered, self._unseen):
            costs[worker] = costs.get(worker, 0.0) + cost

    def answered(self, worker: str, cost: float) -> None:
        """The store has answered that creation: a turn that begins from now on sees it."""
        left = self._unanswered.pop(worker, 0.0) - cost
        if left > 0:
            self._unanswered[worker] = left

    def give(self, worker: str, cost: float) -> None:
        """What this server assigned to this worker is in flight no longer."""
        if worker in self._room:
            self._room[worker] += cost

    def eased(self) -> None:
        """Something has ended, or costs less now, and nobody knows what: a turn may find room."""
        self.freed = max(self.freed, LEAST)

    def turn_begins(self) -> None:
        """From now on ends may be too late for this turn, and so may creations that are not answered yet."""
        self._unseen = dict(self._unanswered)
        self.freed = 0.0

    def turn_ended(self, room: Mapping[str, float], workers: Collection[str]) -> None:
        """A turn has found this room. Of these workers there is credit now, of all others none."""
        self._room, self._reserve = {}, {}
        for worker, found in room.items():
            if worker in workers:
                self._reserve[worker] = max(0.0, min(found * (1 - SHARE), found - LEAST))
                self._room[worker] = found - self._unseen.get(worker, 0.0)

    def only(self, workers: Collection[str]) -> None:
        """All other workers get nothing more."""
        self._room = {worker: room for worker, room in self._room.items() if worker in workers}

    def forget(self) -> None:
        """Nobody knows how much room there is."""
        self._room.clear()
