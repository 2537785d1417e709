"""A task's fields, as the command line gives them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from taskd.client.errors import ClientError, UsageError
from taskd.model.errors import BadRequest, TooLarge
from taskd.model.limits import MAX_KEY_CHARS
from taskd.model.tasks import check_key, check_kind, check_task_text

MAX_COMMON_KEY_CHARS = MAX_KEY_CHARS - 20
"""What a key may have that gets the line's number behind it."""


def task_fields(options: Namespace) -> dict[str, Any]:
    """The fields that options give, but for text and key; the rest is the server's to choose. Raises ClientError."""
    fields: dict[str, Any] = {}
    payload = _payload(options.payload) | read_fields(options.field)
    if payload:
        fields["payload"] = payload
    if options.kind is not None:
        try:
            fields["kind"] = check_kind(options.kind)
        except BadRequest:
            raise UsageError("bad_kind") from None
    for name in ("queue", "max_attempts", "timeout", "delay"):
        if getattr(options, name) is not None:
            fields[name] = getattr(options, name)
    if options.at is not None:
        fields["run_at"] = options.at.isoformat()
    return fields


def read_fields(given: Iterable[str]) -> dict[str, Any]:
    """The values in ``NAME=VALUE``, each JSON if it reads as such. Raises UsageError."""
    values = {}
    for field in given:
        name, equals, value = field.partition("=")
        if not equals or not name:
            raise UsageError("bad_field", given=field)
        values[name] = _value(value)
    return values


def kind_perhaps(words: Sequence[str]) -> str | None:
    """The kind that a task's text may name: if it is one word that has the form of a kind."""
    if len(words) != 1:
        return None
    try:
        return check_kind(words[0])
    except BadRequest:
        return None


def task_text(text: str, where: str = "") -> str:
    """The text, if a task can have it. ``where`` begins the error's message. Raises ClientError."""
    try:
        text.encode()
        return check_task_text(text)
    except (BadRequest, TooLarge, UnicodeEncodeError):
        raise ClientError("bad_task", where=where) from None


def check_own_key(key: str, common: bool) -> None:
    """Raises UsageError unless it can be a task's key, or ``common`` to those of all the lines."""
    limit = MAX_COMMON_KEY_CHARS if common else MAX_KEY_CHARS
    try:
        check_key(key)
    except BadRequest:
        key = ""
    if not 1 <= len(key) <= limit:
        raise UsageError("bad_key", limit=limit)


def line_key(key: str, number: int) -> str:
    """The key of one line of the input: the same in the next run, if the line has the same place there."""
    return f"{key}:{number}"


def _payload(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = msgspec.json.decode(text.encode())
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UsageError("bad_payload", example="'{\"seconds\": 2}'")
    return value


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text.encode())
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return text
