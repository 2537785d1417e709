"""taskd.protocol.codec, framing and actions, and the event batches of taskd.events.records."""

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
    """A short id for a test parameter."""
    return repr(value)[:60]


def refused(line: bytes | str) -> tuple[TaskdError, Any]:
    """The error of a refused line, and its request id, decoded; UNSET if the line has none."""
    with pytest.raises(InvalidRequest) as caught:
        decode_request(line if isinstance(line, bytes) else line.encode())
    error, request_id = caught.value.error, caught.value.request_id
    assert len(error.message) < 1000 and "\n" not in error.message
    assert "Traceback" not in error.message and "`" not in error.message
    return error, request_id if request_id is UNSET else json.loads(bytes(request_id))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"\t \r",
        b"[]",
        b"[1,2]",
        b"1",
        b"-1.5",
        b"null",
        b"true",
        b'"ping"',
        b"ping",
        b"GET / HTTP/1.1",
        b"\xff",
        b'{"action":"ping","id":"\xc3"}',
        b'{"action":"ping","x":"\xed\xa0\x80"}',
        b"\x16\x03\x01\x02\x00",
        PING.encode("utf-16"),
        PING.encode("utf-16-le"),
        PING.encode("utf-32"),
        b"\xef\xbb\xbf" + b'{"action":"ping"}',
        b'{"action":"ping","x":NaN}',
        b'{"action":"ping","x":Infinity}',
        b'{"action":"ping","x":-Infinity}',
        b'{"action":"ping","id":"\\ud800"}',
        b'{"action":"ping","x":"\\udc00\\ud800"}',
        b'{"action":"\\ud800"}',
        b"\0",
        b'\0{"action":"ping"}',
        b'{"action":"ping"}\0',
        b'{"action":"pi\0ng"}',
        b'{"action":"ping","x":"\x1f"}',
        b'{"action":"ping"',
        b'{"action":"ping",}',
        b'{"action":"ping"} {}',
        b"{'action':'ping'}",
        b"{action:1}",
        b'{"action":"ping","x":01}',
        b'{"action":"ping","x":tru}',
        b'{"action":"ping","x":"\\q"}',
        b'{"action"}',
        b"[" * 10_000,
        b'{"action":"ping","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"a":' * 10_000,
        b'{"action":"ping","id":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        # msgspec stops at an earlier mistake of these lines
        b'{"a":1}garbage',
        b"{} {}",
        b'{"action":5} x',
        b'{"action":5,"x":tru}',
        b'{"action":null]',
        b'{"action":"nope"}]',
        b'{"action":"new_task"}{"task":"x"}',
        b'{"action":"new_task","payload":[]}}',
        b'{"id":{}}x',
        b'{"action":"wait","task_ids":[1,"x"],}',
        b'{"action":"new_tasks","tasks":[5]',
    ],
    ids=short,
)
def test_a_line_that_is_not_a_json_object_in_utf8_is_bad_json(line: bytes) -> None:
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
def test_the_error_message_names_the_mistake(line: bytes, words: str) -> None:
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
def test_an_error_names_the_invalid_field(line: str, field: str, words: str) -> None:
    error, request_id = refused(line)
    assert (error.code, error.field, request_id) == ("bad_request", field, UNSET)
    assert words in error.message
    _, request_id = refused(line.replace("{", '{"id":"mine",', 1).replace(",}", "}"))
    assert request_id == "mine"


@pytest.mark.parametrize("value", ["{}", "[]", "[1]", '{"a":1}', "1e999", "-1e999", "9" * 5000], ids=short)
def test_an_invalid_id_is_refused(value: str) -> None:
    error, request_id = refused(PING % f',"id":{value}')
    assert (error.code, error.field, request_id) == ("bad_request", "id", UNSET)


def test_the_error_for_an_invalid_id_names_the_allowed_types() -> None:
    assert refused(PING % ',"id":{}')[0].message == "id: expected boolean or number or string or null, got object"


def test_an_unknown_action_is_refused() -> None:
    error, request_id = refused('{"action":"destroy","id":7}')
    assert (error.code, error.field, request_id) == ("unknown_action", "action", 7)
    assert "'destroy'" in error.message and "new_task" in error.message
    assert refused('{"action":"Ping"}')[0].code == "unknown_action"
    assert refused(json.dumps({"action": "\0" * 10_000}))[0].code == "unknown_action"


@pytest.mark.parametrize(
    "value",
    [
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
        "0.1000000000000000055511151231257827",
        "null",
        "true",
        "false",
        '""',
        '"a"',
        '"ñ"',
        '"\\u00f1"',
        '"\\/"',
        '"\\n\\u0000"',
        '"\\ud83e\\udd80"',
        '"🦀"',
        '"null"',
        '"' + "x" * 60_000 + '"',
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


def test_a_missing_id_differs_from_null() -> None:
    _, _, request_id = decode_request((PING % "").encode())
    assert request_id is UNSET
    assert encode_reply({"status": "success"}, UNSET) == b'{"ok":true,"status":"success"}\n'


def test_an_error_has_a_code_a_message_and_if_given_field_and_retry_after() -> None:
    assert json.loads(encode_error(RateLimited("wait", retry_after=5), UNSET)) == {
        "ok": False,
        "status": "error",
        "code": "rate_limited",
        "message": "wait",
        "retry_after": 5,
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
def test_of_a_repeated_action_or_id_the_last_counts(line: str, name: str, request_id: Any) -> None:
    action, _, found = decode_request(line.encode())
    assert action.name == name
    assert (found if found is UNSET else json.loads(bytes(found))) == request_id


def test_of_a_repeated_field_the_last_counts() -> None:
    line = b'{"action":"get_task","action":"new_task","task":"a","task":"b","payload":{"k":1,"k":2},"task_id":1}'
    _, request, _ = decode_request(line)
    assert isinstance(request, m.TaskSpec)
    assert (request.task, json.loads(bytes(request.payload))) == ("b", {"k": 2})
    assert refused('{"action":"ping","id":5,"id":{}}')[1] is UNSET


def test_undeclared_fields_are_ignored() -> None:
    line = PING % (',"x":1e999,"y":%s,"z":{"a":[null]},"":0' % ("9" * 5000))
    assert decode_request(line.encode())[0].name == "ping"


def test_numbers_in_a_payload_may_exceed_64_bits() -> None:
    _, request, _ = decode_request(b'{"action":"new_task","task":"x","payload":{"n":%d}}' % 2**100)
    assert isinstance(request, m.TaskSpec) and json.loads(bytes(request.payload)) == {"n": 2**100}


def test_a_request_id_does_not_keep_its_line_in_memory() -> None:
    """A slow request would hold 64 KiB for one byte otherwise."""
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

    def test_the_original_actions_exist(self) -> None:
        assert {"register", "login", "get_tasks", "new_task"} <= set(ACTIONS)


class TestFramer:
    def test_one_piece_with_several_lines(self) -> None:
        assert Framer().feed(b"a\nb\r\n\n\r\n c \nd") == [b"a", b"b", b"", b"", b" c "]

    def test_a_byte_at_a_time(self) -> None:
        framer = Framer()
        assert [line for byte in b"ab\r\n\ncd\n" for line in framer.feed(bytes([byte]))] == [b"ab", b"", b"cd"]
        assert framer.end() is None

    def test_only_one_carriage_return_belongs_to_the_line_end(self) -> None:
        assert Framer().feed(b"a\r\r\n\rb\n") == [b"a\r", b"\rb"]

    @pytest.mark.parametrize("end", [b"\n", b"\r\n"])
    @pytest.mark.parametrize("step", [1, 7, 1000])
    def test_the_longest_line_passes_and_one_byte_more_does_not(self, end: bytes, step: int) -> None:
        framer, found = Framer(8), []
        data = b"12345678" + end + b"123456789" + end + b"next" + end + b"1" * 100 + end + b"last" + end
        for start in range(0, len(data), step):
            found += framer.feed(data[start : start + step])
        assert found == [b"12345678", None, b"next", None, b"last"]

    def test_an_overlong_line_is_reported_at_once_and_only_once(self) -> None:
        framer = Framer(8)
        assert framer.feed(b"12345678\r") == []
        assert framer.feed(b"x") == [None]
        assert framer.feed(b"y" * 100) == []
        assert framer.feed(b"z\nnext\n") == [b"next"]

    def test_an_overlong_line_is_not_kept(self) -> None:
        framer = Framer()
        for _ in range(100):
            framer.feed(b"x" * MAX_LINE_BYTES)
        assert framer.end() is None

    def test_the_last_line_may_have_no_end(self) -> None:
        framer = Framer()
        assert framer.feed(b"a\nb") == [b"a"]
        assert framer.end() == b"b"
        assert framer.end() is None


def test_an_event_batch_is_decoded_as_it_was_encoded() -> None:
    stage = Stage()
    tasks = stage.create(count=2, task="ñ\n")
    stage.close()
    batch = decode_batch(m.encode(EventBatch("here", "me", changes_of(tasks, NOON))))
    assert (batch.installation, batch.origin) == ("here", "me")
    assert [(c.user_id, c.task_id, c.version, c.state, c.queue) for c in batch.changes] == [
        (t.user_id, t.id, t.version, t.state, t.queue) for t in tasks
    ]
    assert bytes(batch.changes[0].view) == m.encode(view(tasks[0], NOON))


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'["me",[[1]]]', b"\xff", b"null"])
def test_an_invalid_event_batch_is_refused(body: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        decode_batch(body)
