"""The ways of running a handler: on the reactor, in a thread, in a child process.

Each begins at once and calls ``ended`` one time, in the reactor's thread, when nothing of it runs any more. Nothing
that a handler does comes out of here as an exception.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import itertools
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from taskd.ports import ITaskHandler
from taskd.worker.context import Relay, TaskContext, clean_lines
from taskd.worker.endings import (
    OWN_FILES,
    Fault,
    Success,
    cut_trace,
    error_line,
    fault,
    one_line,
    retry_delay,
    success,
)
from taskd.worker.processes import Ending, Exited, Job, Raised, Returned
from taskd.worker.threads import IThreads

CANCEL_SECONDS = 5.0
"""What an async handler gets to end once it is cancelled."""

MAX_OUTPUT_BYTES = 4096
"""Of a program's last output, in its result."""

Ended = Callable[["Success | Fault"], None]


T = TypeVar("T")


class Place(NamedTuple):
    """Where a handler stands right now: one line, and the stack if it can be had."""

    line: str
    trace: str | None = None


class Way(Protocol):
    """One attempt under way."""

    patience: float | None
    """Seconds between :meth:`cancel` and an outcome that does not wait for the end; None: the end always comes."""

    stubborn: str
    """What to say of it, behind its place, when it does not end."""

    def begin(self, ended: Ended) -> None:
        """Run it."""

    def cancel(self) -> None:
        """Have it end soon."""

    def place(self) -> Place:
        """Where it stands."""


class OnReactor:
    """An async handler. Cancelling raises CancelledError at its await."""

    patience: float | None = CANCEL_SECONDS
    stubborn = "ignores its cancellation"

    def __init__(self, clock: IReactorTime, handler: ITaskHandler, context: TaskContext) -> None:
        self._clock = clock
        self._handler = handler
        self._context = context
        self._ours: Coroutine[Any, Any, Success | Fault] | None = None
        self._running: Deferred[Success | Fault] | None = None
        self._theirs: Any = None

    def begin(self, ended: Ended) -> None:
        """Run it to its first await, which one that awaits nothing does not have: it needs no Deferred."""
        context, work = contextvars.copy_context(), self._run()
        self._ours = work
        try:
            awaited = context.run(work.send, None)
        except StopIteration as e:
            ended(e.value)
            return
        self._running = context.run(Deferred.fromCoroutine, _go_on(work, awaited))
        self._running.addErrback(_fault_of).addCallback(ended)

    async def _run(self) -> Success | Fault:
        try:
            answer = self._theirs = self._handler.run(self._context)
            if not inspect.isawaitable(answer):
                return Fault(f"{name_of(self._handler)} is served as async and returned nothing that can be awaited")
            value = await answer
            # as everywhere in Twisted, a Deferred that is returned is waited for
            while isinstance(value, Deferred):
                value = await value
            return _returned(value)
        # also those that would end a thread or a process: this is the handler's, not ours
        except BaseException as e:
            return fault(e)
        finally:
            self._theirs = None

    def cancel(self) -> None:
        """Raise CancelledError at what it awaits."""
        if self._ours is not None and inspect.getcoroutinestate(self._ours) == inspect.CORO_RUNNING:
            # the handler itself has led here: it must come to its await first
            self._clock.callLater(0, self.cancel)
        elif self._running is not None:
            self._running.cancel()

    def place(self) -> Place:
        """The await at which it is."""
        at, frames = self._theirs, []
        while inspect.iscoroutine(at):
            if at.cr_frame is not None:
                frames.append(at.cr_frame)
            at = at.cr_await
        return _place(self._handler, frames)


def _go_on(work: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine that has begun, from what it awaits first."""
    while True:
        step: Callable[[], Any]
        try:
            answer = yield awaited
        except GeneratorExit:
            work.close()
            raise
        except BaseException as e:
            step = functools.partial(work.throw, e)
        else:
            step = functools.partial(work.send, answer)
        try:
            awaited = step()
        except StopIteration as e:
            result: T = e.value
            return result


class InThread:
    """A handler that blocks. A thread cannot be ended from outside: cancelling only tells it."""

    patience: float | None = 0.0
    stubborn = "does not return, and its thread cannot be ended"

    def __init__(self, handler: ITaskHandler, context: TaskContext, relay: Relay, threads: IThreads) -> None:
        self._handler = handler
        self._context = context
        self._relay = relay
        self._threads = threads
        self._thread: int | None = None
        self._cancelled = False

    def begin(self, ended: Ended) -> None:
        """Have a thread run it."""

        def over(ending: Success | Fault) -> None:
            self._relay.hear()
            ended(ending)

        def work() -> None:
            ending = Fault("cancelled before it began") if self._cancelled else self._run()
            self._threads.wake(functools.partial(over, ending))

        self._threads.call(work)

    def _run(self) -> Success | Fault:
        self._thread = threading.get_ident()
        try:
            return _returned(self._handler.run(self._context))
        except BaseException as e:
            return fault(e)
        finally:
            self._thread = None

    def cancel(self) -> None:
        """Only an attempt that looks at ``cancelled`` ends."""
        self._cancelled = True

    def place(self) -> Place:
        """Where its thread is in this moment."""
        thread = self._thread
        top = sys._current_frames().get(thread) if thread is not None else None
        if top is None or self._thread != thread:
            return Place(name_of(self._handler))
        # below this file are the thread pool's own; what the context does for the handler is not shown either
        stack = itertools.takewhile(lambda f: f.f_code.co_filename != __file__, _outward(top))
        return _place(self._handler, [f for f in stack if f.f_code.co_filename not in OWN_FILES][::-1])


class InChild:
    """A handler in a child process, or a program. Stopping ends all of it."""

    patience: float | None = None
    stubborn = ""

    def __init__(self, name: str, start: Callable[[], Job], over: Callable[[], None] | None = None) -> None:
        self._name = name
        self._start = start
        self._over = over
        self._job: Job | None = None

    def begin(self, ended: Ended) -> None:
        """Hand it over to the nursery."""

        def over(ending: Success | Fault) -> None:
            if self._over is not None:
                self._over()
            ended(ending)

        try:
            self._job = self._start()
        except OSError as e:
            over(Fault(error_line(e)))
        else:
            self._job.done.addCallback(lambda ending: over(of_child(ending)))

    def cancel(self) -> None:
        """End it with all that it has started."""
        if self._job is not None:
            self._job.stop()

    def place(self) -> Place:
        """In a process of its own."""
        return Place(self._name)


def of_child(ending: Ending) -> Success | Fault:
    """What the end of a child process means."""
    if isinstance(ending, Returned):
        return _returned_text(ending.value)
    if isinstance(ending, Raised):
        if ending.rejected:
            return Fault(one_line(ending.message) or ending.type, final=True)
        if ending.retry:
            return Fault(one_line(ending.message) or "to be tried again", after=retry_delay(ending.retry_after))
        words = ": ".join(each for each in (ending.type, ending.message) if each)
        return Fault(one_line(words), cut_trace(ending.trace) or None)
    if isinstance(ending, Exited):
        return of_program(ending)
    return Fault(one_line(f"the child process ended: {ending.reason}"))


def of_program(exited: Exited) -> Success | Fault:
    """What the end of a program means: with status 0 its last output is the result."""
    tail = [line for each in exited.tail for line in clean_lines(each)[0]]
    if exited.status == 0 and exited.reason is None:
        return success({"status": 0, "seconds": round(exited.seconds, 3), "output": last_output(tail)})
    what = exited.reason
    if what is None and exited.signal is not None:
        what = f"killed by {_signal_name(exited.signal)}"
    elif what is None:
        what = f"exited with status {exited.status}"
    said = next((line.strip() for line in reversed(tail) if line.strip()), "")
    return Fault(one_line(f"{what}: {said}" if said else what), cut_trace("\n".join(tail)) or None)


def last_output(lines: Sequence[str]) -> str:
    """The last of the lines, whole ones if possible, in at most MAX_OUTPUT_BYTES of UTF-8."""
    raw = "\n".join(lines).encode()
    if len(raw) > MAX_OUTPUT_BYTES:
        raw = raw[-MAX_OUTPUT_BYTES:]
        raw = raw[raw.find(b"\n") + 1 :]
    return raw.decode(errors="ignore")


def name_of(handler: ITaskHandler) -> str:
    """What people call the handler's code."""
    function = getattr(handler, "function", None)
    return f"{getattr(function, '__qualname__', None) or type(handler).__name__}()"


def _fault_of(failure: Failure) -> Fault:
    assert failure.value is not None
    return fault(failure.value)


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _returned(value: Any) -> Success | Fault:
    """What a handler's function returned, unless it is work that nobody would do."""
    if inspect.iscoroutine(value):
        value.close()
        return Fault("returned a coroutine that was not awaited: make the handler an async def, or await it")
    if isinstance(value, Deferred):
        value.addErrback(lambda _: None)
        return Fault("returned a Deferred from a thread: make the handler an async def that awaits it")
    return success(value)


def _returned_text(raw: bytes) -> Success | Fault:
    """A child's result: whatever wrote there, only what can be stored goes on."""
    try:
        return success(msgspec.json.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        return Fault(f"the result cannot be stored: {error_line(e)}")


def _place(handler: ITaskHandler, frames: Sequence[FrameType]) -> Place:
    """In words: the innermost frame in the handler's own file, or else the innermost of all."""
    if not frames:
        return Place(name_of(handler))
    file = _file_of(handler)
    at = next((f for f in reversed(frames) if f.f_code.co_filename == file), frames[-1])
    where = f"{name_of(handler)} at {at.f_code.co_filename}:{at.f_lineno} in {at.f_code.co_name}"
    stack = traceback.StackSummary.extract((f, f.f_lineno) for f in frames)
    return Place(where, cut_trace("".join(stack.format()).rstrip()))


def _file_of(handler: ITaskHandler) -> str | None:
    function = inspect.unwrap(getattr(handler, "function", None) or type(handler).run)
    code = getattr(function, "__code__", None)
    return None if code is None else code.co_filename


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
