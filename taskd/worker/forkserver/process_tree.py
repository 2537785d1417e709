"""Trees of processes: keep them together, list them, end them. On other systems than Linux a tree is only its process
group."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

from taskd.hardening import prctl

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

SWEEP_SECONDS = 5.0

OOM_SCORE = b"500"
"""How soon the kernel kills a child if memory runs out, from -1000 to 1000; 0 is usual. See proc(5)."""

_oom_score: tuple[int, bytes] | None = None
"""The open file of this process, and what it had."""

_FREEZE_ROUNDS = 50
"""If a root still gains children after so many looks, the next call goes on with it."""

_pidfile = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
_lists_children = os.path.exists(_pidfile)


def become_subreaper() -> None:
    """Adopt each process below this one whose parent ends, so that daemons stay in the tree. Children do not inherit
    this. See prctl(2), PR_SET_CHILD_SUBREAPER."""
    if prctl is not None:
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Receive this signal when the parent ends, or now if it has ended already. See prctl(2), PR_SET_PDEATHSIG."""
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


def open_oom_score() -> None:
    """Open how soon the kernel kills this process if memory runs out. To be called before forbid_inspection(), from
    which on only root may open that file, of this process and of its children."""
    global _oom_score
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
        _oom_score = fd, os.read(fd, 16)


def fork_to_be_killed_first() -> int:
    """Fork. The kernel kills the child before this process and the worker if memory runs out. Raises OSError."""
    if _oom_score is None:
        return os.fork()
    fd, own = _oom_score
    # the child inherits it
    _write(fd, OOM_SCORE)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            _write(fd, own)
        else:
            os.close(fd)
    return pid


def _write(fd: int, data: bytes) -> None:
    with contextlib.suppress(OSError):
        os.pwrite(fd, data, 0)


def yield_to_the_worker() -> None:
    """Let the worker have the processor first."""
    with contextlib.suppress(OSError):
        os.nice(5)


def pipe_of_signals() -> tuple[int, int]:
    """A pipe into which Python writes the number of each SIGCHLD and SIGUSR1: the end to read and the end to write."""
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    for number in (signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(ends[1], warn_on_full_buffer=False)
    return ends


def children(pid: int) -> list[int]:
    """The pids of its children, zombies included. Empty if the process does not exist.

    The kernel's list may miss some while others end: look twice before you rely on an empty list.
    """
    if not _lists_children:
        return _children_by_parent().get(pid, [])
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


def childless(pid: int) -> bool:
    """Whether it has no children. It must not start any at this moment."""
    return not children(pid) and not children(pid)


def _children_by_parent() -> dict[int, list[int]]:
    """For kernels without CONFIG_PROC_CHILDREN, which do not list children."""
    found: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                    # pid (name) state parent ...; the name may contain anything
                    found.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(name))
    return found


def descendants(pid: int) -> set[int]:
    """All processes below it."""
    found: set[int] = set()
    _find_below(pid, found)
    return found


def _find_below(root: int, found: set[int], number: signal.Signals | None = None) -> None:
    """Add all processes below ``root`` to ``found``. Each new one gets the signal before its children are listed."""
    todo = [root]
    while todo:
        for child in children(todo.pop()):
            if child not in found:
                if number is not None:
                    send(child, number)
                found.add(child)
                todo.append(child)


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal to a process, or to a group if ``pid`` is negative. Returns False, without effect, if it does not
    exist or belongs to another user."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def terminate(root: int) -> set[int]:
    """Send TERM to a process and all below it, each once. Returns their pids."""
    found = {root} | descendants(root)
    if len(found) == 1:
        # It has no descendants, or the system does not list them: then its group reaches more. A process that was just
        # forked has no group yet.
        if not send(-root, signal.SIGTERM):
            send(root, signal.SIGTERM)
    else:
        for pid in found:
            send(pid, signal.SIGTERM)
    return found


def kill(root: int) -> None:
    """KILL a process and all below it. Call it again until they have ended."""
    send(root, signal.SIGSTOP)
    kill_below(root)
    send(-root, signal.SIGKILL)
    send(root, signal.SIGKILL)


def kill_below(root: int) -> None:
    """KILL all below a process, but not the process itself.

    It stops each process before it lists its children: no fork succeeds while a signal is pending, so that even a fork
    bomb is listed completely. Only the root can gain more children: it adopts those whose parents end meanwhile.
    """
    frozen: set[int] = set()
    for _ in range(_FREEZE_ROUNDS):
        before = len(frozen)
        _find_below(root, frozen, signal.SIGSTOP)
        if len(frozen) == before:
            break
    for pid in frozen:
        send(pid, signal.SIGKILL)


def end_all_below_me() -> None:
    """KILL and reap everything below this process. Reports what is left after SWEEP_SECONDS."""
    deadline = time.monotonic() + SWEEP_SECONDS
    while time.monotonic() < deadline:
        kill_below(os.getpid())
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        select.select((), (), (), 0.002)
    report("some processes of tasks cannot be killed")


def how_it_ended(status: int) -> str:
    """A wait status in words: "killed by SIGSEGV", "exited with status 3"."""
    code = os.waitstatus_to_exitcode(status)
    return killed_by(-code) if code < 0 else f"exited with status {code}"


def killed_by(number: int) -> str:
    """The end by a signal in words: "killed by SIGSEGV"."""
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def report(line: str) -> None:
    """Print a line for the worker's log."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
