"""``taskadmin``: from the command line to an exit status."""

from __future__ import annotations

import os
import pwd
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner

from taskd.admin import commands
from taskd.admin.checks import check
from taskd.admin.commands import Admin
from taskd.admin.failure import Failed, explained
from taskd.admin.options import SETTINGS, parser
from taskd.admin.texts import WORDS
from taskd.cli.errors import BROKEN_PIPE, ERROR, OK
from taskd.cli.std_streams import note, run_program
from taskd.cli.texts.catalogue import Texts, language
from taskd.config import Settings
from taskd.config.reading import read_settings
from taskd.daemon import open_store
from taskd.model.errors import SettingsError

COMMANDS = {
    "create-admin": commands.create_admin,
    "reset-password": commands.reset_password,
    "reset-totp": commands.reset_totp,
    "import-users": commands.import_users,
    "bind-local": commands.bind_local,
    "migrate": commands.migrate,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status, whatever happens."""
    return run_program(_main, argv, Texts(language(os.environ), WORDS))


def _main(argv: Sequence[str], texts: Texts) -> int:
    try:
        options = parser(texts).parse_args(argv)
    except SystemExit as e:  # argparse has printed its error or its help
        return int(e.code or 0)
    try:
        given = {name: getattr(options, name) for name in SETTINGS}
        settings = read_settings(options.env_file, options=given)
    except SettingsError as e:
        note(f"taskadmin: {e}")
        return ERROR
    from twisted.internet.task import react

    # Twisted would log to standard error, with tracebacks that do not help the user
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    ended: list[int] = []

    async def run(reactor: Any) -> None:
        ended.append(await perform(reactor, options, settings, texts))

    with suppress(SystemExit):
        react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
    if not ended:
        # a signal has stopped the reactor
        raise KeyboardInterrupt
    return ended[0]


async def perform(reactor: Any, options: Namespace, settings: Settings, texts: Texts) -> int:
    """Run the command and report its error, a line for each thing that is wrong. Returns the exit status."""
    try:
        await _run(reactor, options, settings, texts)
    except BrokenPipeError:
        return BROKEN_PIPE
    except Exception as e:
        lines = explained(e, settings, texts)
    else:
        return OK
    for line in lines:
        note(f"taskadmin: {' '.join(line.split())}")
    return ERROR


async def _run(reactor: Any, options: Namespace, settings: Settings, texts: Texts) -> None:
    """Open the store, run the command on it, and close it."""
    if settings.embedded:
        _check_folder(settings.data, texts)
    if options.command == "check":
        await check(reactor, settings, texts, Path(options.env_file or ".env"))
        return
    store = open_store(settings, reactor)
    try:
        await store.start_once()
        await COMMANDS[options.command](Admin(store, texts, sys.stdout, note), options)
    finally:
        await store.stop()


def _check_folder(folder: Path, texts: Texts) -> None:
    """Raises Failed if the folder is another user's: files that this one made there would keep its server out."""
    try:
        owner = folder.stat().st_uid
    except OSError:
        return
    if owner != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        raise Failed(texts("foreign_data", folder=folder, owner=name))
