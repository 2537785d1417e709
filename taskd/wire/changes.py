"""News of changed tasks, as they travel over the fan-out from whoever changed them to every server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec
from msgspec import Raw, Struct

from taskd.model import State, Task
from taskd.wire.messages import encode, view


class Change(Struct, array_like=True):
    """One change of state. ``view`` is the encoded :class:`~taskd.wire.messages.TaskView`, passed on unread."""

    user_id: int
    task_id: int
    version: int
    state: State
    queue: str
    view: Raw


class News(Struct, array_like=True):
    """All changes of one batch. ``origin`` is the id of the process that made them."""

    origin: str
    changes: list[Change]


_decode = msgspec.json.Decoder(News).decode


def changes_of(tasks: Iterable[Task], now: datetime) -> list[Change]:
    """The changes that led to these tasks' present state."""
    return [Change(t.user_id, t.id, t.version, t.state, t.queue, Raw(encode(view(t, now)))) for t in tasks]


def encode_news(origin: str, changes: Sequence[Change]) -> bytes:
    """News for :meth:`taskd.ports.IBroker.announce`."""
    return encode(News(origin, list(changes)))


def news_prefix(origin: str) -> bytes:
    """How all news of this origin begin, so that it can pass over its own unread."""
    return b"[" + encode(origin) + b","


def decode_news(body: bytes) -> News:
    """The reverse of :func:`encode_news`. Raises msgspec.MsgspecError or UnicodeDecodeError."""
    return _decode(body)
