"""The daemons of one test as real processes, with PostgreSQL and RabbitMQ."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import services
from tests.daemons import Daemon, LineClient, free_port

PASSWORD = "correct horse"
READY = "is ready on port"
TAKES_TASKS = "worker takes tasks"


BALANCER = "127.0.0.9"
"""From where the balancer connects to the servers."""


class Cluster:
    """Servers and workers with one database, and so with one installation. All of them get the variables in ``env``."""

    def __init__(
        self, folder: Path, postgres: services.Postgres, database: str, rabbitmq: services.RabbitMQ, **env: str
    ) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._postgres = postgres
        self._database = database
        self.rabbitmq = rabbitmq
        self.queue = services.unique("tasks")
        self.env = {
            **postgres.env(database),
            **rabbitmq.env(self.queue),
            "TASKD_BCRYPT_ROUNDS": "4",
            "TASKD_REGISTRATIONS_PER_HOUR": "0",
            "TASKD_LEASE": "3",
            "TASKD_TRUSTED_PROXIES": BALANCER,
            **env,
        }
        self.ports: list[int] = []
        self.daemons: list[Daemon] = []

    def launch_server(self, port: int | None = None, **env: str) -> Daemon:
        """Start a server on a free port, or on the port of a server that has ended."""
        if port is None:
            port = free_port()
            self.ports.append(port)
        return self._launch("taskserver", ["--listen", f"tcp:{port}:interface=127.0.0.1"], env)

    def launch_worker(self, *options: str, **env: str) -> Daemon:
        """Start a worker."""
        return self._launch("taskworker", list(options), env)

    def _launch(self, command: str, options: list[str], env: dict[str, str]) -> Daemon:
        folder = self._folder / f"{command}-{len(self.daemons)}"
        folder.mkdir()
        daemon = self._stack.enter_context(self._run(command, options, {**self.env, **env}, folder))
        self.daemons.append(daemon)
        return daemon

    def _run(self, command: str, options: Sequence[str], env: dict[str, str], folder: Path) -> Daemon:
        return Daemon.twistd(command, options, env, cwd=folder)

    def balancer(self) -> int:
        """Start nginx in front of the current servers. Returns its port."""
        nginx = services.Nginx(self.ports, BALANCER)
        nginx.start()
        self._stack.callback(nginx.stop)
        return nginx.port

    def rows(self, sql: str) -> list[Any]:
        """The rows of a query."""
        return self._postgres.query(sql, database=self._database)

    def close(self) -> None:
        """Kill the daemons, and stop nginx."""
        self._stack.close()


def user(port: int, name: str) -> LineClient:
    """A connection that is logged in as this user. Registers the user first if there is none."""
    client = LineClient(port)
    client.request("register", username=name, password=PASSWORD)
    reply = client.request("login", username=name, password=PASSWORD)
    assert reply["ok"], reply
    return client
