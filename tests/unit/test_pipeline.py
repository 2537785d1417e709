"""taskd.server.pipeline: when requests begin, the order of their replies, and when reading stops."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import UNSET

from taskd.model.errors import Conflict, TooLarge
from taskd.protocol import limits
from taskd.protocol.limits import MAX_PIPELINE
from taskd.server.pipeline import Call, RequestPipeline


class PipelineUser:
    """A pipeline, the calls that it has begun and the lines that it has written."""

    def __init__(self, **limits: int) -> None:
        self.begun: list[Call] = []
        self.written: list[dict[str, Any]] = []
        self.congested: list[bool] = []
        self.closed = 0
        self.at_once = False
        self.pipeline = RequestPipeline(self._start, self._write, self.congested.append, **limits)

    def _start(self, call: Call) -> None:
        self.begun.append(call)
        if self.at_once:
            call.succeed({"status": "success"})

    def _write(self, line: bytes) -> None:
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        self.written.append(json.loads(line))

    def send(self, *requests: dict[str, Any] | bytes) -> None:
        for request in requests:
            self.pipeline.receive(request if isinstance(request, bytes) else json.dumps(request).encode())

    def begun_actions(self) -> list[str]:
        """The actions that have begun, in order."""
        return [call.action.name for call in self.begun]

    def answer(self, index: int = 0) -> None:
        """Answer one of the calls that have begun."""
        self.begun[index].succeed({"status": "success", "n": index})

    def replies(self) -> list[Any]:
        """The written lines: the id of each reply, or the code of an error without id."""
        return [line.get("id", line.get("code", UNSET)) for line in self.written]

    def close(self) -> None:
        def done() -> None:
            self.closed += 1

        self.pipeline.close(done)


def ping(**fields: Any) -> dict[str, Any]:
    return {"action": "ping", **fields}


class TestOrder:
    def test_requests_with_ids_run_concurrently_and_are_answered_as_they_end(self) -> None:
        user = PipelineUser()
        user.send(ping(id=1), ping(id=2), ping(id=3))
        assert len(user.begun) == 3
        for index in (1, 2, 0):
            user.answer(index)
        assert user.replies() == [2, 3, 1]

    def test_null_is_an_id(self) -> None:
        user = PipelineUser()
        user.send(ping(id=None), ping(id=None))
        assert len(user.begun) == 2
        user.answer(1)
        assert user.written == [{"id": None, "ok": True, "status": "success", "n": 1}]

    def test_requests_without_ids_run_one_after_another(self) -> None:
        user = PipelineUser()
        user.send(ping(), ping(), ping())
        for index in range(3):
            assert len(user.begun) == index + 1
            user.answer(index)
        assert [line["n"] for line in user.written] == [0, 1, 2]
        assert "id" not in user.written[0]

    def test_a_request_without_id_waits_for_earlier_requests_and_holds_later_ones(self) -> None:
        user = PipelineUser()
        user.send(ping(id=1), ping(id=2), ping(), ping(id=3), ping(id=4))
        assert len(user.begun) == 2
        user.answer(1)
        assert len(user.begun) == 2
        user.answer(0)
        assert len(user.begun) == 3
        user.answer(2)
        assert len(user.begun) == 5

    @pytest.mark.parametrize(
        "exclusive",
        [
            {"action": "login", "username": "a", "password": "b"},
            {"action": "register", "username": "a", "password": "b"},
            {"action": "logout"},
        ],
    )
    def test_a_request_that_changes_the_login_runs_alone(self, exclusive: dict[str, Any]) -> None:
        user = PipelineUser()
        user.send(ping(id=1), {**exclusive, "id": 2}, ping(id=3), ping(id=4))
        assert user.begun_actions() == ["ping"]
        user.answer()
        assert user.begun_actions() == ["ping", exclusive["action"]]
        user.answer(1)
        assert user.begun_actions() == ["ping", exclusive["action"], "ping", "ping"]

    def test_two_logins_run_one_after_the_other(self) -> None:
        user = PipelineUser()
        login = {"action": "login", "token": "t"}
        user.send({**login, "id": 1}, {**login, "id": 2})
        assert len(user.begun) == 1
        user.answer()
        assert len(user.begun) == 2

    def test_an_error_without_id_is_sent_in_order(self) -> None:
        user = PipelineUser()
        user.send(ping(id=1), b"nonsense", ping(id=2), b"{}")
        assert user.replies() == [] and len(user.begun) == 1
        user.answer()
        assert user.replies() == [1, "bad_json"]
        user.answer(1)
        assert user.replies() == [1, "bad_json", 2, "bad_request"]

    def test_an_error_with_id_is_sent_at_once(self) -> None:
        user = PipelineUser()
        user.send(ping(), {"action": "nothing", "id": 7}, {"id": 8, "action": "new_task"})
        assert user.replies() == [7, 8]

    def test_the_error_for_an_overlong_line_is_sent_in_order(self) -> None:
        user = PipelineUser()
        user.pipeline.refuse(TooLarge("too long"))
        user.send(ping())
        user.pipeline.refuse(TooLarge("too long"))
        user.send(ping())
        assert user.replies() == ["too_large"]
        user.answer()
        assert user.replies() == ["too_large", UNSET, "too_large"]
        assert len(user.begun) == 2

    def test_every_line_gets_exactly_one_reply(self) -> None:
        user = PipelineUser()
        user.send(b"", ping(id=1), b"[]", {"action": "x"}, ping(), b"\xff", ping(id=2), {"action": "login", "id": 3})
        while user.pipeline.busy:
            for call in user.begun:
                if not call.answered:
                    call.fail(Conflict("no"))
        assert len(user.written) == 8

    def test_a_call_cannot_be_answered_twice(self) -> None:
        user = PipelineUser()
        user.send(ping(id=1))
        user.answer()
        with pytest.raises(RuntimeError):
            user.answer()
        assert user.replies() == [1]

    def test_many_requests_answered_at_once_do_not_recurse(self) -> None:
        """With a thousand pings behind a slow login, one more stack frame for each would overflow the stack."""
        user = PipelineUser()
        user.send({"action": "login", "token": "t"}, *(ping() for _ in range(MAX_PIPELINE - 2)))
        user.at_once = True
        user.answer()
        assert len(user.written) == MAX_PIPELINE - 1

    def test_a_reply_that_is_too_long_becomes_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("taskd.server.pipeline.MAX_REPLY_BYTES", 100)
        user = PipelineUser()
        user.send(ping(id=1))
        user.begun[0].succeed({"status": "success", "x": "y" * 100})
        [reply] = user.written
        assert (reply["id"], reply["code"]) == (1, "too_large") and "fewer" in reply["message"]


class TestCongestion:
    def test_reading_stops_when_the_pipeline_is_full_and_resumes_at_half(self) -> None:
        user = PipelineUser(max_requests=4)
        user.send(*(ping(id=n) for n in range(3)))
        assert user.congested == []
        user.send(ping(id=3))
        assert user.congested == [True]
        user.answer(0)
        assert user.congested == [True]
        user.answer(1)
        assert user.congested == [True, False]

    def test_waiting_requests_count(self) -> None:
        user = PipelineUser(max_requests=4)
        user.send(*(ping() for _ in range(4)))
        assert user.congested == [True]

    def test_errors_that_wait_to_be_sent_count(self) -> None:
        """A client could make the server keep any number of them otherwise."""
        user = PipelineUser(max_requests=4)
        user.send(ping(), b"", b"", b"")
        assert user.congested == [True]
        user.answer()
        assert user.congested == [True, False]

    def test_the_bytes_of_requests_count(self) -> None:
        user = PipelineUser(max_bytes=1000)
        user.send(ping(id=1, x="y" * 300), ping(id=2, x="y" * 300))
        assert user.congested == []
        user.send(ping(id=3, x="y" * 500))
        assert user.congested == [True]
        user.answer(0)
        user.answer(1)
        assert user.congested == [True]
        user.answer(2)
        assert user.congested == [True, False]

    def test_reading_resumes_after_waiting_errors_were_sent(self) -> None:
        user = PipelineUser(max_bytes=1000)
        user.send(ping(), *[b""] * 10)
        assert user.congested[:1] == [True]
        user.answer()
        assert user.congested == [True, False]

    def test_requests_answered_at_once_never_fill_the_pipeline(self) -> None:
        user = PipelineUser(max_requests=4)
        user.at_once = True
        user.send(*(ping(id=n) for n in range(100)), *(ping() for n in range(100)))
        assert user.congested == [] and len(user.written) == 200

    def test_the_pipeline_holds_several_of_the_longest_lines(self) -> None:
        assert limits.MAX_PIPELINE_BYTES >= 4 * limits.MAX_LINE_BYTES


class TestClosing:
    def test_an_idle_pipeline_is_closed_at_once(self) -> None:
        user = PipelineUser()
        user.close()
        assert user.closed == 1

    def test_the_pipeline_is_closed_after_the_last_reply(self) -> None:
        user = PipelineUser()
        user.send(ping(), ping())
        user.close()
        user.answer(0)
        assert user.closed == 0
        user.answer(1)
        assert user.closed == 1

    def test_it_is_closed_only_once(self) -> None:
        user = PipelineUser()
        user.send({"action": "login", "token": "t"}, ping(), ping())
        user.at_once = True
        user.close()
        user.answer()
        assert user.closed == 1 and len(user.written) == 3

    def test_requests_before_the_last_reply_are_still_answered(self) -> None:
        user = PipelineUser()
        user.send(ping(id=1))
        user.close()
        user.send(ping(id=2))
        user.answer(0)
        assert user.closed == 0
        user.answer(1)
        assert user.closed == 1 and user.replies() == [1, 2]

    def test_requests_after_closing_are_ignored(self) -> None:
        user = PipelineUser()
        user.close()
        user.send(ping(id=1), b"nonsense")
        user.pipeline.refuse(TooLarge("too long"))
        assert user.begun == [] and user.written == []

    def test_an_abandoned_pipeline_begins_and_writes_nothing_more(self) -> None:
        user = PipelineUser(max_requests=4)
        user.send(ping(id=1), ping(), ping(id=2), b"")
        user.close()
        user.pipeline.abandon()
        user.answer(0)
        user.send(ping(id=3))
        assert len(user.begun) == 1 and user.written == [] and user.closed == 0
        assert not user.pipeline.busy
