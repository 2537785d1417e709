"""Which thread blocks a worker whose reactor stands still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taskd.watchdog.board import Note

BUSY = 0.3
"""The part of an interval in which a thread uses a CPU from which on it counts as busy."""

FAINT = 0.05
"""The same while the reactor's thread waits for the GIL."""

GIL_WAITS = 20.0
"""A thread that waits for the GIL gives up its CPU 200 times a second, because it asks for the GIL every 5 ms. One that
sleeps or waits for data does not. From so many times a second on, it counts as waiting for the GIL: fewer than 200,
because a busy machine wakes it late."""


class Usage(NamedTuple):
    """What a thread has used since it began: seconds of CPU, and how often it gave up its CPU to wait, None if the
    system does not tell."""

    cpu: float
    waits: int | None


class Suspicion(NamedTuple):
    """Who blocks the worker. ``native`` is the thread that does, as the kernel names it; ``note`` its handler, None if
    it runs none that is known. ``among``: more than one thread may be it, and these are their handlers."""

    native: int
    note: Note | None
    among: Sequence[Note] = ()


def suspect(
    reactor: int,
    notes: Sequence[Note],
    before: Mapping[int, Usage],
    after: Mapping[int, Usage],
    seconds: float,
) -> Suspicion:
    """Compare what the threads had used at the beginning and at the end of an interval of the standstill.

    ``reactor`` is the reactor's thread, and ``notes`` are the handlers that were entered during the whole interval.

    A reactor that waits for the GIL is blocked by another thread, the busy one. One that does not is blocked by what it
    runs itself, however busy other threads are.
    """
    by_thread = {note.native: note for note in notes}
    own = Suspicion(reactor, by_thread.get(reactor))
    share = {native: (usage.cpu - before[native].cpu) / seconds for native, usage in after.items() if native in before}
    waits = _waits_for_gil(before.get(reactor), after.get(reactor), seconds)
    if waits is False or share.pop(reactor, 0.0) > BUSY:
        return own
    # Sharing the CPU with other processes, the thread that has the GIL may get little of it.
    least = max(FAINT if waits else BUSY, max(share.values(), default=0.0) / 2)
    busy = sorted((native for native in share if share[native] > least), key=lambda n: share[n], reverse=True)
    noted = [by_thread[native] for native in busy if native in by_thread]
    if len(noted) > 1:
        return Suspicion(noted[0].native, None, noted)
    if noted:
        return Suspicion(noted[0].native, noted[0])
    if busy and waits:
        # what the reactor has entered is innocent
        return Suspicion(busy[0], None)
    # without a busy thread, a handler that sleeps again and again for a moment is more likely than a sleep with the GIL
    return own


def _waits_for_gil(before: Usage | None, after: Usage | None, seconds: float) -> bool | None:
    if before is None or after is None or before.waits is None or after.waits is None:
        return None
    return (after.waits - before.waits) / seconds > GIL_WAITS
