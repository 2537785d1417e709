"""Settings: environment, ``.env`` file and options become one frozen Settings.

The real environment wins over the ``.env`` file, an option wins over both. An empty value counts as not set, and so an
empty variable of the environment takes back one of the file. A malformed value raises SettingsError with one line that
names the variable.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from dotenv import dotenv_values
from dotenv.parser import parse_stream

from taskd.model.errors import SettingsError

T = TypeVar("T")

DEFAULT_LISTEN = "tcp:5000:interface=127.0.0.1"
MAX_QUEUE_BYTES = 180


class Postgres(msgspec.Struct, frozen=True):
    """Where PostgreSQL is."""

    host: str
    port: int
    user: str
    password: str
    database: str

    def dsn(self) -> dict[str, str | int]:
        """Keywords for psycopg2."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": self.database,
        }


class RabbitMQ(msgspec.Struct, frozen=True):
    """Where RabbitMQ is."""

    host: str
    port: int
    user: str
    password: str


class Settings(msgspec.Struct, frozen=True):
    """Everything that can be set. ``postgres`` and ``rabbitmq`` are both there (distributed) or neither (embedded)."""

    postgres: Postgres | None
    rabbitmq: RabbitMQ | None
    queues: tuple[str, ...]
    """The first is the default queue; servers accept tasks for all of them."""
    listen: tuple[str, ...]
    data: Path
    slots: int | None
    """Async tasks at a time in a worker; None leaves the choice to the daemon."""
    threads: int
    """Tasks at a time whose handlers run in threads."""
    processes: int | None
    """Tasks at a time whose handlers run in child processes, and programs at a time; None: as many as cores."""
    handlers: tuple[str, ...]
    """Python modules whose handlers a worker serves."""
    programs: Path | None
    """The TOML file of the programs that may be run; None: none may."""
    log_bytes: int
    """What of a task's log is kept."""
    keep_days: float
    """Days after which finished tasks are deleted; 0 keeps them for ever."""
    window: int
    """Tasks of one route in the broker at most; the rest waits in the store."""
    lease: float
    """Seconds a worker may be silent before its tasks are taken back."""
    bcrypt_rounds: int
    session_days: int

    @property
    def embedded(self) -> bool:
        """Whether everything runs in this one process."""
        return self.postgres is None


def read_settings(env_file: str | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the environment and the ``.env`` file (default ``./.env``, if it is there). Raises SettingsError."""
    values = _Values(_merged(env_file, environ))
    postgres = rabbitmq = None
    postgres_host, rabbitmq_host = values.text("POSTGRES_HOST", ""), values.text("RABBITMQ_HOST", "")
    if bool(postgres_host) != bool(rabbitmq_host):
        there, missing = ("POSTGRES_HOST", "RABBITMQ_HOST") if postgres_host else ("RABBITMQ_HOST", "POSTGRES_HOST")
        raise SettingsError(
            f"{there} is set but {missing} is not: set both to run distributed, or neither to run embedded"
        )
    port, queue = values.number("RABBITMQ_PORT", 5672, 1, 65535), values.queue_name("RABBITMQ_QUEUE", "tasks")
    postgres_port = values.number("POSTGRES_PORT", 5432, 1, 65535)
    if postgres_host:
        postgres = Postgres(
            postgres_host,
            postgres_port,
            values.text("POSTGRES_USER", "taskd"),
            values.secret("POSTGRES_PASSWORD", ""),
            values.text("POSTGRES_DB", "taskd"),
        )
        rabbitmq = RabbitMQ(
            rabbitmq_host,
            port,
            values.text("RABBITMQ_USER", "guest"),
            values.secret("RABBITMQ_PASSWORD", "guest"),
        )
    return Settings(
        postgres=postgres,
        rabbitmq=rabbitmq,
        queues=values.queue_names("TASKD_QUEUES", queue),
        listen=tuple(values.text("TASKD_LISTEN", DEFAULT_LISTEN).split()),
        data=Path(values.text("TASKD_DATA", "./taskd-data")),
        slots=values.number("TASKD_SLOTS", 0, 0, 100_000) or None,
        threads=values.number("TASKD_THREADS", 10, 1, 1000),
        processes=values.number("TASKD_PROCESSES", 0, 0, 1000) or None,
        handlers=values.modules("TASKD_HANDLERS"),
        programs=Path(programs) if (programs := values.text("TASKD_PROGRAMS", "")) else None,
        log_bytes=values.number("TASKD_LOG_KIB", 1024, 1, 1_048_576) * 1024,
        keep_days=values.days("TASKD_KEEP_DAYS", 0.0, 0.0, 36_500.0),
        window=values.number("TASKD_WINDOW", 2000, 1, 1_000_000),
        lease=values.seconds("TASKD_LEASE", 30.0, 1.0, 3600.0),
        bcrypt_rounds=values.number("TASKD_BCRYPT_ROUNDS", 12, 4, 18),
        session_days=values.number("TASKD_SESSION_DAYS", 30, 1, 3650),
    )


def _merged(env_file: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    found: Mapping[str, str | None] = {}
    try:
        text = Path(env_file or ".env").read_text("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        # ./.env need not be there, and a folder of that name is somebody's virtualenv
        if env_file is not None:
            raise SettingsError(f"--env-file {env_file}: there is no such file") from None
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise SettingsError(f"{env_file or '.env'}: cannot be read: {why}") from None
    else:
        for line in parse_stream(io.StringIO(text)):
            if line.error or (line.key is not None and line.value is None):
                # the line itself may hold a password
                raise SettingsError(f"{env_file or '.env'}, line {line.original.line}: expected NAME=value")
        found = dotenv_values(stream=io.StringIO(text))
    return {k: v for k, v in found.items() if v is not None} | dict(environ)


class _Values:
    """Typed reading of variables; an empty one counts as not set."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def text(self, name: str, default: str) -> str:
        value = self._values.get(name, "").strip() or default
        if not value.isprintable():
            raise SettingsError(f"{name} contains a control character")
        return value

    def secret(self, name: str, default: str) -> str:
        """A password: its spaces count."""
        value = self._values.get(name, "") or default
        if not value.isprintable():
            raise SettingsError(f"{name} contains a control character")
        return value

    def number(self, name: str, default: int, low: int, high: int) -> int:
        return self._bounded(name, default, low, high, _digits, "a whole number")

    def seconds(self, name: str, default: float, low: float, high: float) -> float:
        return self._bounded(name, default, low, high, float, "a number of seconds")

    def days(self, name: str, default: float, low: float, high: float) -> float:
        return self._bounded(name, default, low, high, float, "a number of days")

    def modules(self, name: str) -> tuple[str, ...]:
        """Names of Python modules, with commas or spaces between them."""
        found = self.text(name, "").replace(",", " ").split()
        return tuple(dict.fromkeys(check_module(module, name) for module in found))

    def _bounded(self, name: str, default: T, low: Any, high: Any, kind: Callable[[str], T], what: str) -> T:
        text = self.text(name, "")
        if not text:
            return default
        try:
            value = kind(text)
            if low <= value <= high:
                return value
        except ValueError:
            pass
        raise SettingsError(f"{name} must be {what} from {low} to {high}, not {text!r}")

    def queue_name(self, name: str, default: str) -> str:
        return check_queue(self.text(name, default), name)

    def queue_names(self, name: str, default: str) -> tuple[str, ...]:
        others = [check_queue(q.strip(), name) for q in self.text(name, "").split(",") if q.strip()]
        return tuple(dict.fromkeys([default, *others]))


def _digits(text: str) -> int:
    # int() itself would take 5_000 and the digits of every script
    if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 20:
        raise ValueError
    return int(text)


def check_queue(queue: str, name: str) -> str:
    """A queue's name, unchanged. Raises SettingsError unless RabbitMQ takes it and a kind can be added behind a ``#``
    (taskd.model.tasks.Route); ``name`` is who said it."""
    if not queue.isprintable() or not 1 <= len(queue.encode()) <= MAX_QUEUE_BYTES or queue.startswith("amq."):
        text = f"{name}: a queue's name has 1 to {MAX_QUEUE_BYTES} bytes and does not begin with amq., not {queue!r}"
        raise SettingsError(text)
    if "#" in queue:
        raise SettingsError(f"{name}: a queue's name has no # in it, not {queue!r}")
    return queue


def check_module(module: str, name: str) -> str:
    """The name of a Python module, unchanged. Raises SettingsError; ``name`` is who said it."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise SettingsError(f"{name}: {module!r} is not the name of a Python module, such as lab.handlers")
    return module


def whole_number(text: str | int | None, name: str, low: int, high: int) -> int | None:
    """An option's value, None when it was not given. Raises SettingsError with one line that names the option."""
    if text is None:
        return None
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise SettingsError(f"{name} must be a whole number from {low} to {high}, not {text!r}")
    return value
