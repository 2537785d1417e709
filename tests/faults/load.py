"""Clients that submit tasks until each is confirmed. They reconnect, and repeat requests that had no answer."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tests.cluster import PASSWORD
from tests.daemons import LineClient
from tests.processes import eventually

Spec = dict[str, Any]
Key = tuple[str, str]
"""A user's name and an idempotency key."""

IN_FLIGHT = 8
"""The number of unanswered requests that a client allows on its connection."""

BATCH = 5
"""The number of tasks in a request new_tasks."""

SILENCE = 30.0
"""Seconds after which a missing answer counts as a problem."""

TRY_AGAIN = ("unavailable", "draining", "rate_limited")
"""Error codes after which a client tries again. Any other error is a defect."""


class Confirmation(NamedTuple):
    """A confirmation that a client has read. ``at`` is in seconds since 1970."""

    user: str
    key: str
    task_id: int
    at: float


class Load:
    """Submits ``total`` tasks, or tasks until ``stop``, as ``clients`` users.

    ``spec(n)`` makes the n-th task; its key is added here. ``ports`` are those of the servers. ``rate`` is in tasks per
    second.
    """

    def __init__(
        self,
        ports: Sequence[int],
        spec: Callable[[int], Spec],
        *,
        total: int | None = None,
        rate: float | None = None,
        clients: int = 4,
    ) -> None:
        self.ports = ports
        self.confirmations: list[Confirmation] = []
        self.refusals: Counter[str] = Counter()
        self.problems: list[str] = []
        self.resent = 0
        self._spec = spec
        self._total = total
        self._rate = rate
        self._allowed: int | None = None
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._attempted: set[Key] = set()
        self._stopping = threading.Event()
        self._clients = [_Client(self, f"user{n}", BATCH if n % 2 else 1) for n in range(clients)]

    # -- for the scenario

    @property
    def attempted(self) -> int:
        """Tasks that were sent at least once."""
        return len(self._attempted)

    @property
    def confirmed(self) -> int:
        """Tasks that were confirmed at least once."""
        return len({(c.user, c.key) for c in list(self.confirmations)})

    @property
    def done(self) -> bool:
        """Whether every client has ended."""
        return not any(client.is_alive() for client in self._clients)

    def start(self) -> Load:
        """Start the clients."""
        self._began = time.monotonic()
        for client in self._clients:
            client.start()
        return self

    def allow(self, tasks: int) -> None:
        """Send at most this number of tasks in total from now on."""
        self._allowed = tasks

    def await_confirmed(self, tasks: int, timeout: float = 60.0) -> None:
        """Wait until this number of tasks is confirmed in total."""
        eventually(lambda: self.done or self.confirmed >= tasks, timeout, f"{tasks} tasks are confirmed")

    def confirmed_after(self, moment: float) -> float | None:
        """The time of the first confirmation after this time; None if there is none yet."""
        return next((c.at for c in list(self.confirmations) if c.at > moment), None)

    def stop(self) -> None:
        """Submit no new tasks, and wait until all submitted tasks are confirmed."""
        self._allowed = None
        if self._total is None:
            self._stopping.set()
        deadline = time.monotonic() + 2 * SILENCE
        for client in self._clients:
            if client.ident is not None:
                client.join(max(0.0, deadline - time.monotonic()))
        if not self.done:
            self.problems.append("clients still have unconfirmed tasks")
            self.abandon()

    def abandon(self) -> None:
        """End the clients without waiting for answers."""
        self._stopping.set()
        for client in self._clients:
            client.abandoned = True
            if client.ident is not None:
                client.join(SILENCE)

    # -- for the clients

    def next(self, user: str, most: int) -> list[Spec] | None:
        """The tasks of the next request, at most ``most``. None: not yet. Empty: there are no more."""
        with self._lock:
            sent = self.attempted
            if self._stopping.is_set() or (self._total is not None and sent >= self._total):
                return []
            limits = [most]
            if self._total is not None:
                limits.append(self._total - sent)
            if self._allowed is not None:
                limits.append(self._allowed - sent)
            if self._rate is not None:
                limits.append(int(self._rate * (time.monotonic() - self._began)) + 1 - sent)
            count = min(limits)
            if count <= 0:
                return None
            specs = [self._spec(sent + n) | {"key": f"key-{sent + n}"} for n in range(count)]
            self._attempted.update((user, spec["key"]) for spec in specs)
            return specs


class _Client(threading.Thread):
    """A user with one connection at a time."""

    def __init__(self, load: Load, user: str, batch: int) -> None:
        super().__init__(name=user, daemon=True)
        self.abandoned = False
        self._load = load
        self._user = user
        self._batch = batch
        self._ids = itertools.count(1)
        self._random = random.Random(user)
        self._waiting: deque[list[Spec]] = deque()
        self._unanswered: dict[int, list[Spec]] = {}
        self._more = True

    def run(self) -> None:
        """Submit until all tasks are confirmed."""
        try:
            while (self._more or self._waiting) and not self.abandoned:
                try:
                    with self._connect() as connection:
                        self._submit(connection)
                except TimeoutError as e:
                    self._load.problems.append(f"no answer within {SILENCE:g} s: {e}")
                except OSError:
                    time.sleep(0.05)
                # unanswered tasks may be stored or not; the key makes it harmless to send them again
                self._load.resent += len(self._unanswered)
                self._waiting.extendleft(self._unanswered.values())
                self._unanswered.clear()
        except Exception as e:
            self._load.problems.append(f"{self._user}: {type(e).__name__}: {e}")

    def _connect(self) -> LineClient:
        client = LineClient(self._random.choice(self._load.ports), timeout=SILENCE)
        try:
            for action, fine in (("register", ("success", "in_use")), ("login", ("logged_in",))):
                reply = client.request(action, username=self._user, password=PASSWORD)
                if reply["status"] not in fine:
                    self._refused(reply)
                    raise ConnectionError(reply["code"])
        except BaseException:
            client.close()
            raise
        return client

    def _submit(self, connection: LineClient) -> None:
        while not self.abandoned:
            while len(self._unanswered) < IN_FLIGHT and (specs := self._next()):
                self._send(connection, specs)
            if self._unanswered:
                self._read(connection)
            elif self._more or self._waiting:
                time.sleep(0.01)
            else:
                return

    def _next(self) -> list[Spec] | None:
        if self._waiting:
            return self._waiting.popleft()
        found = self._load.next(self._user, self._batch) if self._more else None
        self._more = found != [] and self._more
        return found

    def _send(self, connection: LineClient, specs: list[Spec]) -> None:
        number = next(self._ids)
        self._unanswered[number] = specs
        request = {"action": "new_task", **specs[0]} if self._batch == 1 else {"action": "new_tasks", "tasks": specs}
        connection.send_line(json.dumps(request | {"id": number}).encode())

    def _read(self, connection: LineClient) -> None:
        line = connection.read_line()
        if not line:
            raise ConnectionError("closed")
        reply = json.loads(line)
        specs = self._unanswered.pop(reply["id"])
        if reply["ok"]:
            ids = reply["task_ids"] if "task_ids" in reply else [reply["task_id"]]
            now = time.time()
            for spec, task_id in zip(specs, ids, strict=True):
                self._load.confirmations.append(Confirmation(self._user, spec["key"], task_id, now))
        else:
            self._refused(reply)
            self._waiting.append(specs)
            time.sleep(0.05)

    def _refused(self, reply: dict[str, Any]) -> None:
        self._load.refusals[reply["code"]] += 1
        if reply["code"] not in TRY_AGAIN:
            raise RuntimeError(f"refused: {reply}")
