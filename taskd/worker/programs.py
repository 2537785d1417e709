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
    max_file = "1G"                           # of each file that it writes
    root = "/srv/pictures"                    # the files that a {field:path} can name are below it
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
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from taskd.model.backoff import Backoff
from taskd.model.errors import BadRequest, SettingsError, quote
from taskd.model.invalid import invalid
from taskd.model.limits import DEFAULT_ATTEMPTS
from taskd.model.task_checks import check_kind
from taskd.model.tasks import PROGRAM_PREFIX
from taskd.model.text import one_line
from taskd.worker.forkserver.messages import Path, Program
from taskd.worker.handler import MAX_SUMMARY_CHARS, MaxAttempts, Timeout
from taskd.worker.program_arguments import Template

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
TEMPORARY = "temporary"

_SIZE = re.compile(r"(\d{1,15})([KMGT]?)(?:i?B)?")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Section(msgspec.Struct):
    """A section of the file. msgspec checks types and bounds. Names, sizes, the template, and whether files exist are
    checked by :func:`read_programs`."""

    path: str
    summary: str = ""
    args: list[str | list[str]] = []
    env: dict[str, str] = {}
    cwd: str = TEMPORARY
    timeout: Timeout | None = None
    memory: int | str | None = None
    processes: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    max_output: int | str = "10M"
    max_file: int | str = "1G"
    root: str | None = None
    max_attempts: MaxAttempts = DEFAULT_ATTEMPTS
    backoff: Backoff = Backoff()


class Command:
    """One program and how to run it. ``timeout`` is in seconds. ``cwd`` None is a new folder. Raises SettingsError that
    begins with the key if the template or a size is invalid."""

    isolation = "program"

    def __init__(self, name: str, section: Section) -> None:
        self.kind = PROGRAM_PREFIX + name
        self.cwd = None if section.cwd == TEMPORARY else section.cwd
        self.timeout = section.timeout
        self.max_attempts = section.max_attempts
        self.backoff = section.backoff
        self._section = section
        try:
            self._template = Template(section.args)
        except SettingsError as e:
            raise SettingsError(f"args: {e}") from None
        self._memory = None if section.memory is None else _bytes("memory", section.memory)
        self._max_output = _bytes("max_output", section.max_output)
        self._max_file = _bytes("max_file", section.max_file)
        if self._template.paths and section.root is None:
            raise SettingsError(f"root is missing: {self._template.paths[0]} is a path, and must be below a folder")
        takes = ", ".join(self._template.fields)
        default = f"Runs {os.path.basename(section.path)}" + (f" with {takes}" if takes else "")
        self.summary = one_line(section.summary or default, MAX_SUMMARY_CHARS)

    def arguments(self, payload: Mapping[str, Any]) -> list[str | Path]:
        """The arguments after the program's path. Raises Reject if the payload does not fit."""
        return self._template.fill(payload)

    def program(self, arguments: Sequence[str | Path], cwd: str) -> Program:
        """The order for the fork server."""
        section = self._section
        env = {"PATH": DEFAULT_PATH, **section.env}
        return Program(
            [section.path, *arguments],
            cwd,
            env,
            self._memory,
            section.processes,
            self._max_output,
            self._max_file,
            section.root,
        )

    def __repr__(self) -> str:
        return f"<program of {self.kind!r}: {self._section.path}>"


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
    commands = []
    for name, table in sections.items():
        try:
            commands.append(_command(name, table))
        except SettingsError as e:
            raise SettingsError(f"{file}: [{name}] {e}") from None
        except msgspec.ValidationError as e:
            raise SettingsError(f"{file}: [{name}] {invalid(e).message}") from None
        except BadRequest as e:
            raise SettingsError(f"{file}: [{name}]: {e.message}") from None
    return commands


def _command(name: str, table: Any) -> Command:
    check_kind(PROGRAM_PREFIX + name)
    for key in table if isinstance(table, dict) else ():
        if key not in Section.__struct_fields__:
            raise SettingsError(f"{key}: is not known; there are: {', '.join(Section.__struct_fields__)}")
    section = msgspec.convert(table, Section)
    path, cwd = section.path, section.cwd
    if not os.path.isabs(path):
        raise SettingsError(f"path: must be absolute, not {quote(path)}")
    if not os.path.isfile(path):
        raise SettingsError(f"path: there is no file {quote(path)}")
    if not os.access(path, os.X_OK):
        raise SettingsError(f"path: {quote(path)} must be executable for the worker")
    if cwd != TEMPORARY and not os.path.isabs(cwd):
        raise SettingsError(f'cwd: must be absolute, or "{TEMPORARY}", not {quote(cwd)}')
    if cwd != TEMPORARY and not os.path.isdir(cwd):
        raise SettingsError(f"cwd: there is no folder {quote(cwd)}")
    if section.root is not None and not os.path.isabs(section.root):
        raise SettingsError(f"root: must be absolute, not {quote(section.root)}")
    if section.root is not None and not os.path.isdir(section.root):
        raise SettingsError(f"root: there is no folder {quote(section.root)}")
    for variable, value in section.env.items():
        if not variable or "=" in variable:
            raise SettingsError(f"env: {quote(variable)} cannot be the name of a variable")
        if "\0" in variable + value:
            raise SettingsError(f"env: {quote(variable)} must not contain the NUL character")
    return Command(name, section)


def _bytes(key: str, size: int | str) -> int:
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    number = int(found[1]) * _UNITS[found[2]] if found else size
    if isinstance(number, str) or not 1 <= number < 2**63:
        raise SettingsError(f'{key}: must be a size, as in "512M" (K, M, G or T) or in bytes, not {size!r}')
    return number
