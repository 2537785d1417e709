"""The settings of both daemons, as one frozen value.

``declarations`` names every variable and option once, ``reading`` makes a Settings of them, and of the command line
of a daemon, and ``docs`` writes ``.env.example`` and ``docs/settings.md``.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import msgspec

from taskd.model.quotas import MIB, Limits
from taskd.model.users import Registration


class Postgres(msgspec.Struct, frozen=True):
    """Where PostgreSQL is."""

    host: str
    port: int
    user: str
    password: str
    dbname: str
    sslmode: str | None = None
    """None: libpq's own default."""
    sslrootcert: str | None = None

    def dsn(self) -> dict[str, str | int]:
        """Keywords for psycopg2."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}


class RabbitMQ(msgspec.Struct, frozen=True):
    """Where RabbitMQ is."""

    host: str
    port: int
    user: str
    password: str
    vhost: str = "/"
    tls: bool = False
    cafile: Path | None = None
    """File or folder of the authorities to trust; None: those of the machine."""


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a server allows its clients. The help texts in ``declarations`` say what each value means."""

    login_seconds: float = 30.0
    handshake_seconds: float = 10.0
    idle_seconds: float = 0.0
    """0: no limit."""
    keepalive_seconds: int = 120
    strangers: int = 64
    """From one address."""
    user_connections: int = 256
    user_unread: int = 64 * MIB
    """Bytes."""
    unread: int = 256 * MIB
    """Bytes."""
    backlog: int = 1024
    spare_files: int = 200
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    allow_plaintext: bool = False


DEFAULT_LIMITS = ConnectionLimits()


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
    session_idle_days: int
    audit_days: int
    registration: Registration = Registration.OPEN
    reveal_unknown_users: bool = False
    local_users: bool = False
    admins: tuple[str, ...] = ()
    """The keys of usernames."""
    admin_totp: bool = False
    hash_threads: int | None = None
    """None: as many as the machine has cores, at most 4."""
    logins_per_minute: int = 60
    """0: no limit. The same for the next two."""
    guesses_per_hour: int = 100
    registrations_per_hour: int = 20
    connections: ConnectionLimits = DEFAULT_LIMITS
    quota: Limits = Limits()

    @property
    def embedded(self) -> bool:
        """Whether everything runs in this one process."""
        return self.postgres is None
