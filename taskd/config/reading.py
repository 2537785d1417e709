"""Settings from the environment, a ``.env`` file and the command line.

The environment wins over the ``.env`` file, and an option wins over both. An empty variable counts as not set; so an
empty variable of the environment removes one of the file.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from twisted.python import usage

from taskd.config import ConnectionLimits, Postgres, RabbitMQ, Settings
from taskd.config import declarations as d
from taskd.model.errors import SettingsError
from taskd.model.quotas import MIB, Limits

AMQP_PORT, AMQPS_PORT = 5672, 5671

NO_OPTIONS: Mapping[str, Any] = {}


class DaemonOptions(usage.Options):
    """Options of one daemon; the values are texts that :func:`read_option` checks.

    A repeatable option is a list, and absent when it was not given.
    """

    synopsis = "[options]"
    optParameters: ClassVar[list[list[Any]]]

    def __init_subclass__(cls, daemon: str) -> None:
        cls.optParameters = []
        for option, text in d.options(daemon).items():
            if option.repeatable:
                # Twisted takes two names of one function as synonyms
                collect = _collector(option.name, text)
                for name in filter(None, (option.name, option.short)):
                    setattr(cls, f"opt_{name}", collect)
            else:
                cls.optParameters.append([option.name, option.short or None, option.default, text])


def _collector(name: str, text: str) -> Callable[[Any, str], None]:
    def collect(self: Any, value: str) -> None:
        self.setdefault(name, []).append(value)

    collect.__doc__ = text
    return collect


def read_settings(
    env_file: str | None = None,
    environ: Mapping[str, str] = os.environ,
    options: Mapping[str, Any] = NO_OPTIONS,
) -> Settings:
    """Read all settings; ``options`` are those of a daemon.

    ``env_file`` must exist; without it ``./.env`` is read if it exists. Raises SettingsError.
    """
    variables = _variables(env_file, environ)

    def value(setting: d.Setting[d.T]) -> d.T:
        text = variables.get(setting.name) or ""
        text = (text if setting.secret else text.strip()) or setting.default
        if not text.isprintable():
            raise SettingsError(f"{setting.name} contains a control character")
        found = setting.format.read(setting.name, text)
        # A malformed variable is refused even if an option overrides it
        return (read_option(options, setting.option) if setting.option is not None else None) or found

    postgres = rabbitmq = None
    postgres_host, rabbitmq_host = value(d.POSTGRES_HOST), value(d.RABBITMQ_HOST)
    if bool(postgres_host) != bool(rabbitmq_host):
        present, missing = ("POSTGRES_HOST", "RABBITMQ_HOST") if postgres_host else ("RABBITMQ_HOST", "POSTGRES_HOST")
        raise SettingsError(
            f"{present} is set but {missing} is not: set both to run distributed, or neither to run embedded"
        )
    postgres_port, rabbitmq_port = value(d.POSTGRES_PORT), value(d.RABBITMQ_PORT)
    sslmode, sslrootcert = value(d.POSTGRES_SSLMODE), value(d.POSTGRES_SSLROOTCERT)
    if sslrootcert is None and sslmode in ("verify-ca", "verify-full"):
        raise SettingsError(
            f"POSTGRES_SSLMODE={sslmode} needs POSTGRES_SSLROOTCERT, a PEM file of the authorities to trust, such as"
            " /etc/ssl/certs/ca-certificates.crt"
        )
    rabbitmq_tls, rabbitmq_cafile = value(d.RABBITMQ_TLS), value(d.RABBITMQ_CAFILE)
    if rabbitmq_cafile is not None and not rabbitmq_tls:
        raise SettingsError("RABBITMQ_CAFILE is set but RABBITMQ_TLS is not: set RABBITMQ_TLS=1 to use TLS")
    if postgres_host:
        postgres = Postgres(
            postgres_host,
            postgres_port,
            value(d.POSTGRES_USER),
            value(d.POSTGRES_PASSWORD),
            value(d.POSTGRES_DB),
            # whoever names an authority wants it checked
            sslmode or ("verify-full" if sslrootcert is not None else None),
            str(sslrootcert) if sslrootcert is not None else None,
        )
        rabbitmq = RabbitMQ(
            rabbitmq_host,
            rabbitmq_port or (AMQPS_PORT if rabbitmq_tls else AMQP_PORT),
            value(d.RABBITMQ_USER),
            value(d.RABBITMQ_PASSWORD),
            value(d.RABBITMQ_VHOST),
            rabbitmq_tls,
            rabbitmq_cafile,
        )
    queues = [value(d.RABBITMQ_QUEUE), *value(d.TASKD_QUEUES)]
    return Settings(
        postgres=postgres,
        rabbitmq=rabbitmq,
        installation=value(d.TASKD_INSTALLATION),
        queues=tuple(dict.fromkeys(read_option(options, d.QUEUE_OPTION) or queues)),
        listen=value(d.TASKD_LISTEN),
        data=value(d.TASKD_DATA),
        slots=value(d.TASKD_SLOTS) or int(d.TASKD_SLOTS.default),
        threads=value(d.TASKD_THREADS),
        processes=value(d.TASKD_PROCESSES) or None,
        handlers=value(d.TASKD_HANDLERS),
        programs=value(d.TASKD_PROGRAMS),
        log_bytes=value(d.TASKD_LOG_KIB) * 1024,
        keep_days=value(d.TASKD_KEEP_DAYS),
        window=value(d.TASKD_WINDOW),
        lease=value(d.TASKD_LEASE),
        stall=value(d.TASKD_STALL),
        health=value(d.TASKD_HEALTH),
        bcrypt_rounds=value(d.TASKD_BCRYPT_ROUNDS),
        session_days=value(d.TASKD_SESSION_DAYS),
        session_idle_days=value(d.TASKD_SESSION_IDLE_DAYS),
        audit_days=value(d.TASKD_AUDIT_DAYS),
        admin_totp=value(d.TASKD_ADMIN_TOTP),
        registration=value(d.TASKD_REGISTRATION),
        reveal_unknown_users=value(d.TASKD_REVEAL_UNKNOWN_USERS),
        local_users=value(d.TASKD_LOCAL_USERS),
        admins=value(d.TASKD_ADMINS),
        hash_threads=value(d.TASKD_HASH_THREADS) or None,
        logins_per_minute=value(d.TASKD_LOGINS_PER_MINUTE),
        guesses_per_hour=value(d.TASKD_GUESSES_PER_HOUR),
        registrations_per_hour=value(d.TASKD_REGISTRATIONS_PER_HOUR),
        connections=ConnectionLimits(
            login_seconds=value(d.TASKD_LOGIN_SECONDS),
            handshake_seconds=value(d.TASKD_HANDSHAKE_SECONDS),
            idle_seconds=value(d.TASKD_IDLE_SECONDS),
            keepalive_seconds=value(d.TASKD_KEEPALIVE_SECONDS),
            strangers=value(d.TASKD_STRANGERS),
            user_connections=value(d.TASKD_USER_CONNECTIONS),
            user_unread=value(d.TASKD_USER_UNREAD_MIB) * MIB,
            unread=value(d.TASKD_UNREAD_MIB) * MIB,
            backlog=value(d.TASKD_BACKLOG),
            spare_files=value(d.TASKD_SPARE_FILES),
            trusted_proxies=value(d.TASKD_TRUSTED_PROXIES),
            allow_plaintext=value(d.TASKD_ALLOW_PLAINTEXT),
        ),
        quota=Limits(value(d.TASKD_QUOTA_OPEN), value(d.TASKD_QUOTA_DAILY), value(d.TASKD_QUOTA_MIB) * MIB),
    )


def read_option(options: Mapping[str, Any], option: d.Option) -> Any:
    """The value of one option: a tuple if it is repeatable, None if it was not given. Raises SettingsError."""
    given, name = options.get(option.name), f"--{option.name}"
    if given is None:
        return None
    if option.repeatable:
        return tuple(option.format.read(name, text) for text in given)
    return option.format.read(name, given)


def exposed_secrets(env_file: str | None = None) -> str | None:
    """A warning, in one line, if every user of this machine can read passwords in the file that :func:`read_settings`
    reads; None if not."""
    path = Path(env_file or ".env")
    try:
        readable = path.is_file() and path.stat().st_mode & stat.S_IROTH
        found = dotenv_values(path, encoding="utf-8-sig") if readable else {}
    except (OSError, ValueError):
        return None
    secrets = [s.name for group in d.GROUPS.values() for s in group if s.secret and found.get(s.name)]
    if not secrets:
        return None
    return f"{path}: every user of this machine can read {' and '.join(secrets)}; run: chmod 600 {path}"


def _variables(env_file: str | None, environ: Mapping[str, str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    path = env_file or ".env"
    try:
        text = Path(path).read_text("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        # ./.env is optional, and a folder of that name is usually a virtual environment
        if env_file is not None:
            raise SettingsError(f"--env-file {env_file}: there is no such file") from None
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise SettingsError(f"{path}: cannot be read: {why}") from None
    else:
        for line in parse_stream(io.StringIO(text)):
            if line.error or (line.key is not None and line.value is None):
                # Do not show the line: it may contain a password
                raise SettingsError(f"{path}, line {line.original.line}: expected NAME=value")
        found = dotenv_values(stream=io.StringIO(text))
    return {**found, **environ}
