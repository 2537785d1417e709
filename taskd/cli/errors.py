"""What ends a command besides the errors of the client library, and its exit status: the README documents it."""

from __future__ import annotations

from taskd.client.errors import BadAddress, ClientError, NeedsTls

OK = 0
ERROR = 1
USAGE = 2
TIMED_OUT = 3
"""A task that was waited for was cancelled, or the time limit for waiting has passed."""
NOT_LOGGED_IN = 4
TASK_FAILED = 5
INTERRUPTED = 130
"""128 and the number of the signal, as for every signal."""
BROKEN_PIPE = 141


class UsageError(ClientError):
    """The command line makes no sense."""


class EndOfInput(Exception):
    """The input has no further line, or the user pressed Ctrl-D."""


class OutputClosed(Exception):
    """Nobody reads the output any more, for example after ``| head``."""


def exit_status(e: ClientError) -> int:
    """The exit status for an error that ends a command."""
    if isinstance(e, (UsageError, BadAddress, NeedsTls)):
        return USAGE
    # NotLoggedIn, the server's refusal, or an Unconfirmed that one of them caused
    return NOT_LOGGED_IN if e.code == "auth_required" else ERROR
