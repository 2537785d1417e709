"""What the watchdog decides: when to beat for its worker, whom to name, when to end the worker, and what to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from taskd.watchdog.board import GATE_SECONDS, Board, Note
from taskd.watchdog.culprit import Suspicion, Usage, suspect
from taskd.watchdog.dumps import Frame, crash_reason, parse, place

STEP_SECONDS = 0.1
NAME_SECONDS = 1.0
"""How long the reactor stands still before the watchdog names what blocks it."""
SAMPLE_SECONDS = 0.3
BEAT_SECONDS = 1.5
"""How long no beat of the reactor is accepted before the watchdog beats."""
VOUCH_SECONDS = 1.0
GIVE_BACK_SECONDS = 2.0
"""How long the reactor stands still before the watchdog gives back what has not begun, and then with each beat: a
server that has not yet heard of the standstill may assign more."""
RETRY_SECONDS = 0.5
LINE_CHARS = 1000
STOPPED_SECONDS = 0.5
"""Seconds between two times that what a stopped worker has not begun goes back."""
STOPPED = "it was stopped by a signal or a debugger"
CUT_OFF_SECONDS = 3.0
CUT_OFF = "its own beats do not reach the database"
"""The text for the store while the reactor runs, and for so long no beat of its was accepted."""
STANDS_STILL = "its reactor stands still"
"""The text for the store while the watchdog has not found out yet what blocks the worker."""


class IWorkerProcess(Protocol):
    """The worker's process, seen from outside."""

    def stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it."""

    def usage(self) -> Mapping[int, Usage]:
        """What each of its threads has used."""

    def stack(self, native: int) -> str:
        """Have one of its threads dump its stack; an empty text if it does not."""

    def crash(self) -> str:
        """What it has dumped when it crashed; an empty text if it did not."""

    def stop(self) -> None:
        """SIGSTOP."""

    def kill(self) -> None:
        """SIGKILL."""


class IBeats(Protocol):
    """See :class:`taskd.store.postgres.beats.BeatConnection`. Every method may raise any exception."""

    def vouch(self, name: str, stalled: str | None) -> int:
        """Beat for the worker."""

    def stopped(self, name: str, stalled: str) -> int:
        """The worker is stopped. Returns its last beat."""

    def give_back(self, name: str, beat: int, begun: Sequence[tuple[int, int]]) -> int:
        """Give back what the worker holds and has not begun."""

    def gone(
        self, name: str, culprit: tuple[int, int, str] | None, among: Sequence[tuple[int, int]] | None = None
    ) -> bool:
        """The worker is dead."""


class _Sample(NamedTuple):
    at: float
    notes: list[Note]
    usage: Mapping[int, Usage]


class _Named(NamedTuple):
    at: float
    note: Note | None
    frame: Frame | None


class Watch:
    """Watches one worker from its start to its death. ``clock`` is monotonic. ``say`` writes a line of the log, with
    its level. After ``stall`` seconds of standstill the worker is ended; None: never. Its death is reported for
    ``lease`` seconds while the store is away. ``beats`` is None without a store."""

    def __init__(
        self,
        board: Board,
        process: IWorkerProcess,
        beats: IBeats | None,
        clock: Callable[[], float],
        say: Callable[[str, str], None],
        *,
        stall: float | None,
        lease: float,
    ) -> None:
        self._board, self._process, self._beats, self._clock, self._say = board, process, beats, clock, say
        self._stall = stall
        self._lease = lease
        now = clock()
        self._ticks, self._moved_at = board.ticks, now
        self._accepted, self._beat_at = (board.name, board.beats), now
        self._resumed_at = now
        """When the reactor began to run, or ran again after it had stood still."""
        self._vouched_at = float("-inf")
        self._refused: tuple[str, int] | None = None
        self._trouble = False
        self._sample: _Sample | None = None
        self._named: _Named | None = None
        self._stalled: str | None = None
        self._raised_at: float | None = None
        """When the gate was raised in this standstill, or found raised by a watchdog that has died since."""
        self._gives_back = False
        """What has not begun goes back with the next beat."""
        self._stopped_next: float | None = None
        """While the worker is stopped: when what it has not begun goes back again."""
        self._killed = self._told = False
        self._culprit: tuple[int, int, str] | None = None
        self._among: Sequence[tuple[int, int]] = ()
        self._deadline: float | None = None

    # -- while it lives

    def step(self) -> float:
        """Look, and do what is due. Returns the seconds after which to look again."""
        if self._killed:
            return STEP_SECONDS
        now = self._clock()
        if self._board.ticks != self._ticks:
            self._runs(now)
        if (accepted := (self._board.name, self._board.beats)) != self._accepted:
            self._accepted, self._beat_at = accepted, now
        was_stopped, self._stopped_next = self._stopped_next, None
        if (now - self._moved_at >= STEP_SECONDS * 3 or was_stopped is not None) and self._process.stopped():
            # a signal or a debugger has stopped it: no handler blocks it, and the watchdog must not beat for it
            self._moved_at = self._resumed_at = now
            self._sample, self._gives_back = None, False
            self._stopped_next = now if was_stopped is None else was_stopped
            return self._while_stopped(now)
        told = self._stalled
        try:
            self._look(now)
        finally:
            late = now - self._beat_at >= BEAT_SECONDS and now - self._vouched_at >= VOUCH_SECONDS
            if not self._killed and (late or told != self._stalled or self._may_give_back(now)):
                self._vouch(now)
        if self._raised_at == now:
            return 2 * GATE_SECONDS
        return SAMPLE_SECONDS if self._sample is not None else STEP_SECONDS

    def paused(self, seconds: float) -> None:
        """The watchdog itself did not run for so long, as when the machine was suspended: probably the worker did not
        either."""
        self._moved_at += seconds
        self._beat_at += seconds
        self._sample = None

    def _runs(self, now: float) -> None:
        if now - self._moved_at >= NAME_SECONDS:
            self._resumed_at = now
        if self._named is not None:
            self._say("info", f"the reactor runs again after {now - self._moved_at:.0f} s")
        self._ticks, self._moved_at = self._board.ticks, now
        self._sample = self._named = self._stalled = self._raised_at = None
        self._gives_back = False

    def _while_stopped(self, now: float) -> float:
        """Give back what a stopped worker has not begun. Returns the seconds after which to look again."""
        name = self._board.name
        if self._beats is None or not name or self._refused == self._accepted:
            return STEP_SECONDS
        if not self._gate_is_up(now):
            return 2 * GATE_SECONDS
        if self._stopped_next is not None and now >= self._stopped_next:
            self._stopped_next = now + STOPPED_SECONDS
            try:
                if beat := self._beats.stopped(name, STOPPED):
                    self._give_back(name, beat)
            except Exception as e:
                self._has_trouble(e)
        return STEP_SECONDS

    def _may_give_back(self, now: float) -> bool:
        """Whether what has not begun is to be given back now for the first time in this standstill. Raises the gate
        when it is time."""
        if now - self._moved_at < GIVE_BACK_SECONDS or self._beats is None or not self._board.name:
            return False
        if not self._gate_is_up(now):
            return False
        first, self._gives_back = not self._gives_back, True
        return first

    def _gate_is_up(self, now: float) -> bool:
        """Raise the gate if the worker has seen the last raising: for the first time, or again after it has run for a
        moment. Returns whether what has begun shows on the board."""
        if self._board.gate_seen:
            self._board.raise_gate()
            self._raised_at = now
        elif self._raised_at is None:
            self._raised_at = now
        return now - self._raised_at >= GATE_SECONDS

    def _look(self, now: float) -> None:
        """Name what blocks the reactor, and end the worker when it is time."""
        still = now - self._moved_at
        if still < NAME_SECONDS:
            return
        sample, named = self._sample, self._named
        overdue = -1.0 if self._stall is None else still - self._stall
        # look once more just before the end: it spends an attempt of whoever is named
        if overdue >= NAME_SECONDS or (overdue >= 0 and named is not None and now - named.at <= NAME_SECONDS):
            self._kill(still)
        elif sample is not None:
            if now - sample.at >= SAMPLE_SECONDS:
                self._sample = None
                self._name(now, sample)
        elif named is None or (now - named.at > NAME_SECONDS and (overdue >= -NAME_SECONDS or self._has_left(named))):
            self._sample = _Sample(now, self._board.notes(), self._process.usage())

    def _has_left(self, named: _Named) -> bool:
        """Whether something else blocks the reactor by now, in the same turn of the reactor."""
        return named.note is not None and named.note not in self._board.notes()

    def _name(self, now: float, sample: _Sample) -> None:
        usage, notes = self._process.usage(), self._board.notes()
        notes = [note for note in notes if note in sample.notes]
        found = suspect(self._board.reactor_thread, notes, sample.usage, usage, now - sample.at)
        frame = self._place(found.native)
        if self._board.ticks != self._ticks:
            return  # it runs again: what was seen may be something else
        before, self._named = self._named, _Named(now, found.note, frame)
        what = _describe(found, frame)
        if before is None or before.note != found.note:
            self._say("warn", f"the reactor has stood still for {_seconds(now - self._moved_at)}: {what}")
        self._stalled = _line(what)

    def _place(self, native: int) -> Frame | None:
        dump = self._process.stack(native) or self._process.stack(native)
        current = parse(dump).current
        return place(current.frames) if current is not None else None

    def _kill(self, still: float) -> None:
        named = self._named
        place = f" at {named.frame}" if named and named.frame else ""
        self._say("critical", f"the worker is ended: its reactor has stood still for {_seconds(still)}{place}")
        if named is not None and (note := named.note) is not None:
            reason = f"blocked the worker for {_seconds(still)}{place}"
            self._culprit = note.task_id, note.dispatch, _line(reason)
        self._killed = True
        # A service manager may end the watchdog as soon as the worker is dead, so the report goes first. Nothing
        # of the worker runs meanwhile.
        self._process.stop()
        self._deadline = self._clock() + self._lease
        self.tell()
        self._process.kill()

    def _vouch(self, now: float) -> None:
        name = self._board.name
        if self._beats is None or not name or self._refused == self._accepted:
            return
        if self._process.stopped():
            return
        self._vouched_at = now
        accepted = self._accepted
        try:
            beat = self._beats.vouch(name, self._trouble_of_worker(now))
            if beat and self._gives_back:
                self._give_back(name, beat)
        except Exception as e:
            self._has_trouble(e)
            return
        if self._trouble:
            self._say("info", "the watchdog has reached the store again")
        self._trouble = False
        if not beat:
            # The worker takes another name when its reactor runs. A beat that is accepted later counts more.
            self._refused = accepted
            self._say("warn", f"the store counts {_line(name)} as dead: the watchdog does not beat for this name again")

    def _trouble_of_worker(self, now: float) -> str | None:
        """What keeps the worker from its work, for people: servers assign nothing to it meanwhile."""
        if self._stalled is not None or self._gives_back:
            return self._stalled or STANDS_STILL
        return CUT_OFF if now - max(self._beat_at, self._resumed_at) >= CUT_OFF_SECONDS else None

    def _has_trouble(self, error: Exception) -> None:
        if not self._trouble:
            self._say("warn", f"the watchdog cannot reach the store: {_line(str(error))}")
        self._trouble = True

    def _give_back(self, name: str, beat: int) -> None:
        """Give back what has not begun. If the reactor runs again after the gate is looked at here, its next beat makes
        ``beat`` an old one, and the store does nothing."""
        board = self._board
        waited = self._raised_at is not None and self._clock() - self._raised_at >= GATE_SECONDS
        if board.gate_seen or not waited or board.ticks != self._ticks:
            return
        begun = board.begun()
        if begun is None or self._beats is None:
            return
        count = self._beats.give_back(name, beat, begun)
        if count:
            self._say("warn", f"{count} tasks that the worker has not begun are given back")

    # -- after its death

    def dead(self) -> None:
        """The worker has died, and not in order."""
        self._deadline = self._clock() + self._lease
        dump = self._process.crash()
        crash = parse(dump)
        if self._killed:
            return
        if crash.fatal is None:
            # A handler on the reactor that kills its process is in it then. If none is, it was a thread, which may
            # work for a handler that waits.
            notes = self._board.notes()
            if any(note.native == self._board.reactor_thread for note in notes):
                self._among = [(note.task_id, note.dispatch) for note in notes]
            within = f" in {', '.join(map(_handler, notes[:3]))}" if notes else ""
            self._say("error", f"the worker has died{within}")
            return
        reason = crash_reason(crash.fatal)
        current = crash.current
        note = current and next((n for n in self._board.notes() if n.thread == current.thread), None)
        frame = place(current.frames) if current is not None else None
        if frame is not None:
            reason += f" at {frame}"
        if note is not None:
            self._culprit = note.task_id, note.dispatch, _line(reason)
            self._say("error", f"the worker has died: {_handler(note)} {reason}\n{dump}")
        else:
            self._say("error", f"the worker has died: it {reason}, in no handler that is known\n{dump}")

    def tell(self) -> float | None:
        """Tell the store that the worker is gone. Returns the seconds after which to try again, None when that is
        over."""
        name = self._board.name
        if self._beats is None or not name or self._told:
            return None
        try:
            # what has not begun has no part in it
            self._beats.gone(name, self._culprit, self._among or self._board.begun())
            self._told = True
            return None
        except Exception as e:
            if self._deadline is not None and self._clock() < self._deadline:
                # the connection may have been lost long ago: the next try makes a new one
                pause, self._trouble = RETRY_SECONDS if self._trouble else 0.0, True
                return pause
            self._say("error", f"the watchdog could not tell the store of the worker's death: {_line(str(e))}")
            return None


def _describe(found: Suspicion, frame: Frame | None) -> str:
    at = f" at {frame}" if frame else ""
    if found.note is not None:
        return f"{_handler(found.note)} blocks it{at}"
    if found.among:
        handlers = ", ".join(map(_handler, found.among[:3]))
        return f"more than one handler may block it: {handlers}; the first is{at or ' at an unknown place'}"
    return f"no handler is known to block it{'; it is' + at if at else ''}"


def _handler(note: Note) -> str:
    return f"task {note.task_id} ({_line(note.kind)})"


def _seconds(seconds: float) -> str:
    return f"{int(seconds)} s"


def _line(text: str) -> str:
    """The text as one line that can be stored."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:LINE_CHARS]
