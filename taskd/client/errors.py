"""What can go wrong for the user of the client, and the exit codes that tell scripts about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskd.client.connection import Received

OK = 0
ERROR = 1
USAGE = 2
TIMED_OUT = 3
"""A waited-for task was cancelled, or the time given for waiting has passed."""
NOT_LOGGED_IN = 4
TASK_FAILED = 5
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143


class ClientError(Exception):
    """One clear line for the user. ``key`` names it in :mod:`taskd.cli.texts.catalogue`, ``fields`` fill it in.

    ``code`` is what ``--json`` says, from the protocol's list. ``transient`` troubles may be gone next time, but not
    before ``retry_after`` seconds. After one that is ``undone`` it is certain that nothing was created.
    """

    exit = ERROR
    retry_after = 0.0

    def __init__(
        self, key: str, *, code: str = "bad_request", transient: bool = False, undone: bool = True, **fields: Any
    ) -> None:
        super().__init__(key)
        self.key = key
        self.code = code
        self.transient = transient
        self.undone = undone
        self.fields = fields


class UsageError(ClientError):
    """The command line cannot be what was meant."""

    exit = USAGE


class NotLoggedIn(ClientError):
    """There is no session for this server, or the server does not know it any more."""

    exit = NOT_LOGGED_IN

    def __init__(self, key: str, **fields: Any) -> None:
        super().__init__(key, code="auth_required", **fields)


class ConnectionTrouble(ClientError):
    """No connection, or no longer one, or not to a taskd."""

    def __init__(self, key: str, *, transient: bool = True, undone: bool = False, **fields: Any) -> None:
        super().__init__(key, code="unavailable", transient=transient, undone=undone, **fields)


class Refused(ClientError):
    """The server answered with an error. ``received`` is its reply."""

    def __init__(self, received: Received) -> None:
        body = received.body
        code = body.code or "internal"
        super().__init__(
            "refused",
            code=code,
            transient=code in ("draining", "unavailable", "rate_limited"),
            # Without an id it may be the answer to another request
            undone=body.id is not None and code not in ("unavailable", "internal"),
            status=body.status,
            field=body.field,
            message=body.message,
        )
        self.received = received
        self.retry_after = body.retry_after or 0.0
        self.exit = NOT_LOGGED_IN if code == "auth_required" else ERROR


class Unconfirmed(ClientError):
    """Nobody knows whether the tasks exist; sent again under ``task_key`` they would not be created twice."""

    def __init__(self, cause: ClientError, task_key: str, why: str) -> None:
        super().__init__("unconfirmed", code=cause.code, undone=False, task_key=task_key, why=why)
        self.task_key = task_key
        self.exit = cause.exit


class EndOfInput(Exception):
    """The keyboard was closed with Ctrl-D, or the input has no further line."""


class OutputClosed(Exception):
    """Nobody reads our output any more, such as after ``| head``."""
