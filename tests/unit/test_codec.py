"""taskd.protocol.codec, framing and registry: bytes to typed requests, and what is said to all others."""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from taskd.events.publisher import changes_of
from taskd.events.records import EventBatch, decode_batch
from taskd.model.errors import Conflict, RateLimited, TaskdError
from taskd.protocol import messages as m
from taskd.protocol.actions import ACTIONS
from taskd.protocol.codec import InvalidRequest, decode_request, encode_error, encode_reply
from taskd.protocol.framing import Framer
from taskd.protocol.limits import MAX_LINE_BYTES
from taskd.protocol.views import view
from tests.unit.stage import NOON, Stage

PING = '{"action":"ping"%s}'


def short(value: Any) -> str:
    """A test's name."""
    return repr(value)[:60]


def refused(line: bytes | str) -> tuple[TaskdError, Any]:
    """The error, and the id to which it belongs as JSON has it, UNSET when there is none."""
    with pytest.raises(InvalidRequest) as caught:
        decode_request(line if isinstance(line, bytes) else line.encode())
    error, request_id = caught.value.error, caught.value.request_id
    assert len(error.message) < 1000 and "\n" not in error.message
    assert "Traceback" not in error.message and "`" not in error.message
    return error, request_id if request_id is UNSET else json.loads(bytes(request_id))


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b" ", b"\t \r", b"[]", b"[1,2]", b"1", b"-1.5", b"null", b"true", b'"ping"', b"ping", b"GET / HTTP/1.1"),
        *(b"\xff", b'{"action":"ping","id":"\xc3"}', b'{"action":"ping","x":"\xed\xa0\x80"}', b"\x16\x03\x01\x02\x00"),
        *(
            PING.encode("utf-16"),
            PING.encode("utf-16-le"),
            PING.encode("utf-32"),
            b"\xef\xbb\xbf" + b'{"action":"ping"}',
        ),
        *(b'{"action":"ping","x":NaN}', b'{"action":"ping","x":Infinity}', b'{"action":"ping","x":-Infinity}'),
        *(b'{"action":"ping","id":"\\ud800"}', b'{"action":"ping","x":"\\udc00\\ud800"}', b'{"action":"\\ud800"}'),
        *(
            b"\0",
            b'\0{"action":"ping"}',
            b'{"action":"ping"}\0',
            b'{"action":"pi\0ng"}',
            b'{"action":"ping","x":"\x1f"}',
        ),
        *(b'{"action":"ping"', b'{"action":"ping",}', b'{"action":"ping"} {}', b"{'action':'ping'}", b"{action:1}"),
        *(b'{"action":"ping","x":01}', b'{"action":"ping","x":tru}', b'{"action":"ping","x":"\\q"}', b'{"action"}'),
        *(b"[" * 10_000, b'{"action":"ping","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}", b'{"a":' * 10_000),
        b'{"action":"ping","id":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        # something else is wrong as well, and msgspec stops there
        *(b'{"a":1}garbage', b"{} {}", b'{"action":5} x', b'{"action":5,"x":tru}', b'{"action":null]'),
        *(b'{"action":"nope"}]', b'{"action":"new_task"}{"task":"x"}', b'{"action":"new_task","payload":[]}}'),
        *(b'{"id":{}}x', b'{"action":"wait","task_ids":[1,"x"],}', b'{"action":"new_tasks","tasks":[5]'),
    ],
    ids=short,
)
def test_what_is_no_json_object_in_utf8(line: bytes) -> None:
    error, request_id = refused(line)
    assert error.code == "bad_json" and request_id is UNSET and error.field is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "the line is empty"),
        (b"[]", "one JSON object a line"),
        (b"\xff{}", "not UTF-8: byte 0 is 0xff"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a":1,}', "trailing comma"),
        (b'{"a":', "ends too early"),
        (b'{"action":"ping","x":' + b"[" * 10_000, "nested too deeply"),
    ],
    ids=short,
)
def test_a_refusal_says_what_to_do(line: bytes, words: str) -> None:
    assert words in refused(line)[0].message


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        ("{}", "action", "action is missing"),
        ('{"action":5}', "action", "expected string, got integer"),
        ('{"action":null}', "action", "expected string, got null"),
        ('{"action":"new_task"}', "task", "task is missing"),
        ('{"action":"new_task","task":null}', "task", "expected string, got null"),
        ('{"action":"new_task","task":"x","payload":[]}', "payload", "expected object, got array"),
        ('{"action":"new_task","task":"x","payload":null}', "payload", "expected object, got null"),
        ('{"action":"new_task","task":"x","payload":{"a":1e999}}', "payload", "out of range"),
        ('{"action":"new_task","task":"x","payload":{"a":[%s]}}' % ("9" * 5000), "payload", "out of range"),
        ('{"action":"new_task","task":"x","kind":[]}', "kind", "expected string, got array"),
        ('{"action":"new_task","task":"x","queue":5}', "queue", "expected string or null, got integer"),
        ('{"action":"new_task","task":"x","max_attempts":0}', "max_attempts", "expected integer >= 1"),
        ('{"action":"new_task","task":"x","max_attempts":101}', "max_attempts", "expected integer <= 100"),
        (
            '{"action":"new_task","task":"x","max_attempts":true}',
            "max_attempts",
            "expected integer or null, got boolean",
        ),
        ('{"action":"new_task","task":"x","max_attempts":2.5}', "max_attempts", "expected integer or null, got number"),
        ('{"action":"new_task","task":"x","timeout":0}', "timeout", "expected number > 0"),
        ('{"action":"new_task","task":"x","timeout":2592001}', "timeout", "expected number <= 2592000"),
        ('{"action":"new_task","task":"x","delay":-0.1}', "delay", "expected number >= 0"),
        ('{"action":"new_task","task":"x","delay":"5m"}', "delay", "expected number or null, got string"),
        ('{"action":"new_task","task":"x","run_at":"tomorrow"}', "run_at", "expected time in RFC 3339 form"),
        ('{"action":"new_task","task":"x","run_at":"2026-13-01T00:00:00Z"}', "run_at", "expected time in RFC 3339"),
        ('{"action":"new_task","task":"x","run_at":"2026-03-01T12:00:00"}', "run_at", "with a timezone component"),
        ('{"action":"new_task","task":"x","run_at":1772366400}', "run_at", "or null, got integer"),
        ('{"action":"new_tasks"}', "tasks", "tasks is missing"),
        ('{"action":"new_tasks","tasks":{}}', "tasks", "expected array, got object"),
        ('{"action":"new_tasks","tasks":[{"task":"x"},{}]}', "tasks[1].task", "tasks[1].task is missing"),
        ('{"action":"new_tasks","tasks":[{"task":"x"},5]}', "tasks[1]", "expected object, got integer"),
        ('{"action":"new_tasks","tasks":[{"task":"x","payload":{"a":1e999}}]}', "tasks[0].payload", "out of range"),
        ('{"action":"get_task","task_id":0}', "task_id", "expected integer >= 1"),
        ('{"action":"get_task","task_id":9223372036854775808}', "task_id", "expected integer <= 9223372036854775807"),
        ('{"action":"get_task","task_id":"1"}', "task_id", "expected integer, got string"),
        ('{"action":"get_tasks","limit":501}', "limit", "expected integer <= 500"),
        ('{"action":"get_log","task_id":1,"limit":1001}', "limit", "expected integer <= 1000"),
        ('{"action":"get_log","task_id":1,"tail":1}', "tail", "expected boolean, got integer"),
        ('{"action":"wait","task_ids":[1,"x"]}', "task_ids[1]", "expected integer, got string"),
        ('{"action":"wait","task_ids":[1],"timeout":-1}', "timeout", "expected number >= 0"),
        ('{"action":"wait","task_ids":[1],"timeout":"1"}', "timeout", "expected number, got string"),
        ('{"action":"login","token":5}', "token", "expected string or null, got integer"),
    ],
    ids=short,
)
def test_a_field_at_fault_is_named(line: str, field: str, words: str) -> None:
    error, request_id = refused(line)
    assert (error.code, error.field, request_id) == ("bad_request", field, UNSET)
    assert words in error.message
    _, request_id = refused(line.replace("{", '{"id":"mine",', 1).replace(",}", "}"))
    assert request_id == "mine"


@pytest.mark.parametrize("value", ["{}", "[]", "[1]", '{"a":1}', "1e999", "-1e999", "9" * 5000], ids=short)
def test_an_id_that_cannot_be_one(value: str) -> None:
    error, request_id = refused(PING % f',"id":{value}')
    assert (error.code, error.field, request_id) == ("bad_request", "id", UNSET)


def test_an_id_of_another_type_is_told_what_it_may_be() -> None:
    assert refused(PING % ',"id":{}')[0].message == "id: expected boolean or number or string or null, got object"


def test_an_unknown_action() -> None:
    error, request_id = refused('{"action":"destroy","id":7}')
    assert (error.code, error.field, request_id) == ("unknown_action", "action", 7)
    assert "'destroy'" in error.message and "new_task" in error.message
    assert refused('{"action":"Ping"}')[0].code == "unknown_action"
    assert refused(json.dumps({"action": "\0" * 10_000}))[0].code == "unknown_action"


@pytest.mark.parametrize(
    "value",
    [
        *(
            "1",
            "0",
            "-0",
            "-1",
            "18446744073709551616",
            "-9223372036854775809",
            "1" * 200,
            "1.0",
            "1.50",
            "1e2",
            "-0.0",
        ),
        *("0.1000000000000000055511151231257827", "null", "true", "false", '""', '"a"', '"ñ"', '"\\u00f1"', '"\\/"'),
        *('"\\n\\u0000"', '"\\ud83e\\udd80"', '"🦀"', '"null"', '"' + "x" * 60_000 + '"'),
    ],
    ids=short,
)
def test_an_id_is_echoed_as_it_was_written(value: str) -> None:
    action, _, request_id = decode_request((PING % f', "id" :\t{value} ').encode())
    assert action.name == "ping"
    assert (
        encode_reply({"status": "success"}, request_id) == f'{{"id":{value},"ok":true,"status":"success"}}\n'.encode()
    )
    assert encode_error(Conflict("no"), request_id).startswith(f'{{"id":{value},"ok":false,'.encode())


def test_no_id_is_not_null() -> None:
    _, _, request_id = decode_request((PING % "").encode())
    assert request_id is UNSET
    assert encode_reply({"status": "success"}, UNSET) == b'{"ok":true,"status":"success"}\n'


def test_an_error_says_code_and_message_and_where_it_helps_field_and_time() -> None:
    assert json.loads(encode_error(RateLimited("wait", retry_after=5), UNSET)) == {
        **{"ok": False, "status": "error", "code": "rate_limited", "message": "wait", "retry_after": 5}
    }
    assert json.loads(encode_error(Conflict("no", field="x"), UNSET))["field"] == "x"


@pytest.mark.parametrize(
    ("line", "name", "request_id"),
    [
        ('{"action":"login","action":"ping"}', "ping", UNSET),
        ('{"action":"ping","id":1,"id":2}', "ping", 2),
        ('{"id":null,"action":"ping","id":2,"action":"hello"}', "hello", 2),
        ('{"action":"ping","id":{},"id":2}', "ping", 2),
    ],
)
def test_of_a_name_given_twice_the_last_counts(line: str, name: str, request_id: Any) -> None:
    action, _, found = decode_request(line.encode())
    assert action.name == name
    assert (found if found is UNSET else json.loads(bytes(found))) == request_id


def test_of_a_field_given_twice_the_last_counts_in_the_request_as_well() -> None:
    line = b'{"action":"get_task","action":"new_task","task":"a","task":"b","payload":{"k":1,"k":2},"task_id":1}'
    _, request, _ = decode_request(line)
    assert isinstance(request, m.TaskSpec)
    assert (request.task, json.loads(bytes(request.payload))) == ("b", {"k": 2})
    assert refused('{"action":"ping","id":5,"id":{}}')[1] is UNSET


def test_fields_that_are_not_declared_are_ignored() -> None:
    line = PING % (',"x":1e999,"y":%s,"z":{"a":[null]},"":0' % ("9" * 5000))
    assert decode_request(line.encode())[0].name == "ping"


def test_numbers_of_a_payload_may_be_larger_than_64_bits() -> None:
    _, request, _ = decode_request(b'{"action":"new_task","task":"x","payload":{"n":%d}}' % 2**100)
    assert isinstance(request, m.TaskSpec) and json.loads(bytes(request.payload)) == {"n": 2**100}


def test_an_id_keeps_nothing_else_of_its_line() -> None:
    """Or a slow request would hold 64 KiB for one byte."""
    line = (PING % (',"id":1,"x":"%s"' % ("x" * 60_000))).encode()
    before = sys.getrefcount(line)
    _, _, request_id = decode_request(line)
    assert request_id is not UNSET
    assert sys.getrefcount(line) == before


class TestRegistry:
    def test_every_field_is_described(self) -> None:
        for action in ACTIONS.values():
            assert action.summary and action.summary_es
            info = msgspec.inspect.type_info(action.request)
            assert isinstance(info, msgspec.inspect.StructType)
            for field in info.fields:
                assert isinstance(field.type, msgspec.inspect.Metadata), (action.name, field.name)
                assert (field.type.extra_json_schema or {})["description"]

    def test_the_original_vocabulary_is_there(self) -> None:
        assert {"register", "login", "get_tasks", "new_task"} <= set(ACTIONS)


class TestFramer:
    def test_lines_of_one_piece(self) -> None:
        assert Framer().feed(b"a\nb\r\n\n\r\n c \nd") == [b"a", b"b", b"", b"", b" c "]

    def test_a_byte_at_a_time(self) -> None:
        framer = Framer()
        assert [line for byte in b"ab\r\n\ncd\n" for line in framer.feed(bytes([byte]))] == [b"ab", b"", b"cd"]
        assert framer.end() is None

    def test_only_one_carriage_return_belongs_to_the_line_end(self) -> None:
        assert Framer().feed(b"a\r\r\n\rb\n") == [b"a\r", b"\rb"]

    @pytest.mark.parametrize("end", [b"\n", b"\r\n"])
    @pytest.mark.parametrize("step", [1, 7, 1000])
    def test_the_longest_line_and_one_byte_more(self, end: bytes, step: int) -> None:
        framer, found = Framer(8), []
        data = b"12345678" + end + b"123456789" + end + b"next" + end + b"1" * 100 + end + b"last" + end
        for start in range(0, len(data), step):
            found += framer.feed(data[start : start + step])
        assert found == [b"12345678", None, b"next", None, b"last"]

    def test_an_overlong_line_is_told_of_at_once_and_only_once(self) -> None:
        framer = Framer(8)
        assert framer.feed(b"12345678\r") == []
        assert framer.feed(b"x") == [None]
        assert framer.feed(b"y" * 100) == []
        assert framer.feed(b"z\nnext\n") == [b"next"]

    def test_it_keeps_no_more_than_a_line(self) -> None:
        framer = Framer()
        for _ in range(100):
            framer.feed(b"x" * MAX_LINE_BYTES)
        assert framer.end() is None

    def test_the_last_line_may_have_no_end(self) -> None:
        framer = Framer()
        assert framer.feed(b"a\nb") == [b"a"]
        assert framer.end() == b"b"
        assert framer.end() is None


def test_news_arrive_as_they_were_sent() -> None:
    stage = Stage()
    tasks = stage.create(count=2, task="ñ\n")
    stage.close()
    news = decode_batch(m.encode(EventBatch("me", changes_of(tasks, NOON))))
    assert news.origin == "me"
    assert [(c.user_id, c.task_id, c.version, c.state, c.queue) for c in news.changes] == [
        (t.user_id, t.id, t.version, t.state, t.queue) for t in tasks
    ]
    assert bytes(news.changes[0].view) == m.encode(view(tasks[0], NOON))


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'["me",[[1]]]', b"\xff", b"null"])
def test_news_that_are_none(body: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        decode_batch(body)
