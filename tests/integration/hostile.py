"""A hostile task: it tries to look into every process of its user, and prints what it could open.

``python hostile.py SECRET..`` prints one line of JSON: by pid, what it could read there, and "SECRET" if it found one.
It uses the standard library only, since it also runs as a program of a worker.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

PTRACE_ATTACH, PTRACE_DETACH = 16, 17
PIDFD_OPEN, PIDFD_GETFD = 434, 438
PROCESS_VM_READV = {"x86_64": 310, "aarch64": 270}.get(os.uname().machine)

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def read(path: str) -> bytes:
    """A file of /proc."""
    with open(path, "rb", 0) as file:
        return file.read()


def memory(pid: int) -> bytes:
    """All of its memory that is private and can be written."""
    found = b""
    with open(f"/proc/{pid}/mem", "rb", 0) as file:
        for line in read(f"/proc/{pid}/maps").decode(errors="replace").splitlines():
            area, rights = line.split()[:2]
            begin, end = (int(each, 16) for each in area.split("-"))
            if rights.startswith("rw"):
                try:
                    file.seek(begin)
                    found += file.read(end - begin)
                except OSError:
                    continue
    return found


def descriptor(pid: int) -> bytes:
    """What can be read from its descriptors, opened again through /proc."""
    opened = False
    found = b""
    for name in range(32):
        try:
            fd = os.open(f"/proc/{pid}/fd/{name}", os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        opened = True
        try:
            found += os.read(fd, 65536)
        except OSError:
            pass
        finally:
            os.close(fd)
    if not opened:
        raise OSError("none")
    return found


def steal(pid: int) -> bytes:
    """Copy a descriptor."""
    pidfd = libc.syscall(PIDFD_OPEN, pid, 0)
    if libc.syscall(PIDFD_GETFD, pidfd, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return b""


def trace(pid: int) -> bytes:
    """Attach as a debugger does."""
    if libc.ptrace(PTRACE_ATTACH, pid, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0x40000000)
    libc.ptrace(PTRACE_DETACH, pid, None, None)
    return b""


def read_remotely(pid: int) -> bytes:
    """process_vm_readv, of an address that does not exist: the right to read is checked first."""
    if PROCESS_VM_READV is None:
        raise OSError("not known here")
    here = ctypes.create_string_buffer(8)
    areas = [(ctypes.c_size_t * 2)(address, 8) for address in (ctypes.addressof(here), 4096)]
    one, none = ctypes.c_size_t(1), ctypes.c_size_t(0)
    numbers = ctypes.c_size_t(PROCESS_VM_READV), ctypes.c_size_t(pid)
    libc.syscall(*numbers, ctypes.byref(areas[0]), one, ctypes.byref(areas[1]), one, none)
    if ctypes.get_errno() != errno.EFAULT:
        raise OSError(ctypes.get_errno(), "process_vm_readv")
    return b""


ATTACKS: dict[str, Callable[[int], bytes]] = {
    "environ": lambda pid: read(f"/proc/{pid}/environ"),
    "auxv": lambda pid: read(f"/proc/{pid}/auxv"),
    "maps": lambda pid: read(f"/proc/{pid}/maps"),
    "mem": memory,
    "fd": descriptor,
    "getfd": steal,
    "ptrace": trace,
    "process_vm_readv": read_remotely,
    # for everybody
    "cmdline": lambda pid: read(f"/proc/{pid}/cmdline"),
}


def attack(secrets: list[bytes]) -> dict[int, list[str]]:
    """What can be opened of each process of this user, except of this one."""
    found: dict[int, list[str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            status = (folder / "status").read_text()
        except OSError:
            continue
        uid = int(status.partition("\nUid:")[2].split()[0])
        if uid != os.getuid() or pid == os.getpid() or "\nState:\tZ" in status:
            continue
        found[pid] = []
        for name, attempt in ATTACKS.items():
            try:
                content = attempt(pid)
            except OSError:
                continue
            if name != "cmdline":
                found[pid].append(name)
            if any(secret in content for secret in secrets):
                found[pid].append("SECRET")
    return found


if __name__ == "__main__":
    # the arguments have the secrets reversed: this process must not have one
    print(json.dumps(attack([each[::-1].encode() for each in sys.argv[1:]])))
