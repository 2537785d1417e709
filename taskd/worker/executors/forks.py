"""What happens in a process that a handler forks from the worker: nothing of the worker runs in it.

The child closes what belongs to the worker and goes on with the handler's code. Where that code returns to the worker,
the child ends. A program that is started by ``subprocess`` or ``spawnProcess`` takes another way and is not affected.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from twisted.internet.interfaces import IReactorFDSet
from twisted.python.threadable import isInIOThread

in_copy = False
"""Whether this process is a copy of the worker: a handler has forked it."""

_reactor: Any = None
_hooked = False
_masks = threading.local()
_owned_paths: list[str] = []
_halted: list[object] = []
"""What the reactor watched, in a child that its thread has forked."""

_kept: list[object] = []
"""What the child must not release: that would run destructors and the ``finally`` of other handlers."""


def watch(reactor: Any) -> None:
    """This process is a worker: from now on clean up in its forked children. No effect with a clock of a test."""
    global _reactor, _hooked, in_copy
    if not IReactorFDSet.providedBy(reactor):
        return
    _reactor, in_copy = reactor, False
    if not _hooked:
        os.register_at_fork(before=_before_fork, after_in_parent=_unblock_signals, after_in_child=_after_fork)
        _hooked = True


def own_files(*paths: str | os.PathLike[str]) -> None:
    """A forked child closes the files that are open with these paths, or with paths that begin so."""
    _owned_paths.extend(os.path.realpath(path) for path in paths)


def leave(error: BaseException | None = None) -> NoReturn:
    """End this copy of the worker at once, as its handler has ended: with the status of a SystemExit, 1 after another
    exception, else 0. No exit handler runs and no buffer of the worker is written a second time."""
    status = 0
    if isinstance(error, SystemExit):
        if isinstance(error.code, int):
            status = error.code & 0xFF
        elif error.code is not None:
            status = _complain(f"{error.code}\n")
    elif error is not None:
        try:
            text = "".join(traceback.format_exception(error))
        except Exception:
            # the __str__ of a foreign exception may fail
            text = f"{type(error).__name__}\n"
        status = _complain(text)
    os._exit(status)


def _complain(text: str) -> int:
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="replace"))
    return 1


def _before_fork() -> None:
    """A signal that reaches the child before its signals have their defaults would be lost: it waits until then."""
    if not in_copy:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _unblock_signals() -> None:
    before = vars(_masks).pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork() -> None:
    """Called in every child that Python code forks, before anything else of Python runs there."""
    global in_copy
    if in_copy:
        return
    in_copy = True
    try:
        _leave_worker()
    finally:
        _unblock_signals()


def _leave_worker() -> None:
    if isInIOThread():
        _halt_reactor()
    # the thread of a pool that has returned from its work tells the reactor of it
    _reactor.callFromThread = _end_of_reactor
    _default_signals()
    found: set[int] = set()
    # another thread may have been changing the reactor's tables: what was found so far counts
    with contextlib.suppress(Exception):
        found.update(_descriptors())
    _close(found)


def _default_signals() -> None:
    """The worker's functions for signals, such as TERM, would stop a reactor that does not run here."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)


def _descriptors() -> Iterator[int]:
    """All descriptors of the worker."""
    watched = {_number(each) for each in [*_halted, *_reactor.getReaders(), *_reactor.getWriters()]}
    yield from watched
    # no public names give these two: the epoll descriptor, and the writing ends of the pipes that wake the reactor
    yield _number(getattr(_reactor, "_poller", None))
    for waker in getattr(_reactor, "_internalReaders", ()):
        yield _number(getattr(waker, "o", None))
    yield from _of_clients_and_files(watched)


def _of_clients_and_files(watched: set[int]) -> Iterator[int]:
    """Connections that a port of the reactor has accepted: it does not watch those that it reads no further for a
    while. And the open files of :func:`own_files`."""
    ports = {address for fd in watched if (address := _address(fd, listening=True)) is not None}
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:"):
            if ports and fd not in watched and _address(fd, listening=False) in ports:
                yield fd
        elif any(target.startswith(path) for path in _owned_paths):
            yield fd


def _address(fd: int, *, listening: bool) -> object:
    """The local port or path of a stream socket, None if it is something else."""
    try:
        each = socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        if each.type != socket.SOCK_STREAM:
            return None
        if bool(each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) != listening:
            return None
        name = each.getsockname()
        return name[1] if isinstance(name, tuple) else name or None
    except OSError:
        return None
    finally:
        each.detach()


def _number(source: Any) -> int:
    """The descriptor of a number or an object, -1 if it has none."""
    try:
        return source if isinstance(source, int) else int(source.fileno())
    except Exception:
        return -1


def _close(fds: Iterable[int]) -> None:
    """Close them for this process, without a word to the other side. Their numbers stay taken by ``/dev/null``: objects
    of the worker still have them, and must not meet a file that the handler opens."""
    null = -1
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in fds:
        if fd <= 2:
            continue
        with contextlib.suppress(OSError):
            if null >= 0:
                os.dup2(null, fd, inheritable=False)
            else:
                os.close(fd)
    if null >= 0:
        os.close(null)


def _halt_reactor() -> None:
    """The reactor's thread has forked, perhaps in a callback: when it returns to the reactor, it finds nothing to do
    and ends."""
    with contextlib.suppress(Exception):
        _halted.extend([*_reactor.getReaders(), *_reactor.getWriters()])
    for name in ("threadCallQueue", "_pendingTimedCalls", "_newTimedCalls", "_selectables"):
        if waiting := getattr(_reactor, name, None):
            _kept.append(waiting.copy())
            waiting.clear()
    for watching in "_reads", "_writes":
        getattr(_reactor, watching, set()).clear()
    _reactor.runUntilCurrent = _reactor.doIteration = _end_of_reactor


def _end_of_reactor(*_: object) -> NoReturn:
    leave()
