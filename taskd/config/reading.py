"""Settings from the environment, a ``.env`` file and the command line.

The environment wins over the ``.env`` file, and an option wins over both. An empty variable counts as not set; so an
empty variable of the environment removes one of the file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from twisted.python import usage

from taskd.config import Postgres, RabbitMQ, Settings
from taskd.config import declarations as d
from taskd.model.errors import SettingsError
from taskd.model.quotas import MIB, Limits

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
    if postgres_host:
        postgres = Postgres(
            postgres_host,
            postgres_port,
            value(d.POSTGRES_USER),
            value(d.POSTGRES_PASSWORD),
            value(d.POSTGRES_DB),
        )
        rabbitmq = RabbitMQ(
            rabbitmq_host,
            rabbitmq_port,
            value(d.RABBITMQ_USER),
            value(d.RABBITMQ_PASSWORD),
            value(d.RABBITMQ_VHOST),
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
        admins=value(d.TASKD_ADMINS),
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
