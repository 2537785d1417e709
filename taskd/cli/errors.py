"""What ends a command besides the errors of the client library."""

from __future__ import annotations

from taskd.client.errors import ClientError


class UsageError(ClientError):
    """The command line makes no sense."""


class EndOfInput(Exception):
    """The input has no further line, or the user pressed Ctrl-D."""


class OutputClosed(Exception):
    """Nobody reads the output any more, for example after ``| head``."""
