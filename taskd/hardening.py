"""What a process can do against the processes beside it: hide its memory, and its passwords, from others of its user.

It uses no Twisted: the watchdog and the fork server import it, too. On other systems than Linux nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterable

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

_ENV_START = 47
"""Index of ``env_start`` among the fields of ``/proc/self/stat`` after the name; ``env_end`` follows. See proc(5)."""

_FIRST_COPY: dict[bytes, bytes] = vars(sys.modules.get("posix", os)).get("environ", {}) if os.name == "posix" else {}
"""The environment as Python read it at its start. ``os.environ`` was made from it, and it stays."""

prctl: Callable[..., int] | None
"""prctl(2). None where the system has none."""
try:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
except (AttributeError, OSError, TypeError):
    prctl = None


def forbid_inspection() -> None:
    """Let no other process of this user read this one: its memory, environment and descriptors in /proc, and ptrace.

    Only root still may. Forked children inherit it; a program that is started with exec does not. The system writes no
    core dump. Signals, and ``stat`` and ``status`` in /proc, are for all as before. See prctl(2), PR_SET_DUMPABLE.
    """
    if prctl is not None:
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def processes_are_hidden() -> bool:
    """Whether ``/proc`` shows a user only the processes that it may look into: the mount option hidepid, which
    ``ProtectProc=`` of systemd sets. Then forbid_inspection() makes a process invisible for its own user, who is not
    root."""
    with contextlib.suppress(OSError), open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
        options = [line.split()[3] for line in file if line.split()[1:3] == ["/proc", "proc"]]
        # the last one that was mounted there is the one in use
        return bool(os.getuid()) and bool(re.search(r"\bhidepid=(?!0|off)", options[-1] if options else ""))
    return False


def forbid_new_privileges() -> None:
    """Setuid bits and file capabilities give this process, and all that it starts, no rights. See prctl(2),
    PR_SET_NO_NEW_PRIVS."""
    if prctl is not None:
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def erase_variables(names: Iterable[str]) -> None:
    """Remove variables from the environment of this process, and their values from its memory.

    ``os.environ.pop`` alone leaves them in the block that the kernel filled, which is what ``/proc/PID/environ`` shows.
    Call it before there are other threads.
    """
    found = [name.encode() for name in names]
    # before unsetenv(), which may free what setenv() has allocated; it needs the names, so these stay
    for address, size in [*_in_block(found), *_in_use(found)]:
        ctypes.memset(address, 0, size)
    for name in found:
        os.environ.pop(name.decode(), None)
        _FIRST_COPY.pop(name, None)


def _in_block(names: list[bytes]) -> list[tuple[int, int]]:
    """Address and size of the values of these variables in the block that the kernel filled."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/stat", "rb") as file:
        start, end = map(int, file.read().rpartition(b")")[2].split()[_ENV_START : _ENV_START + 2])
        # a sandbox may hide the addresses, as zeros
        if 0 < start < end:
            found, address = [], start
            for entry in ctypes.string_at(start, end - start).split(b"\0"):
                found += _value(address, entry, names)
                address += len(entry) + 1
            return found
    return []


def _in_use(names: list[bytes]) -> list[tuple[int, int]]:
    """The same in the C library's list, which has what was set later."""
    found = []
    with contextlib.suppress(AttributeError, OSError, TypeError, ValueError):
        variables = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
        index = 0
        while variables and (address := variables[index]):
            found += _value(address, ctypes.string_at(address), names)
            index += 1
    return found


def _value(address: int, entry: bytes, names: list[bytes]) -> list[tuple[int, int]]:
    name, _, value = entry.partition(b"=")
    return [(address + len(name) + 1, len(value))] if name in names and value else []
