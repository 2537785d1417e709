"""Cursors: where the next page of a list or of a log begins, in a form that clients pass back unread."""

from __future__ import annotations

import base64
import binascii
import re

from taskd.model.errors import BadRequest
from taskd.ports.logs import LogPlace

_TASKS = re.compile(rb"b(\d{1,19})")
_LOG = re.compile(rb"l(\d{1,10})\.(\d{1,10})\.(\d{1,10})")
_AUDIT = re.compile(rb"a(\d{1,19})")
_MAX_ID = 2**63 - 1
_MAX_NUMBER = 2**31 - 1


def tasks_cursor(before: int) -> str:
    """A cursor for the tasks with ids below this one."""
    return _encode(b"b%d" % before)


def before_of(cursor: str) -> int:
    """The task id below which a page begins. Raises BadRequest for a cursor that no server made."""
    return _id_of(_TASKS, cursor, "ours")


def log_cursor(place: LogPlace) -> str:
    """A cursor for the lines of a log after this one."""
    return _encode(b"l%d.%d.%d" % place)


def place_of(cursor: str) -> LogPlace:
    """The line after which a page of a log begins. Raises BadRequest for a cursor that no server made."""
    found = _LOG.fullmatch(_decode(cursor))
    if found is not None and all(int(number) <= _MAX_NUMBER for number in found.groups()):
        return LogPlace(*map(int, found.groups()))
    raise BadRequest("cursor is not one of a log; leave it out to begin at the first line", field="cursor")


def audit_cursor(before: int) -> str:
    """A cursor for the rows of the audit with ids below this one."""
    return _encode(b"a%d" % before)


def audit_place(cursor: str) -> int:
    """The id below which a page of the audit begins. Raises BadRequest for a cursor that no server made."""
    return _id_of(_AUDIT, cursor, "the audit")


def users_cursor(after_key: str) -> str:
    """A cursor for the users after this key."""
    return _encode(b"u" + after_key.encode())


def users_place(cursor: str) -> str:
    """The key after which a page of users begins. Raises BadRequest for a cursor that no server made."""
    raw = _decode(cursor)
    try:
        key = raw[1:].decode()
    except UnicodeDecodeError:
        key = ""
    if raw[:1] == b"u" and key and "\0" not in key:
        return key
    raise BadRequest("cursor is not one of the users; leave it out to begin at the first", field="cursor")


def _id_of(pattern: re.Pattern[bytes], cursor: str, whose: str) -> int:
    found = pattern.fullmatch(_decode(cursor))
    if found is not None and int(found[1]) <= _MAX_ID:
        return int(found[1])
    raise BadRequest(f"cursor is not one of {whose}; leave it out to begin at the newest", field="cursor")


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(cursor: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except (ValueError, binascii.Error):
        return b""
