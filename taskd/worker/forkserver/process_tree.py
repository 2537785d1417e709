"""Trees of processes: keep them together, list them, end them. Linux; elsewhere process groups do what they can."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_FREEZE_ROUNDS = 50
"""A root that still gains children after so many looks is left for the next time."""

_pidfile = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
_lists_children = os.path.exists(_pidfile)
_prctl: Callable[..., int] | None
try:
    _prctl = ctypes.CDLL(None, use_errno=True).prctl
except (AttributeError, OSError, TypeError):
    _prctl = None


def become_subreaper() -> None:
    """From now on a process below this one whose parent ends becomes this one's child, not init's: whatever daemonizes
    stays in the tree (prctl(2), PR_SET_CHILD_SUBREAPER; not inherited by children)."""
    if _prctl is not None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Get this signal when the parent ends; at once if it has ended already (prctl(2), PR_SET_PDEATHSIG)."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


def yield_to_the_worker() -> None:
    """Work of tasks gets the processor after the worker, and the kernel ends it first when memory runs out."""
    with contextlib.suppress(OSError):
        os.nice(5)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def children(pid: int) -> list[int]:
    """Its children, ended ones that nobody has reaped included. Nothing for a process that is gone.

    The kernel's list may miss some while others end: look twice before you rely on there being none.
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
    """Whether nothing runs below a process that starts nothing itself right now."""
    return not children(pid) and not children(pid)


def _children_by_parent() -> dict[int, list[int]]:
    """For kernels that list no children (CONFIG_PROC_CHILDREN)."""
    found: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                    # pid (name) state parent ...; the name may hold anything
                    found.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(name))
    return found


def descendants(pid: int) -> set[int]:
    """All processes below it."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in children(todo.pop()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def send(pid: int, number: signal.Signals) -> None:
    """A signal to one process; nothing happens when it is gone or not ours to end."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def terminate(root: int) -> set[int]:
    """TERM to a process and all below it, each once. Returns whom it found."""
    found = {root} | descendants(root)
    if len(found) == 1:
        # none, or a system that does not list them: the group is the same or better, once it has been made
        try:
            os.killpg(root, signal.SIGTERM)
        except (ProcessLookupError, PermissionError):
            send(root, signal.SIGTERM)
    else:
        for pid in found:
            send(pid, signal.SIGTERM)
    return found


def kill(root: int) -> None:
    """KILL a process and all below it. Call it again until they are gone."""
    send(root, signal.SIGSTOP)
    kill_below(root)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(root, signal.SIGKILL)
    send(root, signal.SIGKILL)


def kill_below(root: int) -> None:
    """KILL all below a process, but not itself.

    Each is stopped before its children are listed: no fork succeeds while a signal is pending, so that even those that
    fork without end are seen once and for all. Only the root can gain others, those whose parents end meanwhile.
    """
    frozen: set[int] = set()
    for _ in range(_FREEZE_ROUNDS):
        todo, before = [root], len(frozen)
        while todo:
            for child in children(todo.pop()):
                if child not in frozen:
                    send(child, signal.SIGSTOP)
                    frozen.add(child)
                    todo.append(child)
        if len(frozen) == before:
            break
    for pid in frozen:
        send(pid, signal.SIGKILL)


def end_all_below_me(seconds: float) -> bool:
    """KILL and reap everything below this process, within so many seconds. Returns whether nothing is left."""
    deadline = time.monotonic() + seconds
    while True:
        kill_below(os.getpid())
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)


def how_it_ended(status: int) -> str:
    """A wait status in words: "killed by SIGSEGV", "exited with status 3"."""
    if not os.WIFSIGNALED(status):
        return f"exited with status {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"
