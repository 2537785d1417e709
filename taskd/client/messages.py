"""What the server sends: one line for each reply or event."""

from __future__ import annotations

from typing import Any, NamedTuple

from msgspec import Raw, Struct


class Message(Struct):
    """The fields of a reply or an event. Tasks stay encoded, because they are printed or passed on as they came."""

    id: Any = None
    ok: bool | None = None
    event: str | None = None
    status: str = ""
    code: str | None = None
    field: str | None = None
    message: str = ""
    retry_after: float | None = None
    token: str = ""
    username: str = ""
    task_id: int = 0
    task_ids: list[int] = []
    duplicate: bool = False
    duplicates: list[int] = []
    task: Raw = Raw(b"null")
    tasks: list[Raw] = []
    cursor: str | None = None
    done: bool = False
    kinds: list[Raw] = []
    routes: list[Raw] = []
    scope: str = ""
    rate_seconds: float = 0.0
    more: bool = False
    weight: float = 0.0
    state: str | None = None
    sessions: list[Raw] = []
    users: list[Raw] = []
    invitations: list[Raw] = []
    audit: list[Raw] = []
    ended: int = 0
    totp: bool = False


class Received(NamedTuple):
    """One line of the server, without its line end, and its decoded fields."""

    line: bytes
    body: Message
