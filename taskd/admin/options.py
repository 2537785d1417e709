"""The command line of taskadmin."""

from __future__ import annotations

import argparse
from pathlib import Path

from taskd.cli.texts.argparse_texts import translate_argparse
from taskd.cli.texts.catalogue import Texts
from taskd.config.declarations import ENV_FILE

SETTINGS = {"data": "FOLDER", "installation": "ID"}
"""The options of the daemons that override a variable, each with what it takes."""


def parser(texts: Texts) -> argparse.ArgumentParser:
    """The parser for ``taskadmin``. It raises SystemExit(2) for a command line that it does not understand."""
    translate_argparse(texts)
    main = argparse.ArgumentParser(
        prog="taskadmin", description=texts("main"), epilog=texts("exit"), allow_abbrev=False
    )
    _add_settings(main, texts, None)
    commands = main.add_subparsers(
        title=texts("commands"), dest="command", metavar=texts("command"), required=True, help=""
    )

    def command(name: str) -> argparse.ArgumentParser:
        text = texts(name)
        added = commands.add_parser(name, help=text.split(". ")[0], description=text, allow_abbrev=False)
        _add_settings(added, texts, argparse.SUPPRESS)
        return added

    create = command("create-admin")
    create.add_argument("name", metavar="NAME", help=texts("option.name"))
    create.add_argument("--existing", action="store_true", help=texts("option.existing"))
    for name in ("reset-password", "reset-totp"):
        command(name).add_argument("name", metavar="NAME", help=texts("option.name"))
    users = command("import-users")
    users.add_argument("file", metavar="FILE.csv", type=Path, help=texts("option.file"))
    users.add_argument("--output", metavar="FILE", type=Path, help=texts("option.output"))
    bind = command("bind-local")
    bind.add_argument("name", metavar="NAME", help=texts("option.name"))
    uid = bind.add_mutually_exclusive_group(required=True)
    uid.add_argument("uid", metavar="UID", nargs="?", help=texts("option.uid"))
    uid.add_argument("--none", action="store_true", help=texts("option.none"))
    command("migrate")
    command("check")
    return main


def _add_settings(parser: argparse.ArgumentParser, texts: Texts, default: str | None) -> None:
    """A command has the options of main too, without a default, so that they may stand before or after its name."""
    short = f"-{ENV_FILE.short}"
    parser.add_argument(short, f"--{ENV_FILE.name}", metavar="FILE", default=default, help=texts("option.env-file"))
    for name, metavar in SETTINGS.items():
        parser.add_argument(f"--{name}", metavar=metavar, default=default, help=texts(f"option.{name}"))
