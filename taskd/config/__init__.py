"""The settings of both daemons, as one frozen value.

``declarations`` names every variable and option once, ``reading`` makes a Settings of them, and of the command line
of a daemon, and ``docs`` writes ``.env.example`` and ``docs/settings.md``.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from taskd.model.quotas import Limits


class Postgres(msgspec.Struct, frozen=True):
    """Where PostgreSQL is."""

    host: str
    port: int
    user: str
    password: str
    dbname: str

    def dsn(self) -> dict[str, str | int]:
        """Keywords for psycopg2."""
        return msgspec.structs.asdict(self)


class RabbitMQ(msgspec.Struct, frozen=True):
    """Where RabbitMQ is."""

    host: str
    port: int
    user: str
    password: str
    vhost: str = "/"


class Settings(msgspec.Struct, frozen=True):
    """Everything that can be set; the help texts in ``declarations`` say what each value means.

    ``postgres`` and ``rabbitmq`` are both set (distributed) or both None (embedded).
    """

    postgres: Postgres | None
    rabbitmq: RabbitMQ | None
    installation: str | None
    """None: the one that the database has."""
    queues: tuple[str, ...]
    """The first is the default queue."""
    listen: tuple[str, ...]
    data: Path
    slots: int
    threads: int
    processes: int | None
    """None: as many as the machine has cores."""
    handlers: tuple[str, ...]
    programs: Path | None
    log_bytes: int
    keep_days: float
    window: int
    lease: float
    """Seconds."""
    stall: float
    """Seconds."""
    health: Path | None
    bcrypt_rounds: int
    session_days: int
    admins: tuple[str, ...] = ()
    """The keys of usernames."""
    quota: Limits = Limits()

    @property
    def embedded(self) -> bool:
        """Whether everything runs in this one process."""
        return self.postgres is None
