"""Which function runs which command."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Awaitable, Callable

from taskd.cli.commands import accounts, tasks
from taskd.cli.commands.add import add
from taskd.cli.commands.kinds import kinds
from taskd.cli.commands.log import log
from taskd.cli.commands.wait import wait
from taskd.cli.commands.watch import watch
from taskd.cli.context import Context

COMMANDS: dict[str, Callable[[Context, Namespace], Awaitable[int]]] = {
    "register": accounts.register,
    "login": accounts.login,
    "logout": accounts.logout,
    "whoami": accounts.whoami,
    "add": add,
    "list": tasks.list_tasks,
    "show": tasks.show,
    "watch": watch,
    "wait": wait,
    "log": log,
    "explain": tasks.explain,
    "cancel": tasks.cancel,
    "retry": tasks.retry,
    "kinds": kinds,
}
"""Each returns the exit status, or raises ClientError, EndOfInput or OutputClosed."""
