"""The clients of ``python -m bench.connections``, each kind in processes of its own.

``python -m bench.connection_clients ROLE JOB``, where the job is a JSON object of the arguments of the function of that
role. Each prints one line of JSON in the end. Those that go on until SIGTERM print it then.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from bench.accounts import token, username
from bench.harness import PASSWORD
from bench.swarm import Peer, Swarm, address
from taskd.client.admission import LEAST_PAUSE, SPREAD, WAIT_SECONDS
from taskd.daemon import raise_file_limit

IDLERS, ATTACKERS, NEWCOMERS, DEVICE, READERS = range(1, 6)
"""Groups of addresses."""

OPENING = 200
"""Connections that are being opened at a time, each from another address. They stay below the server's backlog."""

SMALL_BUFFER = 4096


class Member(Peer):
    """Logs in with the token of a session."""

    def __init__(self, swarm: Swarm, source: str, token: str) -> None:
        super().__init__(swarm, source)
        self._token = token

    def opened(self) -> None:
        self.send(action="login", token=self._token)


class Resumed(Member):
    """Logs in, and then is silent; with ``watch``, it watches but reads nothing."""

    def __init__(self, swarm: Swarm, source: str, token: str, logged_in: Callable[[], None], watch: bool) -> None:
        super().__init__(swarm, source, token)
        self._logged_in = logged_in
        self._watch = watch
        if watch:
            self.buffer = SMALL_BUFFER

    def received(self, message: dict[str, Any]) -> None:
        if not message.get("ok"):
            raise SystemExit(f"no login: {message}")
        if self._watch and message["status"] == "logged_in":
            self.send(action="watch")
            return
        if self._watch:
            self.stop_reading()
        self._logged_in()

    def lost(self) -> None:
        # one that does not read may be cut
        if not self._watch:
            raise SystemExit("the server has closed an idle connection")


def resume(
    port: int, group: int, connections: int, users: int, sessions: int, first_user: int = 0, watch: bool = False
) -> None:
    """Open connections of users, spread over their sessions, and keep them until SIGTERM."""
    swarm = Swarm(port)
    began, opened, done = time.monotonic(), 0, 0

    def open_more() -> None:
        nonlocal opened
        while opened < min(connections, done + OPENING):
            user, session = first_user + opened % users, opened // users % sessions
            peer = Resumed(swarm, address(group, opened % OPENING), token(user, session), logged_in, watch)
            opened += 1
            peer.open()

    def logged_in() -> None:
        nonlocal done
        done += 1
        open_more()

    open_more()
    swarm.run(lambda: done == connections)
    _report(seconds=time.monotonic() - began)
    swarm.run()


class Honest(Peer):
    """Logs in with its password as taskclient does: when it is put off, it waits and comes again. ``outcome`` is None
    until it has logged in, or was refused for good."""

    def __init__(self, swarm: Swarm, source: str, name: str) -> None:
        super().__init__(swarm, source)
        self._name = name
        self._left = WAIT_SECONDS
        self._waiting = False
        self._began = 0.0
        self.outcome: str | None = None
        self.seconds = 0.0
        self.pauses = 0

    def settled(self) -> bool:
        """Whether there is an outcome."""
        return self.outcome is not None

    def begin(self) -> None:
        """Log in."""
        self._began = time.monotonic()
        self.open()

    def opened(self) -> None:
        self.send(action="login", id=1, username=self._name, password=PASSWORD)

    def received(self, message: dict[str, Any]) -> None:
        if message.get("ok"):
            self._settle("ok")
            return
        pause = max(message.get("retry_after") or 0.0, LEAST_PAUSE)
        if message.get("code") != "rate_limited" or not message.get("retry_after") or pause > self._left:
            self._settle(f"{message['code']}: {message['message']}")
            return
        self._left -= pause
        self._waiting = True
        self.pauses += 1
        self.swarm.later(pause * random.uniform(1, 1 + SPREAD), self._again)

    def lost(self) -> None:
        if not self._waiting:
            self._settle("cut")

    def _again(self) -> None:
        self._waiting = False
        if self.connected:
            self.opened()
        else:
            self.open()

    def _settle(self, outcome: str) -> None:
        self.outcome = outcome
        self.seconds = time.monotonic() - self._began
        self.close()


def login(port: int, group: int, logins: int, users: int, addresses: int, limit: float) -> None:
    """Log in all at once. Reports, after ``limit`` seconds at most, the seconds of those that were let in, and the
    outcomes of the others."""
    swarm = Swarm(port)
    peers = [Honest(swarm, address(group, n % addresses), username(n % users)) for n in range(logins)]
    for peer in peers:
        peer.begin()
    end = time.monotonic() + limit
    waiting = list(peers)

    def done() -> bool:
        while waiting and waiting[-1].settled():
            waiting.pop()
        return not waiting or time.monotonic() > end

    swarm.run(done)
    _report(
        seconds=[peer.seconds for peer in peers if peer.outcome == "ok"],
        refused=Counter(peer.outcome or f"not within {limit:g} s" for peer in peers if peer.outcome != "ok"),
        pauses=sum(peer.pauses for peer in peers),
    )


def known(port: int, user: int, pause: float) -> None:
    """Log in again and again from one address, each time over a new connection ``pause`` seconds after the login
    before, until SIGTERM. The first login makes the address a known one, and does not count. Reports when each began,
    by the clock that the processes share, and its seconds."""
    swarm = Swarm(port)
    seconds: list[tuple[float, float]] = []
    refused: Counter[str] = Counter()
    while not swarm.stopped:
        peer = Honest(swarm, address(DEVICE, 0), username(user))
        began = time.monotonic()
        peer.begin()
        swarm.run(peer.settled)
        if peer.outcome == "ok":
            seconds.append((began, peer.seconds))
            if len(seconds) == 1:
                print("ready", flush=True)
        elif peer.outcome is not None:
            refused[peer.outcome] += 1
        swarm.run_for(pause)
    _report(seconds=seconds[1:], refused=refused)


class Attacker(Peer):
    """Guesses passwords of names that it makes up, or registers such names, as fast as it is answered."""

    def __init__(self, swarm: Swarm, source: str, registers: bool, tries: Counter[str]) -> None:
        super().__init__(swarm, source)
        self._registers = registers
        self._tries = tries

    def opened(self) -> None:
        name = f"name-{random.randrange(10**12)}"
        action = "register" if self._registers else "login"
        self.send(action=action, id=1, username=name, password=PASSWORD)

    def received(self, message: dict[str, Any]) -> None:
        if message.get("id") != 1:
            self._tries["turned_away"] += 1  # before it could try; the connection is about to be closed
            return
        if message["ok"]:
            outcome = "registered"
        elif message["status"] == "wrong_credentials":
            outcome = "wrong"
        else:
            outcome = "refused" if message["code"] == "rate_limited" else message["code"]
        self._tries[outcome] += 1
        self.opened()

    def lost(self) -> None:
        self._tries["cut"] += 1
        self.open()


def attack(port: int, addresses: int, connections: int, register_every: int, first: int = 0) -> None:
    """Attack over so many connections from each address until SIGTERM."""
    os.nice(19)  # attackers compute on machines of their own
    swarm = Swarm(port)
    tries: Counter[str] = Counter()
    opened = 0

    def open_some() -> None:
        nonlocal opened
        for _ in range(min(OPENING, addresses * connections - opened)):
            source = address(ATTACKERS, first + opened % addresses)
            Attacker(swarm, source, opened // addresses % register_every == register_every - 1, tries).open()
            opened += 1
        if opened < addresses * connections:
            swarm.later(0.05, open_some)
        else:
            print("ready", flush=True)

    open_some()
    swarm.run()
    _report(tries=tries)


class Feeder(Member):
    """Creates tasks, each when the one before is confirmed."""

    def __init__(self, swarm: Swarm, source: str, token: str, request: dict[str, Any], tasks: int) -> None:
        super().__init__(swarm, source, token)
        self._request = request
        self.left = tasks

    def received(self, message: dict[str, Any]) -> None:
        if not message.get("ok"):
            raise SystemExit(f"not created: {message}")
        if message["status"] == "task_created":
            self.left -= 1
        if self.left:
            self.send(action="new_task", **self._request)
        else:
            self.close()

    def lost(self) -> None:
        raise SystemExit("the server has closed a connection that creates tasks")


def feed(port: int, users: int, feeders: int, tasks: int, request: dict[str, Any]) -> None:
    """Let ``feeders`` connections create so many tasks each, spread over the users."""
    swarm = Swarm(port)
    peers = [Feeder(swarm, address(READERS, n), token(n % users, 0), request, tasks) for n in range(feeders)]
    for peer in peers:
        peer.open()
    swarm.run(lambda: not any(peer.left for peer in peers))
    _report(tasks=feeders * tasks)


ROLES: dict[str, Callable[..., None]] = {each.__name__: each for each in (resume, login, known, attack, feed)}


def _report(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    raise_file_limit()
    ROLES[sys.argv[1]](**json.loads(sys.argv[2]))
