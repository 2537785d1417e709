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
    """One clear line for the user. ``key`` names it in :mod:`taskd.client.texts`, ``fields`` fill it in.

    ``code`` is what ``--json`` says, from the protocol's list. ``transient`` troubles may be gone next time.
    """

    exit = ERROR

    def __init__(self, key: str, *, code: str = "bad_request", transient: bool = False, **fields: Any) -> None:
        super().__init__(key)
        self.key = key
        self.code = code
        self.transient = transient
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

    def __init__(self, key: str, *, transient: bool = True, **fields: Any) -> None:
        super().__init__(key, code="unavailable", transient=transient, **fields)


class Refused(ClientError):
    """The server answered with an error. ``received`` is its reply."""

    def __init__(self, received: Received) -> None:
        body = received.body
        code = body.code or "internal"
        super().__init__(
            "refused",
            code=code,
            transient=code in ("draining", "unavailable"),
            status=body.status,
            message=body.message,
        )
        self.received = received
        self.exit = NOT_LOGGED_IN if code == "auth_required" else ERROR


class EndOfInput(Exception):
    """The keyboard was closed with Ctrl-D, or the input has no further line."""


class OutputClosed(Exception):
    """Nobody reads our output any more, such as after ``| head``."""
