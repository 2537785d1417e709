"""From the options of the command line to the fields of a new task."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from taskd.cli.errors import UsageError
from taskd.client.errors import ClientError
from taskd.model.errors import BadRequest, TooLarge
from taskd.model.limits import MAX_KEY_CHARS
from taskd.model.task_checks import check_key, check_kind, check_task_text

MAX_KEY_PREFIX_CHARS = MAX_KEY_CHARS - 20
"""The most characters of ``--key`` with lines from the input, each of which appends its number."""


_T = TypeVar("_T")


def checked(check: Callable[[str], _T], value: str, error: Exception) -> _T:
    """What the check returns. Raises this error, which is in the user's language, for a value that it refuses."""
    try:
        return check(value)
    except (BadRequest, TooLarge, ValueError):
        raise error from None


def task_fields(options: Namespace) -> dict[str, Any]:
    """The fields that options give, without text and key. The server chooses the others. Raises UsageError."""
    fields: dict[str, Any] = {}
    payload = _payload(options.payload) | read_fields(options.field)
    if payload:
        fields["payload"] = payload
    if options.kind is not None:
        fields["kind"] = checked(check_kind, options.kind, UsageError("bad_kind"))
    for name in ("queue", "max_attempts", "timeout", "delay"):
        if getattr(options, name) is not None:
            fields[name] = getattr(options, name)
    if options.at is not None:
        fields["run_at"] = options.at.isoformat()
    return fields


def read_fields(given: Iterable[str]) -> dict[str, Any]:
    """The values in ``NAME=VALUE``. A value that is not JSON is a string. Raises UsageError."""
    values = {}
    for field in given:
        name, equals, value = field.partition("=")
        if not equals or not name:
            raise UsageError("bad_field", given=field)
        values[name] = _value(value)
    return values


def possible_kind(words: Sequence[str]) -> str | None:
    """The kind that a task's text may name: the text must be one word that has the form of a kind."""
    if len(words) != 1:
        return None
    try:
        return check_kind(words[0])
    except BadRequest:
        return None


def task_text(text: str, where: str = "") -> str:
    """The text, checked. ``where`` begins the message of the error. Raises ClientError."""
    error = ClientError("bad_task", where=where)
    checked(str.encode, text, error)
    return checked(check_task_text, text, error)


def checked_key(key: str, from_input: bool) -> str:
    """The value of ``--key``, checked: a task's key, or the prefix of the keys of all lines. Raises UsageError."""
    limit = MAX_KEY_PREFIX_CHARS if from_input else MAX_KEY_CHARS
    error = UsageError("bad_key", limit=limit)
    checked(check_key, key, error)
    if len(key) > limit:
        raise error
    return key


def _payload(text: str | None) -> dict[str, Any]:
    value = {} if text is None else _value(text)
    if not isinstance(value, dict):
        raise UsageError("bad_payload", example="'{\"seconds\": 2}'")
    return value


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text.encode())
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return text
