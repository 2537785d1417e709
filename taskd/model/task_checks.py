"""Checks of what users write about a task: its text, its kind, its key."""

from __future__ import annotations

from taskd.model.errors import BadRequest, TooLarge
from taskd.model.limits import MAX_KEY_CHARS, MAX_KIND_CHARS, MAX_TASK_CHARS
from taskd.model.text import SURROGATE
from taskd.model.visible import has_visible

_KIND_EXTRA = str.maketrans(dict.fromkeys("_.:-", "x"))


def check_task_text(text: str) -> str:
    """The text of a task, unchanged. Raises BadRequest when empty, too long, or not storable."""
    if not ("!" <= text[:1] <= "~" or has_visible(text)):
        raise BadRequest("task must have at least one visible character", field="task")
    if len(text) > MAX_TASK_CHARS:
        raise TooLarge(f"task must have at most {MAX_TASK_CHARS} characters", field="task")
    if "\0" in text:
        raise BadRequest("task must not contain the NUL character", field="task")
    if not text.isascii() and SURROGATE.search(text):
        raise BadRequest("task must be valid Unicode text", field="task")
    return text


def check_kind(kind: str) -> str:
    """The kind of a task, unchanged. Raises BadRequest unless it is 1 to 64 of ``A-Z a-z 0-9 _ . : -``."""
    if not 1 <= len(kind) <= MAX_KIND_CHARS or not kind.isascii() or not kind.translate(_KIND_EXTRA).isalnum():
        raise BadRequest(f"kind must be 1 to {MAX_KIND_CHARS} of letters, digits and _ . : -", field="kind")
    return kind


def check_key(key: str) -> str:
    """An idempotency key, unchanged. Raises BadRequest unless it is 1 to 128 printable characters."""
    if not 1 <= len(key) <= MAX_KEY_CHARS or not key.isprintable():
        raise BadRequest(f"key must be 1 to {MAX_KEY_CHARS} printable characters", field="key")
    return key
