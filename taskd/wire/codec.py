"""Lines to requests and replies to lines."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from taskd.errors import BadJson, BadRequest, TaskdError, UnknownAction
from taskd.wire.actions import ACTIONS, Action
from taskd.wire.messages import Envelope, Reply, Scalar, encode

_envelope = msgspec.json.Decoder(Envelope).decode
_lenient = msgspec.json.Decoder(dict[str, Raw]).decode
_scalar = msgspec.json.Decoder(Scalar).decode  # type: ignore[arg-type]
_decoders = {a.name: msgspec.json.Decoder(a.request).decode for a in ACTIONS.values()}


class Refused(Exception):
    """A line that is no request: what to answer, and to which id if it had a readable one."""

    def __init__(self, error: TaskdError, request_id: Scalar | UnsetType = UNSET) -> None:
        super().__init__(error.message)
        self.error = error
        self.request_id = request_id


def decode_request(line: bytes) -> tuple[Action, Struct, Scalar | UnsetType]:
    """The action, its typed request and its id (UNSET when it has none).

    Raises Refused with bad_json, bad_request or unknown_action.
    """
    request_id: Scalar | UnsetType = UNSET
    try:
        if not line.isascii():
            line.decode()  # msgspec skips fields it does not know without looking into them
        envelope = _envelope(line)
        request_id = envelope.id
        action = ACTIONS.get(envelope.action)
        if action is None:
            raise Refused(_unknown(envelope.action), request_id)
        return action, _decoders[envelope.action](line), request_id
    except msgspec.ValidationError as e:
        if request_id is UNSET:
            request_id = _find_id(line)
        raise Refused(_invalid(e), request_id) from None
    except UnicodeDecodeError as e:
        raise Refused(BadJson(f"the line is not UTF-8: byte {e.start} is {line[e.start]:#04x}")) from None
    except (msgspec.DecodeError, RecursionError) as e:
        raise Refused(BadJson(_why(e))) from None


def _unknown(name: str) -> UnknownAction:
    shown = name if len(name) <= 64 else name[:64] + "..."
    return UnknownAction(f"unknown action {shown!r}; known are: {', '.join(ACTIONS)}", field="action")


def _invalid(e: msgspec.ValidationError) -> TaskdError:
    what, _, path = str(e).partition(" - at `")
    field = path.rstrip("`").removeprefix("$").removeprefix(".") or None
    if what == "Expected `object`, got `array`" or (field is None and what.startswith("Expected `object`")):
        return BadJson('one JSON object a line is expected, such as {"action":"ping"}')
    if what.startswith("Object missing required field"):
        missing = what.split("`")[1]
        field = f"{field}.{missing}" if field else missing
        return BadRequest(f"{field} is missing", field=field)
    what = what.replace("`", "").replace("Expected", "expected")
    return BadRequest(f"{field}: {what}" if field else what, field=field)


def _why(e: Exception) -> str:
    if isinstance(e, RecursionError):
        return "the JSON is nested too deeply"
    text = str(e)
    if text.startswith("JSON is malformed: "):
        text = text.removeprefix("JSON is malformed: ")
    elif "truncated" in text:
        text = "it ends too early, or a \\u escape is not a character"
    return f'the line is not JSON: {text}; one object a line is expected, such as {{"action":"ping"}}'


def _find_id(line: bytes) -> Scalar | UnsetType:
    try:
        raw = _lenient(line).get("id")
        return UNSET if raw is None else _scalar(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return UNSET


def encode_reply(reply: Reply, request_id: Scalar | UnsetType) -> bytes:
    """A line for a reply that is not an error."""
    if request_id is UNSET:
        return encode({"ok": True, **reply}) + b"\n"
    return encode({"id": request_id, "ok": True, **reply}) + b"\n"


def encode_error(error: TaskdError, request_id: Scalar | UnsetType) -> bytes:
    """A line for an error reply, with its stable code."""
    reply: dict[str, Any] = {} if request_id is UNSET else {"id": request_id}
    reply |= {"ok": False, "status": error.status, "code": error.code, "message": error.message}
    if error.field is not None:
        reply["field"] = error.field
    if error.retry_after is not None:
        reply["retry_after"] = error.retry_after
    return encode(reply) + b"\n"
