"""The programs that a worker may run: a TOML file with one section for each, read when the worker starts.

A section ``[convert]`` serves the kind ``command:convert``::

    [convert]
    summary = "Scales a picture."
    path = "/usr/bin/convert"                 # absolute: PATH is not searched
    args = ["--", "{input}", "-resize", "{width:int}x{height:int}", "{output}"]
    env = { LANG = "C.UTF-8" }                # its whole environment, together with a PATH
    cwd = "/srv/pictures"                     # default: a new folder for each run, removed afterwards
    timeout = 600                             # seconds
    memory = "512M"                           # of address space, for each process
    processes = 8                             # at a time
    max_output = "10M"
    max_attempts = 3
    backoff = { first = 2, factor = 2, longest = 3600, jitter = 0.5 }

Only ``path`` is required. The arguments are a template: see :mod:`taskd.worker.program_arguments`. No shell reads
them, so a field cannot become several arguments or a different one. The program itself may still interpret an
argument: if ``path`` is a shell, keep fields out of its script and pass them after it (``-c``, script, ``sh``, field).
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from taskd.model.backoff import Backoff
from taskd.model.errors import BadRequest, SettingsError, quote
from taskd.model.limits import DEFAULT_ATTEMPTS, MAX_ATTEMPTS, MAX_TIMEOUT_SECONDS
from taskd.model.tasks import PROGRAM_PREFIX, check_kind
from taskd.worker.forkserver.messages import Program
from taskd.worker.handler import MAX_SUMMARY_CHARS, check_backoff
from taskd.worker.program_arguments import Template

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
DEFAULT_MAX_OUTPUT = 10 * 1024 * 1024
TEMPORARY = "temporary"

_KEYS = (
    "summary",
    "path",
    "args",
    "env",
    "cwd",
    "timeout",
    "memory",
    "processes",
    "max_output",
    "max_attempts",
    "backoff",
)
_SIZE = re.compile(r"(\d{1,15})([KMGT]?)(?:i?B)?")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Command:
    """One program and how to run it. Sizes are in bytes, ``timeout`` in seconds. ``cwd`` None is a new folder."""

    isolation = "program"

    def __init__(
        self,
        name: str,
        path: str,
        template: Template,
        *,
        summary: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float | None = None,
        memory: int | None = None,
        processes: int | None = None,
        max_output: int = DEFAULT_MAX_OUTPUT,
        max_attempts: int = DEFAULT_ATTEMPTS,
        backoff: Backoff | None = None,
    ) -> None:
        self.kind = PROGRAM_PREFIX + name
        self.path = path
        self.cwd = cwd
        self.timeout = timeout
        self.max_attempts = max_attempts
        self.backoff = backoff or Backoff()
        takes = ", ".join(template.fields)
        self.summary = (summary or f"Runs {os.path.basename(path)}" + (f" with {takes}" if takes else ""))[
            :MAX_SUMMARY_CHARS
        ]
        self._template = template
        self._env = {"PATH": DEFAULT_PATH, **(env or {})}
        self._memory = memory
        self._processes = processes
        self._max_output = max_output

    def arguments(self, payload: Mapping[str, Any]) -> list[str]:
        """The arguments after the path. Raises Reject if the payload does not fit."""
        return self._template.fill(payload)

    def program(self, arguments: Sequence[str], cwd: str) -> Program:
        """The order for the fork server."""
        return Program([self.path, *arguments], cwd, self._env, self._memory, self._processes, self._max_output)

    def __repr__(self) -> str:
        return f"<program of {self.kind!r}: {self.path}>"


def read_programs(file: str) -> list[Command]:
    """The programs of a TOML file. Raises SettingsError with one line that names the file, the section and the key."""
    # the standard library has it since Python 3.11; tomli is the same as a package
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        with open(file, "rb") as f:
            sections = toml.load(f)
    except OSError as e:
        raise SettingsError(f"{file}: {e.strerror or e}") from None
    except ValueError as e:
        # not TOML, or not UTF-8
        raise SettingsError(f"{file}: {' '.join(str(e).split())}") from None
    if not sections:
        raise SettingsError(f"{file}: there must be a section [NAME] for each program")
    return [_Section(file, name, table).read() for name, table in sections.items()]


class _Section:
    """Reads one section."""

    def __init__(self, file: str, name: str, table: Any) -> None:
        if not isinstance(table, dict):
            raise SettingsError(f"{file}: {name}: must be in the section of a program, [NAME]")
        self._where = f"{file}: [{name}]"
        self._name = name
        self._table = table

    def read(self) -> Command:
        """The program. Raises SettingsError."""
        try:
            check_kind(PROGRAM_PREFIX + self._name)
        except BadRequest as e:
            raise SettingsError(f"{self._where}: {e.message}") from None
        for key in self._table:
            if key not in _KEYS:
                raise self._wrong(key, f"is not known; there are: {', '.join(_KEYS)}")
        path = self._path()
        args = self._list("args")
        try:
            template = Template(args)
        except SettingsError as e:
            raise self._wrong("args", str(e)) from None
        return Command(
            self._name,
            path,
            template,
            summary=self._summary(),
            env=self._env(),
            cwd=self._cwd(),
            timeout=self._number("timeout", MAX_TIMEOUT_SECONDS),
            memory=self._size("memory"),
            processes=self._whole("processes", 1_000_000),
            max_output=self._size("max_output") or DEFAULT_MAX_OUTPUT,
            max_attempts=self._whole("max_attempts", MAX_ATTEMPTS) or DEFAULT_ATTEMPTS,
            backoff=self._backoff(),
        )

    def _wrong(self, key: str, what: str) -> SettingsError:
        return SettingsError(f"{self._where} {key}: {what}")

    def _text(self, key: str) -> str | None:
        value = self._table.get(key)
        if value is not None and (not isinstance(value, str) or "\0" in value):
            raise self._wrong(key, f"must be a text, not {value!r}")
        return value

    def _summary(self) -> str:
        return " ".join((self._text("summary") or "").split())

    def _path(self) -> str:
        path = self._text("path")
        if path is None:
            raise self._wrong("path", "is required: the absolute path of the program")
        if not os.path.isabs(path):
            raise self._wrong("path", f"must be absolute, not {quote(path)}")
        if not os.path.isfile(path):
            raise self._wrong("path", f"there is no file {quote(path)}")
        if not os.access(path, os.X_OK):
            raise self._wrong("path", f"{quote(path)} must be executable for the worker")
        return path

    def _cwd(self) -> str | None:
        cwd = self._text("cwd")
        if cwd is None or cwd == TEMPORARY:
            return None
        if not os.path.isabs(cwd):
            raise self._wrong("cwd", f'must be absolute, or "{TEMPORARY}", not {quote(cwd)}')
        if not os.path.isdir(cwd):
            raise self._wrong("cwd", f"there is no folder {quote(cwd)}")
        return cwd

    def _list(self, key: str) -> list[Any]:
        value = self._table.get(key, [])
        if not isinstance(value, list):
            raise self._wrong(key, f"must be a list of texts, not {value!r}: a line is not split into arguments")
        return value

    def _env(self) -> dict[str, str]:
        table = self._table.get("env", {})
        if not isinstance(table, dict):
            raise self._wrong("env", f"must be a table of texts, not {table!r}")
        for name, value in table.items():
            if not name or "=" in name or "\0" in name:
                raise self._wrong("env", f"{quote(name)} cannot be the name of a variable")
            if not isinstance(value, str) or "\0" in value:
                raise self._wrong("env", f"{name} must be a text, not {value!r}")
        return table

    def _number(self, key: str, most: float) -> float | None:
        value = self._table.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise self._wrong(key, f"must be a number of seconds, more than 0 and at most {most:.0f}, not {value!r}")
        return float(value)

    def _whole(self, key: str, most: int) -> int | None:
        value = self._table.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most):
            raise self._wrong(key, f"must be a whole number from 1 to {most}, not {value!r}")
        return value

    def _size(self, key: str) -> int | None:
        value = self._table.get(key)
        if value is None:
            return None
        found = _SIZE.fullmatch(value) if isinstance(value, str) else None
        size = int(found[1]) * _UNITS[found[2]] if found else value
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < 2**63:
            raise self._wrong(key, f'must be a size, as in "512M" (K, M, G or T) or in bytes, not {value!r}')
        return size

    def _backoff(self) -> Backoff:
        table = self._table.get("backoff", {})
        known = Backoff.__struct_fields__
        if not isinstance(table, dict):
            raise self._wrong("backoff", f"must be a table, not {table!r}")
        for key in table:
            if key not in known:
                raise self._wrong("backoff", f"{key} is not known; there are: {', '.join(known)}")
        backoff = Backoff(**table)
        check_backoff(backoff, f"{self._where} backoff")
        return backoff
