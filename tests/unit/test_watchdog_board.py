"""The memory that a worker shares with its watchdog."""

from __future__ import annotations

import os
import threading
import unittest

import pytest

from taskd.watchdog import board
from taskd.watchdog.board import MAX_NAME_BYTES, Board


class BoardCase(unittest.TestCase):
    """The worker's board, and the same memory as the watchdog sees it."""

    def setUp(self) -> None:
        self.board = Board(threads=2)
        self.board.rename("before")
        fd = self.board.share()
        self.addCleanup(self.board.close)
        self.seen = Board.open(os.dup(fd))
        self.addCleanup(self.seen.close)

    def in_threads(self, *kinds: str) -> None:
        """Enter a handler in a new thread for each of them, at the same time, and leave it when the test ends."""
        go, entered = threading.Event(), threading.Barrier(len(kinds) + 1)

        def run(number: int, kind: str) -> None:
            self.board.enter(number, 1, kind)
            entered.wait(10)
            go.wait(10)
            self.board.leave()

        threads = [threading.Thread(target=run, args=each) for each in enumerate(kinds, 1)]
        for thread in threads:
            thread.start()
        entered.wait(10)

        def end() -> None:
            go.set()
            for thread in threads:
                thread.join(10)

        self.end = end
        self.addCleanup(end)

    def test_it_keeps_what_was_written_before_it_was_shared(self) -> None:
        assert self.seen.name == "before"

    def test_counters(self) -> None:
        for _ in range(3):
            self.board.tick()
        self.board.beaten()
        assert (self.seen.ticks, self.seen.beats, self.seen.is_stopping) == (3, 1, False)
        self.board.stopping()
        assert self.seen.is_stopping
        assert self.seen.reactor_thread == threading.get_native_id()

    def test_the_name(self) -> None:
        for name in ["host:1:ab", "ñ" * (MAX_NAME_BYTES // 2), "x" * MAX_NAME_BYTES, ""]:
            self.board.rename(name)
            assert self.seen.name == name
        with pytest.raises(ValueError):
            self.board.rename("x" * (MAX_NAME_BYTES + 1))

    def test_a_note_stands_while_its_handler_is_entered(self) -> None:
        self.board.enter(2**40, 7, "lab.crunch")
        [note] = self.seen.notes()
        assert note == (threading.get_ident(), threading.get_native_id(), 2**40, 7, "lab.crunch")
        self.board.leave()
        assert self.seen.notes() == []
        # leaving twice does nothing
        self.board.leave()
        self.board.enter(1, 1, "b")
        assert [note.kind for note in self.seen.notes()] == ["b"]

    def test_a_long_kind_is_cut(self) -> None:
        self.board.enter(1, 1, "ñ" * 100)
        assert [note.kind for note in self.seen.notes()] == ["ñ" * 44]

    def test_each_thread_has_its_own_note(self) -> None:
        self.in_threads("a", "b")
        self.board.enter(9, 1, "reactor")
        assert sorted((note.task_id, note.kind) for note in self.seen.notes()) == [(1, "a"), (2, "b"), (9, "reactor")]
        assert len({note.native for note in self.seen.notes()}) == 3
        self.board.leave()
        self.end()
        assert self.seen.notes() == []

    def test_one_thread_too_many_has_no_note(self) -> None:
        self.in_threads("a", "b", "c", "d")
        # the third place is the reactor's
        assert len(self.seen.notes()) == 2
        self.end()
        # threads that ended have left their room to others
        self.in_threads("e", "f")
        assert sorted(note.kind for note in self.seen.notes()) == ["e", "f"]

    def test_notes_are_whole_while_they_are_written(self) -> None:
        """A note never shows a part of one handler and a part of another."""
        end = threading.Event()

        def run() -> None:
            number = 0
            while not end.is_set():
                number += 1
                self.board.enter(number, number, str(number))
                self.board.leave()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            for _ in range(2000):
                for note in self.seen.notes():
                    assert str(note.task_id) == str(note.dispatch) == note.kind
        finally:
            end.set()
            thread.join(10)

    def test_what_has_begun_stands_until_it_is_forgotten(self) -> None:
        assert self.seen.begun() == []
        first, second = self.board.begins(2**40, 7), self.board.begins(2, 1)
        assert self.seen.begun() == [(2**40, 7), (2, 1)]
        self.board.forget(first)
        assert self.seen.begun() == [(2, 1)]
        # the place is used again
        assert self.board.begins(3, 2**31 - 1) == first
        assert sorted(self.seen.begun() or ()) == [(2, 1), (3, 2**31 - 1)]
        self.board.forget(second)
        self.board.forget(first)
        assert self.seen.begun() == []

    def test_what_had_begun_before_the_memory_was_shared_stands_there(self) -> None:
        private = Board(threads=2)
        at = private.begins(5, 1)
        fd = private.share()
        self.addCleanup(private.close)
        seen = Board.open(os.dup(fd))
        self.addCleanup(seen.close)
        assert seen.begun() == [(5, 1)]
        private.forget(at)
        assert seen.begun() == []

    def test_more_than_it_has_room_for(self) -> None:
        """Then the watchdog knows that it does not know all."""
        places = [self.board.begins(n + 1, 1) for n in range(board.BEGUN_TASKS)]
        assert len(set(places)) == len(self.seen.begun() or ()) == board.BEGUN_TASKS
        more = [self.board.begins(n, 2) for n in (1, 2)]
        assert self.seen.begun() is None
        self.board.forget(more[0])
        self.board.forget(places[0])
        assert self.seen.begun() is None
        self.board.forget(more[1])
        assert len(self.seen.begun() or ()) == board.BEGUN_TASKS - 1
        assert self.seen.notes() == []

    def test_an_entry_is_whole_or_free_while_it_is_written(self) -> None:
        """Places are used again and again, and no entry shows an id without its dispatch. Only one that is written at
        that very moment may show the dispatch of the next: the gate is read after it."""
        self.board.begins(77, 7)
        end = threading.Event()

        def run() -> None:
            number = 100
            while not end.is_set():
                number += 1
                self.board.forget(self.board.begins(number, number))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            for _ in range(300):
                found = self.seen.begun()
                assert found is not None and (77, 7) in found and len(found) <= 2
                assert all(dispatch for _, dispatch in found)
        finally:
            end.set()
            thread.join(10)

    def test_the_gate(self) -> None:
        assert (self.board.gate, self.seen.gate_seen) == (0, True)
        self.seen.raise_gate()
        assert (self.board.gate, self.seen.gate_seen) == (1, False)
        self.board.see_gate(1)
        assert self.seen.gate_seen

    def test_a_forked_child_writes_to_memory_of_its_own(self) -> None:
        self.board.enter(1, 1, "parent")
        child = os.fork()
        if not child:
            status = 1
            try:
                self.board.tick()
                self.board.beaten()
                self.board.leave()
                self.board.enter(2, 1, "child")
                self.board.begins(2, 1)
                self.board.see_gate(9)
                self.board.rename("child")
                self.board.stopping()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert (self.seen.ticks, self.seen.beats, self.seen.name, self.seen.is_stopping) == (0, 0, "before", False)
        assert [note.kind for note in self.seen.notes()] == ["parent"]
        assert (self.seen.begun(), self.seen.gate_seen) == ([], True)
        self.board.tick()
        assert self.seen.ticks == 1

    def test_after_its_end_it_takes_calls_as_before(self) -> None:
        self.board.close()
        self.board.tick()
        self.board.enter(1, 1, "a")
        self.board.leave()
        self.board.forget(self.board.begins(1, 1))
        assert (self.seen.ticks, self.board.gate) == (0, 0)
