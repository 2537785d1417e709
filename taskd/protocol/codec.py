"""Decodes lines to requests and encodes replies to lines.

If an object has a name twice, all values are checked and the last one counts. Undeclared fields may hold any JSON.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

from taskd.model.errors import BadJson, TaskdError, UnknownAction, quote
from taskd.model.invalid import invalid
from taskd.protocol.actions import ACTIONS, Action
from taskd.protocol.messages import Envelope, Reply, RequestId, Scalar, encode

_EXPECTED = 'one JSON object a line is expected, such as {"action":"ping"}'

_envelope = msgspec.json.Decoder(Envelope).decode
_lenient = msgspec.json.Decoder(dict[str, Raw]).decode
_scalar: Any = msgspec.json.Decoder(Scalar).decode
_decoders = {a.name: msgspec.json.Decoder(a.request).decode for a in ACTIONS.values()}


class InvalidRequest(Exception):
    """A line that is no request: the error to answer with, and the request's id if the line has a readable one."""

    def __init__(self, error: TaskdError, request_id: RequestId = UNSET) -> None:
        super().__init__(error.message)
        self.error = error
        self.request_id = request_id


def decode_request(line: bytes) -> tuple[Action, Struct, RequestId]:
    """The action, its typed request and its id (UNSET when it has none).

    Raises InvalidRequest with bad_json, bad_request or unknown_action.
    """
    request_id: RequestId = UNSET
    try:
        if not line.isascii():
            line.decode()  # msgspec does not check the encoding of fields that it does not know
        envelope = _envelope(line)
        if envelope.id is not UNSET:
            request_id = _checked(envelope.id)
        action = ACTIONS.get(envelope.action)
        if action is None:
            raise InvalidRequest(_unknown(envelope.action), request_id)
        return action, _decoders[envelope.action](line), request_id
    except msgspec.ValidationError as e:
        # msgspec may stop at a wrong field before it has seen the rest of the line
        if (not_json := _not_json(line)) is not None:
            raise InvalidRequest(not_json) from None
        if request_id is UNSET:
            request_id = _find_id(line)
        raise InvalidRequest(invalid(e), request_id) from None
    except UnicodeDecodeError as e:
        why = f"byte {e.start} is {line[e.start]:#04x}"
        raise InvalidRequest(BadJson(f"the line is not UTF-8: {why}; {_EXPECTED}, in UTF-8")) from None
    except (msgspec.DecodeError, RecursionError) as e:
        raise InvalidRequest(BadJson(_why(e, line))) from None


def _not_json(line: bytes) -> BadJson | None:
    """The error for a line that is not exactly one JSON object, whatever else is wrong with it."""
    try:
        msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.ValidationError:
        return None if line.lstrip().startswith(b"{") else BadJson(_EXPECTED)
    except (msgspec.DecodeError, RecursionError) as e:
        return BadJson(_why(e, line))
    return None


def _checked(raw: Raw) -> Raw:
    try:
        _scalar(raw)
    except msgspec.ValidationError as e:
        what, _, _ = str(e).partition(" - at `")
        raise msgspec.ValidationError(f"{what} - at `$.id`") from None
    return raw.copy()  # without a copy it would keep the whole line in memory


def _unknown(name: str) -> UnknownAction:
    return UnknownAction(f"unknown action {quote(name)}; known are: {', '.join(ACTIONS)}", field="action")


def _why(e: Exception, line: bytes) -> str:
    if not line.strip():
        return f"the line is empty; {_EXPECTED}"
    if line.startswith(b"\xef\xbb\xbf"):
        return f"the line begins with a byte order mark: leave it out; {_EXPECTED}"
    if isinstance(e, RecursionError):
        return "the JSON is nested too deeply"
    text = str(e)
    if text.startswith("JSON is malformed: "):
        text = text.removeprefix("JSON is malformed: ")
    elif "truncated" in text:
        text = "it ends too early, or a \\u escape is not a character"
    return f"the line is not JSON: {text}; {_EXPECTED}"


def _find_id(line: bytes) -> RequestId:
    try:
        raw = _lenient(line).get("id")
        return UNSET if raw is None else _checked(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return UNSET


def encode_reply(reply: Reply, request_id: RequestId) -> bytes:
    """The line of a reply that is not an error."""
    if request_id is UNSET:
        return encode({"ok": True, **reply}) + b"\n"
    return encode({"id": request_id, "ok": True, **reply}) + b"\n"


def encode_error(error: TaskdError, request_id: RequestId) -> bytes:
    """The line of an error reply, with its stable code."""
    reply: dict[str, Any] = {} if request_id is UNSET else {"id": request_id}
    reply |= {"ok": False, "status": error.status, "code": error.code, "message": error.message}
    if error.field is not None:
        reply["field"] = error.field
    if error.retry_after is not None:
        reply["retry_after"] = error.retry_after
    return encode(reply) + b"\n"
