"""Private PostgreSQL, RabbitMQ and nginx: on free ports, in a temporary folder. They end with this process.

Tests may stop, kill and break them; the machine's own services are never touched. This module works without pytest. A
test calls ``require("postgres", "rabbitmq")``, then ``postgres()`` and ``rabbitmq()``, which start on first use. The
whole run shares these two, so use a new database and a new queue name.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import unittest
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg2

from tests import programs
from tests.processes import Process, clean_environment, dispose_all, eventually, free_port

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
skipped: set[str] = set()
"""Names of the services for which ``require`` has skipped a test so far."""

_numbers = itertools.count(1)


def require(*names: str) -> None:
    """Skip the calling test if one of these services is not installed; fail it if TASKD_REQUIRE_SERVICES is 1."""
    absent = [name for name in programs.missing() if name in names]
    if not absent:
        return
    reason = f"needs {', '.join(absent)}: {programs.how_to_get(absent)}"
    if os.environ.get("TASKD_REQUIRE_SERVICES") == "1":
        raise AssertionError(f"TASKD_REQUIRE_SERVICES=1, but this test {reason}")
    skipped.update(absent)
    raise unittest.SkipTest(reason)


@functools.cache
def postgres() -> Postgres:
    """The PostgreSQL of this run, started on first use. It runs without fsync, because no test cuts its power."""
    server = Postgres(fsync=False)
    server.start()
    return server


@functools.cache
def rabbitmq() -> RabbitMQ:
    """The RabbitMQ of this run, started on first use."""
    server = RabbitMQ()
    server.start()
    return server


def unique(prefix: str) -> str:
    """A name that no other test of this run uses."""
    return f"{prefix}_{next(_numbers)}"


class Postgres:
    """A PostgreSQL server with one superuser, without a password."""

    host = HOST
    user = "taskd"
    password = ""
    database = "taskd"

    def __init__(self, fsync: bool = True, settings: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._settings = {
            "port": str(self.port),
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "log_min_messages": "fatal",
        }
        if not fsync:
            self._settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        self._settings |= settings or {}
        self._folder = _folder("postgres")
        self._data = self._folder / "data"
        self._standby = self._folder / "standby"
        self._process: Process | None = None

    def start(self) -> None:
        """Start it, or start it again with the same data, and wait until it accepts connections."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start it without waiting until it accepts connections."""
        if not self._data.exists():
            self._initialise()
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        self._process = Process(
            [programs.postgres("postgres"), "-D", self._data, *options],
            self._folder / "log",
            env=clean_environment(),
            cwd=self._folder,
            prefix=programs.CHROOT,
            user=programs.service_user(),
            # PostgreSQL's immediate stop, because a killed postmaster leaves its shared memory behind
            death_signal=signal.SIGQUIT,
        )

    def wait_ready(self) -> None:
        """Wait until it accepts connections, and create its database the first time."""
        process = _alive(self._process)

        def answers() -> bool:
            _check_running("PostgreSQL", process)
            try:
                self.connect("postgres").close()
            except psycopg2.OperationalError:
                return False
            return True

        eventually(answers, 60, "PostgreSQL accepts connections")
        if not self.query("SELECT FROM pg_database WHERE datname = %s", (self.database,), "postgres"):
            self.create_database(self.database)

    def stop(self, mode: str = "fast") -> None:
        """Stop it: ``fast`` is an orderly stop that ends all sessions, ``immediate`` is a crash."""
        if self._process is not None:
            self._process.stop({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode], 60)
            self._process = None

    def keep_standby(self) -> None:
        """Keep a copy of the present data, for :meth:`fail_over`. Restarts the server."""
        self.stop()
        shutil.rmtree(self._standby, ignore_errors=True)
        shutil.copytree(self._data, self._standby)
        if (user := programs.service_user()) is not None:
            for path in (self._standby, *self._standby.rglob("*")):
                shutil.chown(path, *user)
        self.start()

    def fail_over(self) -> None:
        """Crash, and go on with that copy on a new timeline, as a standby does that is promoted and has received
        nothing since."""
        self.stop("immediate")
        shutil.rmtree(self._data)
        self._standby.rename(self._data)
        (self._data / "standby.signal").touch()
        self.start()
        self.query("SELECT pg_promote()", database="postgres")

    def create_database(self, name: str | None = None) -> str:
        """Create an empty database and return its name. The default is a name that no other test uses."""
        name = name or unique("test")
        self.query(f'CREATE DATABASE "{name}"', database="postgres")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, and end the sessions that still use it."""
        self.query(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)', database="postgres")

    def connect(self, database: str | None = None) -> Any:
        """A blocking psycopg2 connection in autocommit mode."""
        connection = psycopg2.connect(**self.dsn(database), connect_timeout=5)
        connection.autocommit = True
        return connection

    def query(self, sql: str, parameters: Sequence[Any] = (), database: str | None = None) -> list[Any]:
        """Run one statement on a new connection. Returns its rows, an empty list if it has none."""
        connection = self.connect(database)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql, parameters or None)
                return cursor.fetchall() if cursor.description is not None else []
        finally:
            connection.close()

    def dsn(self, database: str | None = None) -> dict[str, Any]:
        """Keywords for psycopg2."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": database or self.database,
        }

    def env(self, database: str | None = None) -> dict[str, str]:
        """The environment variables that make taskd use it."""
        return {
            "POSTGRES_HOST": self.host,
            "POSTGRES_PORT": str(self.port),
            "POSTGRES_USER": self.user,
            "POSTGRES_PASSWORD": self.password,
            "POSTGRES_DB": database or self.database,
        }

    def _initialise(self) -> None:
        user = programs.service_user()
        if user is not None:
            shutil.chown(self._folder, *user)
        # every system has the C locale, and it orders and compares text in the same way everywhere
        initdb = Process(
            [
                programs.postgres("initdb"),
                f"--pgdata={self._data}",
                f"--username={self.user}",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            self._folder / "log",
            env=clean_environment(),
            cwd=self._folder,
            prefix=programs.CHROOT,
            user=user,
        )
        if initdb.wait(120) != 0:
            raise RuntimeError(f"initdb failed:\n{initdb.output()[-4000:]}")


class RabbitMQ:
    """A private RabbitMQ node with a private Erlang port mapper. User and password are ``guest``."""

    host = HOST
    user = "guest"
    password = "guest"

    def __init__(self, configuration: str = "") -> None:
        self.port = free_port()
        self._folder = _folder("rabbitmq")
        self._mapper_port = free_port()
        for name, text in {"plugins": "[].", "rabbitmq.conf": configuration, "env.conf": ""}.items():
            (self._folder / name).write_text(text)
        self._env = clean_environment(
            HOME=str(self._folder),
            ERL_EPMD_PORT=str(self._mapper_port),
            ERL_EPMD_ADDRESS=HOST,
            # with this the start script execs the Erlang machine, so its process id is the one of the node
            RABBITMQ_ALLOW_INPUT="1",
            RABBITMQ_SERVER_START_ARGS="-noinput -kernel inet_dist_use_interface {127,0,0,1}",
            RABBITMQ_NODENAME=f"taskd{self.port}@localhost",
            RABBITMQ_NODE_IP_ADDRESS=HOST,
            RABBITMQ_NODE_PORT=str(self.port),
            RABBITMQ_DIST_PORT=str(free_port()),
            RABBITMQ_MNESIA_BASE=str(self._folder / "data"),
            RABBITMQ_LOG_BASE=str(self._folder / "log"),
            RABBITMQ_PID_FILE=str(self._folder / "pid"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(self._folder / "plugins"),
            RABBITMQ_CONFIG_FILE=str(self._folder / "rabbitmq.conf"),
            RABBITMQ_CONFIG_FILES=str(self._folder / "conf.d"),
            RABBITMQ_CONF_ENV_FILE=str(self._folder / "env.conf"),
        )
        self._mapper: Process | None = None
        self._process: Process | None = None

    def start(self) -> None:
        """Start it, or start it again with the same data, and wait until it accepts connections."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start it without waiting until it accepts connections."""
        if self._mapper is None:
            log = self._folder / "epmd.log"
            self._mapper = Process([programs.epmd()], log, env=self._env, prefix=programs.CHROOT)
        self._process = Process(
            [programs.rabbitmq("rabbitmq-server")],
            self._folder / "output",
            env=self._env,
            cwd=self._folder,
            prefix=programs.CHROOT,
        )

    def wait_ready(self) -> None:
        """Wait until it accepts connections."""
        process = _alive(self._process)

        def answers() -> bool:
            _check_running("RabbitMQ", process)
            try:
                with socket.create_connection((self.host, self.port), 5) as connection:
                    connection.sendall(b"AMQP\x00\x00\x09\x01")
                    # the first byte of a method frame: Connection.Start
                    return connection.recv(1) == b"\x01"
            except OSError:
                return False

        eventually(answers, 120, "RabbitMQ accepts connections")

    def stop(self) -> None:
        """An orderly stop."""
        if self._process is not None:
            self._process.stop(signal.SIGTERM, 60)
            self._process = None

    def kill(self) -> None:
        """``kill -9``; ``start`` brings it back over the same data."""
        if self._process is not None:
            self._process.stop(signal.SIGKILL, 10)
            self._process = None

    def ctl(self, *arguments: str) -> str:
        """The output of ``rabbitmqctl`` without headers. Raises RuntimeError with its error output."""
        headers = ["--no-table-headers"] if arguments[0].startswith("list_") else []
        done = subprocess.run(
            [*programs.CHROOT, programs.rabbitmq("rabbitmqctl"), "--quiet", *headers, *arguments],
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode != 0:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    @contextlib.contextmanager
    def setting(self, **values: int) -> Iterator[None]:
        """Other values for parameters of the node during the block. They hold for channels that are opened then."""
        get, put = "element(2, application:get_env(rabbit, {})).", "application:set_env(rabbit, {}, {})."
        before = {name: self.ctl("eval", get.format(name)).strip() for name in values}
        try:
            for name, value in values.items():
                self.ctl("eval", put.format(name, value))
            yield
        finally:
            for name, was in before.items():
                self.ctl("eval", put.format(name, was))

    def env(self, queue: str | None = None) -> dict[str, str]:
        """The environment variables that make taskd use it."""
        found = {
            "RABBITMQ_HOST": self.host,
            "RABBITMQ_PORT": str(self.port),
            "RABBITMQ_USER": self.user,
            "RABBITMQ_PASSWORD": self.password,
        }
        return found | ({"RABBITMQ_QUEUE": queue} if queue else {})


class Nginx:
    """nginx with deploy/nginx.conf, which balances TCP connections over servers on this machine. It connects to them
    from ``address``, and tells them the addresses of its clients; without one, it sends no PROXY headers."""

    host = HOST

    def __init__(self, ports: Sequence[int], address: str | None = None) -> None:
        self.port = free_port()
        self._folder = _folder("nginx")
        self._process: Process | None = None
        text = render_nginx((ROOT / "deploy" / "nginx.conf").read_text(), self.port, ports)
        headers = "proxy_protocol on;"
        assert text.count(headers) == 1
        text = text.replace(headers, "" if address is None else f"{headers} proxy_bind {address};")
        modules = [f"load_module {module};" for module in programs.nginx_modules()]
        lines = [*modules, f"pid {self._folder}/pid;", "daemon off;", text]
        (self._folder / "nginx.conf").write_text("\n".join(lines))

    def start(self) -> None:
        """Start it and wait until it listens."""
        folder = str(self._folder)
        self._process = Process(
            [programs.nginx(), "-p", folder, "-e", f"{folder}/error", "-c", f"{folder}/nginx.conf"],
            self._folder / "output",
            # on SIGTERM the master ends its workers
            death_signal=signal.SIGTERM,
        )
        process = self._process

        def listens() -> bool:
            _check_running("nginx", process)
            with socket.socket() as probe:
                return probe.connect_ex((HOST, self.port)) == 0

        eventually(listens, 20, "nginx listens")

    def stop(self) -> None:
        """Stop it, which cuts all its connections."""
        if self._process is not None:
            self._process.stop(signal.SIGTERM, 20)
            self._process = None


def render_nginx(template: str, port: int, servers: Sequence[int]) -> str:
    """deploy/nginx.conf with another port to listen on and with these servers. Raises RuntimeError."""
    text, listens = re.subn(r"listen \d+", f"listen {HOST}:{port}", template)
    pattern = re.compile(r"^( *)server [\w.-]+:\d+(.*;)\n", re.MULTILINE)
    own = pattern.findall(text)
    if listens != 1 or not own:
        raise RuntimeError("deploy/nginx.conf must have one listen line, and its servers as 'server HOST:PORT ...;'")
    indent, options = own[0]
    replacement = iter(["".join(f"{indent}server {HOST}:{server}{options}\n" for server in servers)])
    return pattern.sub(lambda _: next(replacement, ""), text)


@functools.cache
def _base_folder() -> Path:
    # /tmp is the same folder in the other system that TASKD_TEST_SERVICES may name
    base = Path(tempfile.mkdtemp(prefix="taskd-services-", dir="/tmp" if programs.CHROOT else None))
    # PostgreSQL runs as another user if this process is root's
    base.chmod(0o755)

    def remove() -> None:
        dispose_all()
        shutil.rmtree(base, ignore_errors=True)

    atexit.register(remove)
    return base


def _folder(name: str) -> Path:
    folder = _base_folder() / f"{name}-{next(_numbers)}"
    folder.mkdir()
    return folder


def _alive(process: Process | None) -> Process:
    if process is None:
        raise RuntimeError("not started")
    return process


def _check_running(name: str, process: Process) -> None:
    if process.returncode is not None:
        raise RuntimeError(f"{name} ended with {process.returncode}:\n{process.output()[-4000:]}")
