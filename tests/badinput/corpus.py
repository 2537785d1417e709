"""Malformed lines and sequences, each with the replies and the fate of the connection."""

from __future__ import annotations

from typing import NamedTuple

MAX = 64 * 1024

TASK = b'{"action":"new_task","task":"evil"}\n'
REGISTER = b'{"action":"register","username":"evil","password":"evil evil evil"}\n'


class Case(NamedTuple):
    """What a client sends, in these pieces, and what it gets: ``ok`` or the code of the error, one for each reply.
    ``known``: it is logged in and has sent a line before. ``closed``: the server closes the connection."""

    name: str
    pieces: list[bytes]
    replies: list[str]
    known: bool = False
    closed: bool = False


def _first(name: str, *pieces: bytes, code: str = "bad_json") -> Case:
    """A first line that ends the connection: nothing behind it is carried out."""
    return Case(name, [*pieces, REGISTER, TASK], [code], closed=True)


def _line(name: str, line: bytes, code: str) -> Case:
    """A wrong line of a client that is logged in: the connection goes on."""
    return Case(name, [line + b"\n", b'{"action":"ping"}\n'], [code, "ok"], known=True)


FIRST_LINES = [
    _first("post", b"POST / HTTP/1.1\r\nHost: x\r\n\r\n"),
    _first("post with a long query", b"POST /?" + b"x" * 66_000 + b" HTTP/1.1\r\n\r\n"),
    _first("post in small letters", b"post / HTTP/1.1\r\n\r\n"),
    _first("post with two spaces", b"POST  /  HTTP/1.1\r\n\r\n"),
    _first("put", b"PUT / HTTP/1.1\r\n\r\n"),
    _first("get", b"GET / HTTP/1.1\r\n\r\n"),
    _first("options", b"OPTIONS * HTTP/1.1\r\n\r\n"),
    _first("connect", b"CONNECT a:1 HTTP/1.1\r\n\r\n"),
    _first("http 2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    _first("websocket", b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"),
    _first("an unknown method", b"X / HTTP/1.1\r\n\r\n"),
    _first("post, one byte at a time", *[bytes([c]) for c in b"POST / HTTP/1.1\r\n"]),
    _first("an empty first line", b"\n"),
    _first("an empty first line with a carriage return", b"\r\n"),
    _first("white space and post", b"   \tPOST / HTTP/1.1\r\n"),
    _first("white space and a newline", b"   \n"),
    _first("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    _first("tls 1.0, an alert", b"\x15\x03\x01\x00\x02\x02\x28"),
    _first("ssh", b"SSH-2.0-OpenSSH_9.2\r\n"),
    _first("smtp", b"EHLO x\r\n"),
    _first("redis", b"*1\r\n$4\r\nPING\r\n"),
    _first("amqp", b"AMQP\x00\x00\x09\x01"),
    _first("a proxy header of version 1", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"),
    _first("a proxy header of version 2", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + b"\x7f\x00\x00\x01" * 3),
    _first("a byte order mark", b'\xef\xbb\xbf{"action":"ping"}\n'),
    _first("utf-16", '{"action":"ping"}\n'.encode("utf-16")),
    _first("utf-32", '{"action":"ping"}\n'.encode("utf-32")),
    _first("an array", b'[{"action":"ping"}]\n'),
    _first("a string", b'"ping"\n'),
    _first("a number", b"1\n"),
    _first("null", b"null\n"),
    _first("a comment", b'// x\n{"action":"ping"}\n'),
    _first("a nul byte", b'\x00{"action":"ping"}\n'),
    _first("a form feed", b'\x0c{"action":"ping"}\n'),
    _first("a no-break space", b'\xc2\xa0{"action":"ping"}\n'),
    _first("an overlong first line", b"{" + b"x" * MAX + b"\n", code="too_large"),
    _first("an overlong first line without an end", b"{" + b"x" * (2 * MAX), code="too_large"),
    _first("white space without an end", b" " * (MAX + 2), code="too_large"),
    _first("half a line of php", b"<?php"),
    _first("a shell", b"id; cat /etc/passwd\n"),
    _first("high bytes", bytes(range(128, 256)) + b"\n"),
]

LINES = [
    _line("nothing", b"", "bad_json"),
    _line("white space", b"  \t ", "bad_json"),
    _line("half an object", b'{"action":"ping"', "bad_json"),
    _line("two objects", b'{"action":"ping"}{"action":"ping"}', "bad_json"),
    _line("an object and a comma", b'{"action":"ping"},', "bad_json"),
    _line("a comma too much", b'{"action":"ping",}', "bad_json"),
    _line("single quotes", b"{'action':'ping'}", "bad_json"),
    _line("no quotes", b"{action:ping}", "bad_json"),
    _line("an array", b'["ping"]', "bad_json"),
    _line("a number", b"42", "bad_json"),
    _line("null", b"null", "bad_json"),
    _line("true", b"true", "bad_json"),
    _line("not a number", b'{"action":"ping","x":NaN}', "bad_json"),
    _line("infinity", b'{"action":"ping","x":Infinity}', "bad_json"),
    _line("a leading zero", b'{"action":"ping","id":01}', "bad_json"),
    _line("a hexadecimal number", b'{"action":"ping","id":0x1}', "bad_json"),
    _line("a plus sign", b'{"action":"ping","id":+1}', "bad_json"),
    _line("a tab in a string", b'{"action":"pi\tng"}', "bad_json"),
    _line("a nul byte in a string", b'{"action":"ping\x00"}', "bad_json"),
    _line("a wrong escape", b'{"action":"pi\\xng"}', "bad_json"),
    _line("half an escape", b'{"action":"ping\\u12"}', "bad_json"),
    _line("a truncated utf-8 sequence", b'{"action":"ping","x":"\xc3"}', "bad_json"),
    _line("an overlong utf-8 sequence", b'{"action":"ping","x":"\xc0\xaf"}', "bad_json"),
    _line("a surrogate in utf-8", b'{"action":"ping","x":"\xed\xa0\x80"}', "bad_json"),
    _line("beyond unicode", b'{"action":"ping","x":"\xf4\x90\x80\x80"}', "bad_json"),
    _line("latin 1", b'{"action":"ping","x":"\xf1"}', "bad_json"),
    _line("http", b"POST / HTTP/1.1", "bad_json"),
    _line("no action", b"{}", "bad_request"),
    _line("an action that is null", b'{"action":null}', "bad_request"),
    _line("an action that is a number", b'{"action":1}', "bad_request"),
    _line("an action that is an array", b'{"action":["ping"]}', "bad_request"),
    _line("an unknown action", b'{"action":"fly"}', "unknown_action"),
    _line("an empty action", b'{"action":""}', "unknown_action"),
    _line("an action in capitals", b'{"action":"PING"}', "unknown_action"),
    _line("an action with a space", b'{"action":"ping "}', "unknown_action"),
    _line("a long action", b'{"action":"' + b"x" * 10_000 + b'"}', "unknown_action"),
    _line("an action with an escape sequence", b'{"action":"\\u001b[31mping"}', "unknown_action"),
    _line("a method of python", b'{"action":"__init__"}', "unknown_action"),
    _line("an id that is an object", b'{"action":"ping","id":{}}', "bad_request"),
    _line("an id that is an array", b'{"action":"ping","id":[1]}', "bad_request"),
    _line("no task", b'{"action":"new_task"}', "bad_request"),
    _line("an empty task", b'{"action":"new_task","task":""}', "bad_request"),
    _line("a task of spaces", b'{"action":"new_task","task":"   "}', "bad_request"),
    _line("an invisible task", b'{"action":"new_task","task":"\\u200b\\u2060"}', "bad_request"),
    _line("a task with a nul", b'{"action":"new_task","task":"a\\u0000b"}', "bad_request"),
    _line("a task with a surrogate", b'{"action":"new_task","task":"a\\ud800b"}', "bad_json"),
    _line("a task that is a number", b'{"action":"new_task","task":1}', "bad_request"),
    _line("a long task", b'{"action":"new_task","task":"' + b"x" * 5000 + b'"}', "too_large"),
    _line("a kind with a slash", b'{"action":"new_task","task":"x","kind":"../x"}', "bad_request"),
    _line("an empty kind", b'{"action":"new_task","task":"x","kind":""}', "bad_request"),
    _line("an unknown queue", b'{"action":"new_task","task":"x","queue":"other"}', "bad_request"),
    _line("a payload that is an array", b'{"action":"new_task","task":"x","payload":[]}', "bad_request"),
    _line("a payload that is null", b'{"action":"new_task","task":"x","payload":null}', "bad_request"),
    _line("a payload that is half a string", b'{"action":"new_task","task":"x","payload":"{}"}', "bad_request"),
    _line(
        "a deep payload",
        b'{"action":"new_task","task":"x","payload":{"x":' + b"[" * 200 + b"]" * 200 + b"}}",
        "bad_request",
    ),
    _line(
        "a payload deeper than any stack",
        b'{"action":"new_task","task":"x","payload":{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}}",
        "bad_json",
    ),
    _line("a negative delay", b'{"action":"new_task","task":"x","delay":-1}', "bad_request"),
    _line("an endless delay", b'{"action":"new_task","task":"x","delay":1e999}', "bad_request"),
    _line("a delay of ages", b'{"action":"new_task","task":"x","delay":1e300}', "bad_request"),
    _line("a delay that is a text", b'{"action":"new_task","task":"x","delay":"1"}', "bad_request"),
    _line(
        "a delay and a time",
        b'{"action":"new_task","task":"x","delay":1,"run_at":"2030-01-01T00:00:00Z"}',
        "bad_request",
    ),
    _line("a time without a zone", b'{"action":"new_task","task":"x","run_at":"2030-01-01T00:00:00"}', "bad_request"),
    _line("a time that is none", b'{"action":"new_task","task":"x","run_at":"2030-02-30T00:00:00Z"}', "bad_request"),
    _line("no attempts", b'{"action":"new_task","task":"x","max_attempts":0}', "bad_request"),
    _line("half an attempt", b'{"action":"new_task","task":"x","max_attempts":1.5}', "bad_request"),
    _line("many attempts", b'{"action":"new_task","task":"x","max_attempts":1000000}', "bad_request"),
    _line("no timeout", b'{"action":"new_task","task":"x","timeout":0}', "bad_request"),
    _line("an empty key", b'{"action":"new_task","task":"x","key":""}', "bad_request"),
    _line("a key with a newline", b'{"action":"new_task","task":"x","key":"a\\nb"}', "bad_request"),
    _line("no tasks", b'{"action":"new_tasks","tasks":[]}', "bad_request"),
    _line("a task among them is wrong", b'{"action":"new_tasks","tasks":[{"task":"x"},{"task":""}]}', "bad_request"),
    _line(
        "too many tasks", b'{"action":"new_tasks","tasks":[' + b",".join([b'{"task":"x"}'] * 1001) + b"]}", "too_large"
    ),
    _line("tasks that are an object", b'{"action":"new_tasks","tasks":{}}', "bad_request"),
    _line("a task id of 0", b'{"action":"get_task","task_id":0}', "bad_request"),
    _line("a negative task id", b'{"action":"cancel_task","task_id":-1}', "bad_request"),
    _line("a task id beyond 64 bits", b'{"action":"get_task","task_id":9223372036854775808}', "bad_request"),
    _line("a task id beyond all numbers", b'{"action":"get_task","task_id":' + b"9" * 5000 + b"}", "bad_request"),
    _line("a task id that is a text", b'{"action":"get_task","task_id":"1"}', "bad_request"),
    _line("a task id with a fraction", b'{"action":"get_task","task_id":1.5}', "bad_request"),
    _line("a task id that is true", b'{"action":"get_task","task_id":true}', "bad_request"),
    _line("a task that does not exist", b'{"action":"get_task","task_id":9223372036854775807}', "not_found"),
    _line("no limit", b'{"action":"get_tasks","limit":0}', "bad_request"),
    _line("too large a limit", b'{"action":"get_tasks","limit":501}', "bad_request"),
    _line("an unknown status", b'{"action":"get_tasks","status":"x"}', "bad_request"),
    _line("a cursor that nobody made", b'{"action":"get_tasks","cursor":"x"}', "bad_request"),
    _line("a cursor of a log", b'{"action":"get_tasks","cursor":"bDEuMS4x"}', "bad_request"),
    _line("a wait for nothing", b'{"action":"wait","task_ids":[]}', "bad_request"),
    _line("a wait without an end", b'{"action":"wait","task_ids":[1],"timeout":1e9}', "bad_request"),
    _line(
        "a long name",
        b'{"action":"register","username":"' + b"x" * 65 + b'","password":"evil evil evil"}',
        "bad_request",
    ),
    _line(
        "an invisible name", b'{"action":"register","username":"\\u3164","password":"evil evil evil"}', "bad_request"
    ),
    _line(
        "a name that runs backwards",
        b'{"action":"register","username":"a\\u202eb","password":"evil evil evil"}',
        "bad_request",
    ),
    _line("a short password", b'{"action":"register","username":"evil","password":"x"}', "bad_request"),
    _line(
        "a password with a nul", b'{"action":"register","username":"evil","password":"evil evil\\u0000"}', "bad_request"
    ),
    _line("a login with nothing", b'{"action":"login"}', "bad_request"),
    _line("a login with a made-up token", b'{"action":"login","token":"x"}', "auth_required"),
    _line("a name twice", b'{"action":"ping","action":"fly"}', "unknown_action"),
    _line("an overlong line", b'{"action":"ping","x":"' + b"x" * MAX + b'"}', "too_large"),
    _line("an admin's action", b'{"action":"set_weight","username":"ana","weight":1000}', "forbidden"),
    _line("an admin's action on everything", b'{"action":"audit"}', "forbidden"),
    _line("a weight that is no number", b'{"action":"set_weight","username":"ana","weight":NaN}', "bad_json"),
]

SEQUENCES = [
    Case("a stranger's task", [TASK], ["auth_required"]),
    Case(
        "a stranger's requests in one write",
        [b'{"action":"ping"}\n' + TASK + b"x\n"],
        ["ok", "auth_required", "bad_json"],
    ),
    Case("a line in many pieces", [bytes([c]) for c in b'{"action":"ping"}\n'], ["ok"]),
    Case("a line that ends with a carriage return", [b'{"action":"ping"}\r\n'], ["ok"]),
    Case("white space before the first object", [b'  \t{"action":"ping"}\n'], ["ok"]),
    Case("half a line", [b'{"action":"ping"'], []),
    Case("a wrong first object", [b'{"action":"fly"}\n{"action":"ping"}\n'], ["unknown_action", "ok"]),
    Case("many wrong lines", [b"x\n" * 500], ["bad_json"] * 500, known=True),
    Case("empty lines", [b"\n" * 200], ["bad_json"] * 200, known=True),
    Case("unwatch without a watch", [b'{"action":"unwatch"}\n' * 3], ["ok"] * 3, known=True),
    Case("logout twice", [b'{"action":"logout"}\n' * 2], ["ok", "auth_required"], known=True),
    Case("the same id twice", [b'{"action":"ping","id":1}\n' * 2], ["ok", "ok"], known=True),
]

CASES = [*FIRST_LINES, *LINES, *SEQUENCES]
