"""taskd.server.pipeline: which request begins when, in which order replies go out, and when to read no more."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import UNSET

from taskd.model.errors import Conflict, TooLarge
from taskd.protocol import limits
from taskd.protocol.limits import MAX_PIPELINE
from taskd.server.pipeline import Call, RequestPipeline


class Talk:
    """A session, the calls it has begun and the lines it has written."""

    def __init__(self, **limits: int) -> None:
        self.begun: list[Call] = []
        self.written: list[dict[str, Any]] = []
        self.congested: list[bool] = []
        self.closed = 0
        self.at_once = False
        self.session = RequestPipeline(self._start, self._write, self.congested.append, **limits)

    def _start(self, call: Call) -> None:
        self.begun.append(call)
        if self.at_once:
            call.succeed({"status": "success"})

    def _write(self, line: bytes) -> None:
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        self.written.append(json.loads(line))

    def send(self, *requests: dict[str, Any] | bytes) -> None:
        for request in requests:
            self.session.receive(request if isinstance(request, bytes) else json.dumps(request).encode())

    def names(self) -> list[str]:
        """Actions that have begun."""
        return [call.action.name for call in self.begun]

    def answer(self, index: int = 0) -> None:
        """One of those that have begun is done."""
        self.begun[index].succeed({"status": "success", "n": index})

    def replies(self) -> list[Any]:
        """What has been written: ids of replies, codes of errors without id."""
        return [line.get("id", line.get("code", UNSET)) for line in self.written]

    def close(self) -> None:
        def done() -> None:
            self.closed += 1

        self.session.close(done)


def ping(**fields: Any) -> dict[str, Any]:
    return {"action": "ping", **fields}


class TestOrder:
    def test_requests_with_ids_run_side_by_side_and_are_answered_as_they_end(self) -> None:
        talk = Talk()
        talk.send(ping(id=1), ping(id=2), ping(id=3))
        assert len(talk.begun) == 3
        for index in (1, 2, 0):
            talk.answer(index)
        assert talk.replies() == [2, 3, 1]

    def test_null_is_an_id(self) -> None:
        talk = Talk()
        talk.send(ping(id=None), ping(id=None))
        assert len(talk.begun) == 2
        talk.answer(1)
        assert talk.written == [{"id": None, "ok": True, "status": "success", "n": 1}]

    def test_requests_without_ids_run_one_after_another(self) -> None:
        talk = Talk()
        talk.send(ping(), ping(), ping())
        for index in range(3):
            assert len(talk.begun) == index + 1
            talk.answer(index)
        assert [line["n"] for line in talk.written] == [0, 1, 2]
        assert "id" not in talk.written[0]

    def test_a_request_without_id_waits_for_those_before_it_and_stops_those_behind(self) -> None:
        talk = Talk()
        talk.send(ping(id=1), ping(id=2), ping(), ping(id=3), ping(id=4))
        assert len(talk.begun) == 2
        talk.answer(1)
        assert len(talk.begun) == 2
        talk.answer(0)
        assert len(talk.begun) == 3
        talk.answer(2)
        assert len(talk.begun) == 5

    @pytest.mark.parametrize(
        "exclusive",
        [
            {"action": "login", "username": "a", "password": "b"},
            {"action": "register", "username": "a", "password": "b"},
            {"action": "logout"},
        ],
    )
    def test_so_does_one_that_changes_who_is_logged_in(self, exclusive: dict[str, Any]) -> None:
        talk = Talk()
        talk.send(ping(id=1), {**exclusive, "id": 2}, ping(id=3), ping(id=4))
        assert talk.names() == ["ping"]
        talk.answer()
        assert talk.names() == ["ping", exclusive["action"]]
        talk.answer(1)
        assert talk.names() == ["ping", exclusive["action"], "ping", "ping"]

    def test_two_that_exclude_each_other(self) -> None:
        talk = Talk()
        login = {"action": "login", "token": "t"}
        talk.send({**login, "id": 1}, {**login, "id": 2})
        assert len(talk.begun) == 1
        talk.answer()
        assert len(talk.begun) == 2

    def test_a_refusal_without_id_is_said_in_its_turn(self) -> None:
        talk = Talk()
        talk.send(ping(id=1), b"nonsense", ping(id=2), b"{}")
        assert talk.replies() == [] and len(talk.begun) == 1
        talk.answer()
        assert talk.replies() == [1, "bad_json"]
        talk.answer(1)
        assert talk.replies() == [1, "bad_json", 2, "bad_request"]

    def test_a_refusal_with_id_is_said_at_once(self) -> None:
        talk = Talk()
        talk.send(ping(), {"action": "nothing", "id": 7}, {"id": 8, "action": "new_task"})
        assert talk.replies() == [7, 8]

    def test_what_was_no_line_is_refused_in_its_turn(self) -> None:
        talk = Talk()
        talk.session.refuse(TooLarge("too long"))
        talk.send(ping())
        talk.session.refuse(TooLarge("too long"))
        talk.send(ping())
        assert talk.replies() == ["too_large"]
        talk.answer()
        assert talk.replies() == ["too_large", UNSET, "too_large"]
        assert len(talk.begun) == 2

    def test_every_line_gets_exactly_one_reply(self) -> None:
        talk = Talk()
        talk.send(b"", ping(id=1), b"[]", {"action": "x"}, ping(), b"\xff", ping(id=2), {"action": "login", "id": 3})
        while talk.session.busy:
            for call in talk.begun:
                if not call.answered:
                    call.fail(Conflict("no"))
        assert len(talk.written) == 8

    def test_a_call_cannot_be_answered_twice(self) -> None:
        talk = Talk()
        talk.send(ping(id=1))
        talk.answer()
        with pytest.raises(RuntimeError):
            talk.answer()
        assert talk.replies() == [1]

    def test_a_long_queue_that_is_answered_at_once_does_not_nest(self) -> None:
        """A thousand pings behind a slow login: one stack frame more for each would be too many."""
        talk = Talk()
        talk.send({"action": "login", "token": "t"}, *(ping() for _ in range(MAX_PIPELINE - 2)))
        talk.at_once = True
        talk.answer()
        assert len(talk.written) == MAX_PIPELINE - 1

    def test_a_reply_that_is_too_long_becomes_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("taskd.server.pipeline.MAX_REPLY_BYTES", 100)
        talk = Talk()
        talk.send(ping(id=1))
        talk.begun[0].succeed({"status": "success", "x": "y" * 100})
        [reply] = talk.written
        assert (reply["id"], reply["code"]) == (1, "too_large") and "fewer" in reply["message"]


class TestPipeline:
    def test_no_more_is_read_once_it_is_full_and_again_when_half_is_done(self) -> None:
        talk = Talk(max_requests=4)
        talk.send(*(ping(id=n) for n in range(3)))
        assert talk.congested == []
        talk.send(ping(id=3))
        assert talk.congested == [True]
        talk.answer(0)
        assert talk.congested == [True]
        talk.answer(1)
        assert talk.congested == [True, False]

    def test_waiting_requests_count(self) -> None:
        talk = Talk(max_requests=4)
        talk.send(*(ping() for _ in range(4)))
        assert talk.congested == [True]

    def test_refused_lines_that_wait_for_their_turn_count(self) -> None:
        """Or a client could make us keep any number of them."""
        talk = Talk(max_requests=4)
        talk.send(ping(), b"", b"", b"")
        assert talk.congested == [True]
        talk.answer()
        assert talk.congested == [True, False]

    def test_so_does_their_length(self) -> None:
        talk = Talk(max_bytes=1000)
        talk.send(ping(id=1, x="y" * 300), ping(id=2, x="y" * 300))
        assert talk.congested == []
        talk.send(ping(id=3, x="y" * 500))
        assert talk.congested == [True]
        talk.answer(0)
        talk.answer(1)
        assert talk.congested == [True]
        talk.answer(2)
        assert talk.congested == [True, False]

    def test_the_length_of_refusals_that_wait(self) -> None:
        talk = Talk(max_bytes=1000)
        talk.send(ping(), *[b""] * 10)
        assert talk.congested[:1] == [True]
        talk.answer()
        assert talk.congested == [True, False]

    def test_what_is_answered_at_once_never_fills_it(self) -> None:
        talk = Talk(max_requests=4)
        talk.at_once = True
        talk.send(*(ping(id=n) for n in range(100)), *(ping() for n in range(100)))
        assert talk.congested == [] and len(talk.written) == 200

    def test_the_announced_limits_hold_several_of_the_longest_lines(self) -> None:
        assert limits.MAX_PIPELINE_BYTES >= 4 * limits.MAX_LINE_BYTES


class TestClosing:
    def test_at_once_when_there_is_nothing_to_answer(self) -> None:
        talk = Talk()
        talk.close()
        assert talk.closed == 1

    def test_once_all_has_been_answered(self) -> None:
        talk = Talk()
        talk.send(ping(), ping())
        talk.close()
        talk.answer(0)
        assert talk.closed == 0
        talk.answer(1)
        assert talk.closed == 1

    def test_only_once_however_the_answers_come(self) -> None:
        talk = Talk()
        talk.send({"action": "login", "token": "t"}, ping(), ping())
        talk.at_once = True
        talk.close()
        talk.answer()
        assert talk.closed == 1 and len(talk.written) == 3

    def test_what_comes_before_that_is_still_answered(self) -> None:
        talk = Talk()
        talk.send(ping(id=1))
        talk.close()
        talk.send(ping(id=2))
        talk.answer(0)
        assert talk.closed == 0
        talk.answer(1)
        assert talk.closed == 1 and talk.replies() == [1, 2]

    def test_what_comes_behind_it_is_not(self) -> None:
        talk = Talk()
        talk.close()
        talk.send(ping(id=1), b"nonsense")
        talk.session.refuse(TooLarge("too long"))
        assert talk.begun == [] and talk.written == []

    def test_an_abandoned_session_begins_and_writes_nothing_more(self) -> None:
        talk = Talk(max_requests=4)
        talk.send(ping(id=1), ping(), ping(id=2), b"")
        talk.close()
        talk.session.abandon()
        talk.answer(0)
        talk.send(ping(id=3))
        assert len(talk.begun) == 1 and talk.written == [] and talk.closed == 0
        assert not talk.session.busy
