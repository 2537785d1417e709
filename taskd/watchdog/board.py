"""The board: memory that a worker shares with its watchdog. The worker writes, the watchdog reads.

It has a header of counters, the worker's name, one note for each thread that runs a handler, and the table of what has
begun. No side ever waits for the other. A sequence number, odd while a text is being written, tells the reader to read
again.

The gate needs no lock. It is a number that only the watchdog raises. The worker first notes that a task begins, then
reads the gate. The watchdog first raises the gate, then waits for GATE_SECONDS, then reads what has begun. So either
the worker sees that the gate was raised, and the task does not begin; or its note was written before that, and the
watchdog sees it. A processor may keep to itself what it writes, but only for microseconds, even if the thread is
stopped there.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
import weakref
from functools import lru_cache, partial
from threading import get_ident
from typing import NamedTuple

# The header, in words of eight bytes. The name follows in bytes.
(
    _TICKS,
    _BEATS,
    _STOPPING,
    _IDENT,
    _NATIVE,
    _NAME_VERSION,
    _NAME_LENGTH,
    _GATE,
    _GATE_SEEN,
    _NOT_NOTED,
) = range(10)
_NAME = 80
MAX_NAME_BYTES = 255
_HEADER = _NAME + MAX_NAME_BYTES + 1

# A note: its version, then the thread's ident (0: no handler is entered), native id, task, dispatch and kind.
_NOTE = struct.Struct("@QQQQ88s")
_NOTE_BYTES = 8 + _NOTE.size

# An entry of the table of what has begun: dispatch and task id. The id is written last, and 0 says that it is free.
_BEGUN = struct.Struct("@QQ")
BEGUN_TASKS = 20_000
"""How many tasks the table has room for: more than run at a time, since the outcomes of others are on their way."""
_BEGUN_BYTES = BEGUN_TASKS * _BEGUN.size

GATE_SECONDS = 0.02
"""How long the watchdog waits after it has raised the gate."""


@lru_cache(maxsize=1000)
def _raw(kind: str) -> bytes:
    return kind.encode(errors="replace")


class Note(NamedTuple):
    """A handler that a thread has entered. ``thread`` is the ident by which Python names the thread, ``native`` that
    of the kernel. A kind of more than 88 bytes is cut."""

    thread: int
    native: int
    task_id: int
    dispatch: int
    kind: str


class _Thread(threading.local):
    """What a thread knows of itself, and the index of its note while it has one."""

    note = -1

    def __init__(self) -> None:
        self.ident = get_ident()
        self.native = threading.get_native_id()


class Board:
    """Room for the notes of ``threads`` threads and of the reactor's thread. It is an
    :class:`taskd.worker.executors.entries.IEntries`.

    Until :meth:`share` is called, and in a forked child, the memory is private: writing to it has no effect.
    """

    def __init__(self, threads: int) -> None:
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._me = _Thread()
        self._reactor = 0
        self._table = _HEADER + (threads + 1) * _NOTE_BYTES
        self._size = self._table + _BEGUN_BYTES
        self._free = list(range(_HEADER // 8, self._table // 8, _NOTE_BYTES // 8))
        self._free_begun: list[int] = []
        self._next_begun = self._table
        """Where the part of the table begins that was never used."""
        # the word of its note that has the thread's ident
        self._reactor_ident = self._free.pop() + 1
        self._use(memoryview(bytearray(self._size)))

    @classmethod
    def open(cls, fd: int) -> Board:
        """The board of another process, to read."""
        board = cls((os.fstat(fd).st_size - _HEADER - _BEGUN_BYTES) // _NOTE_BYTES - 1)
        board._map_shared(fd)
        return board

    def share(self) -> int:
        """Move to shared memory; its descriptor. To be called in the reactor's thread, after the process has become a
        daemon. Raises OSError."""
        fd = memory_file("taskd-board", len(self._bytes))
        # not the unused part of the table: memory that nobody has touched takes no room
        before = bytes(self._bytes[: self._next_begun])
        self._map_shared(fd)
        self._bytes[: len(before)] = before
        self._me = _Thread()
        self._reactor = self._words[_IDENT] = self._me.ident
        self._words[_NATIVE] = self._me.native
        self._use(self._bytes)
        _shared.add(self)
        return fd

    def close(self) -> None:
        """Use private memory from now on."""
        _shared.discard(self)
        self._words.release()
        self._bytes.release()
        if self._map is not None:
            self._map.close()
            os.close(self._fd)
            self._map = None
        self._use(memoryview(bytearray(self._size)))

    # -- the worker's side

    def tick(self) -> None:
        """The reactor runs."""
        self._words[_TICKS] += 1

    def beaten(self) -> None:
        """The store has accepted a beat of the reactor."""
        self._words[_BEATS] += 1

    def rename(self, name: str) -> None:
        """The worker's name in the store, from now on. To be called when it is registered. Raises ValueError if it is
        longer than MAX_NAME_BYTES."""
        raw = name.encode()
        if len(raw) > MAX_NAME_BYTES:
            raise ValueError(f"a worker's name of {len(raw)} bytes")
        self._words[_NAME_VERSION] += 1
        self._bytes[_NAME : _NAME + len(raw)] = raw
        self._words[_NAME_LENGTH] = len(raw)
        self._words[_NAME_VERSION] += 1

    def stopping(self) -> None:
        """The worker ends in order: the watchdog is to end without telling anything."""
        self._words[_STOPPING] = 1

    def enter(self, task_id: int, dispatch: int, kind: str) -> None:
        """The calling thread enters a handler."""
        if get_ident() == self._reactor:
            # on the path of each task; it is read while the reactor stands still, so it needs no version
            self._enter_reactor(task_id, dispatch, _raw(kind))
            return
        me = self._me
        at = me.note
        if at < 0:
            try:
                at = me.note = self._free.pop()
            except IndexError:
                return
        words = self._words
        words[at] += 1
        _NOTE.pack_into(self._bytes, at * 8 + 8, me.ident, me.native, task_id, dispatch, _raw(kind))
        words[at] += 1

    def leave(self) -> None:
        """The calling thread has left it."""
        if get_ident() == self._reactor:
            self._words[self._reactor_ident] = 0
            return
        me = self._me
        at = me.note
        if at >= 0:
            self._words[at + 1] = 0
            me.note = -1
            self._free.append(at)

    def begins(self, task_id: int, dispatch: int) -> int:
        """This assignment is about to begin. Returns its place, for :meth:`forget`. To be called in the reactor's
        thread, before :attr:`gate` is read."""
        if self._free_begun:
            at = self._free_begun.pop()
        else:
            at = self._next_begun
            if at >= self._size:
                self._words[_NOT_NOTED] += 1
                return 0
            self._next_begun = at + _BEGUN.size
        self._note_begun(at, dispatch, task_id)
        return at

    def forget(self, at: int) -> None:
        """The assignment at this place is not held any more, or does not begin after all."""
        if at:
            self._words[at // 8 + 1] = 0
            self._free_begun.append(at)
        else:
            self._words[_NOT_NOTED] -= 1

    def see_gate(self, number: int) -> None:
        """Nothing begins any more that was found before the gate was raised to this number."""
        self._words[_GATE_SEEN] = number

    # -- the watchdog's side

    @property
    def gate(self) -> int:
        """How often :meth:`raise_gate` was called."""
        return self._words[_GATE]

    @property
    def gate_seen(self) -> bool:
        """Whether the worker has seen the last raising of the gate."""
        return self._words[_GATE_SEEN] == self._words[_GATE]

    def raise_gate(self) -> None:
        """Nothing that the worker has found is to begin. To be called only when it has seen the last raising. What
        has begun shows GATE_SECONDS later."""
        self._words[_GATE] += 1

    def begun(self) -> list[tuple[int, int]] | None:
        """Task and dispatch of all that has begun and is held. None if there is more than the table has room for."""
        if self._words[_NOT_NOTED]:
            return None
        table = bytes(self._bytes[self._table :])
        return [(task_id, dispatch) for dispatch, task_id in _BEGUN.iter_unpack(table) if task_id]

    @property
    def ticks(self) -> int:
        """How often :meth:`tick` was called."""
        return self._words[_TICKS]

    @property
    def beats(self) -> int:
        """How often :meth:`beaten` was called."""
        return self._words[_BEATS]

    @property
    def is_stopping(self) -> bool:
        """Whether :meth:`stopping` was called."""
        return bool(self._words[_STOPPING])

    @property
    def name(self) -> str:
        """The worker's name; empty before it is registered."""
        for _ in range(100):
            version = self._words[_NAME_VERSION]
            raw = bytes(self._bytes[_NAME : _NAME + self._words[_NAME_LENGTH]])
            if version % 2 == 0 and version == self._words[_NAME_VERSION]:
                return raw.decode(errors="replace")
        return ""

    @property
    def reactor_thread(self) -> int:
        """The kernel's id of the reactor's thread."""
        return self._words[_NATIVE]

    def notes(self) -> list[Note]:
        """The handlers that are entered now. One that is being entered at this moment may be missing."""
        found = []
        for at in range(_HEADER // 8, self._table // 8, _NOTE_BYTES // 8):
            for _ in range(3):
                version = self._words[at]
                thread, native, task_id, dispatch, kind = _NOTE.unpack_from(self._bytes, at * 8 + 8)
                if version % 2 == 0 and version == self._words[at]:
                    if thread:
                        text = kind.rstrip(b"\0").decode(errors="ignore")
                        found.append(Note(thread, native, task_id, dispatch, text))
                    break
        return found

    # -- memory

    def _map_shared(self, fd: int) -> None:
        self._map = mmap.mmap(fd, self._size)
        self._fd = fd
        self._use(memoryview(self._map))

    def _use(self, memory: memoryview) -> None:
        self._bytes = memory
        self._words = memory.cast("Q")
        note = self._reactor_ident * 8, self._reactor, self._words[_NATIVE]
        self._enter_reactor = partial(_NOTE.pack_into, memory, *note)
        self._note_begun = partial(_BEGUN.pack_into, memory)


def memory_file(name: str, size: int = 0) -> int:
    """The descriptor of a new file that lives in memory and has no name in the file system. It closes when the process
    executes another program."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    else:
        import tempfile

        fd, path = tempfile.mkstemp(prefix=name)
        os.unlink(path)
    os.truncate(fd, size)
    return fd


_shared: weakref.WeakSet[Board] = weakref.WeakSet()


def _forked() -> None:
    """A child that a handler has forked must not tick for its parent."""
    for board in list(_shared):
        with contextlib.suppress(OSError):
            board.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
