"""The parser of the command line: commands, their options, and help in the user's language."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeAlias

from taskd.cli.durations import duration, moment_in, seconds_in
from taskd.cli.texts import help as texts_of_help
from taskd.cli.texts.catalogue import Texts
from taskd.model.limits import MAX_DELAY_SECONDS, MAX_TIMEOUT_SECONDS
from taskd.model.states import SHOWN_STATES, STATUSES
from taskd.protocol.limits import MAX_PAGE

Parser = argparse.ArgumentParser
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def parser(texts: Texts) -> Parser:
    """The parser for ``taskclient``. It raises SystemExit(2) for a command line that it does not understand."""
    return _Builder(texts).build()


class _Builder:
    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        # argparse translates its texts with this function; the documented way needs a compiled gettext catalogue
        vars(argparse)["_"] = self._translate

    def build(self) -> Parser:
        main = Parser(
            prog="taskclient",
            description=self._summary("main"),
            epilog=self._epilog("main") + "\n\n" + self._help("exit"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._common(main, top=True)
        commands = main.add_subparsers(title=self._help("commands"), dest="command", metavar=self._help("command"))
        self._accounts(commands)
        self._tasks(commands)
        return main

    def _accounts(self, commands: Commands) -> None:
        for name in ("register", "login"):
            self._argument(self._command(commands, name, self._help("password")), "username", nargs="?")
        self._command(commands, "logout")
        self._command(commands, "whoami")

    def _tasks(self, commands: Commands) -> None:
        number = self._positive
        delay = self._duration(MAX_DELAY_SECONDS)
        spanish = self._texts.lang == "es"

        add = self._command(commands, "add")
        text = f"{self._help('text')} {self._help('kind_or_text')}"
        add.add_argument("text", nargs="*", metavar="TIPO|TEXTO" if spanish else "KIND|TEXT", help=text)
        self._argument(add, "--stdin", action="store_true")
        self._argument(add, "--kind", metavar="K")
        self._argument(add, "--payload", metavar="JSON")
        name_value = "NOMBRE=VALOR" if spanish else "NAME=VALUE"
        self._argument(add, "--field", metavar=name_value, action="append", default=[])
        self._argument(add, "--queue", metavar="Q")
        self._argument(add, "--max-attempts", metavar="N", type=number)
        self._argument(add, "--timeout", metavar="T", type=self._duration(MAX_TIMEOUT_SECONDS, zero=False))
        begin = add.add_mutually_exclusive_group()
        self._argument(begin, "--delay", metavar="T", type=delay)
        self._argument(begin, "--at", metavar="WHEN", type=self._moment)
        self._argument(add, "--key", metavar="K")
        self._argument(add, "--wait", action="store_true")
        self._argument(add, "--wait-timeout", metavar="T", type=delay)

        tasks = self._command(commands, "list")
        self._argument(tasks, "--status", choices=STATUSES, metavar="STATUS")
        self._argument(tasks, "--state", choices=SHOWN_STATES, metavar="STATE")
        self._argument(tasks, "--kind", "kind_filter", metavar="K")
        amount = tasks.add_mutually_exclusive_group()
        self._argument(amount, "--limit", metavar="N", type=number)
        self._argument(amount, "--all", action="store_true")

        show = self._command(commands, "show")
        self._argument(show, "task_id", metavar="ID", type=number)

        watch = self._command(commands, "watch")
        self._argument(watch, "--limit", "watch_limit", metavar="N", type=self._page, default=10)

        wait = self._command(commands, "wait")
        self._argument(wait, "task_ids", "task_id", metavar="ID", nargs="+", type=number)
        self._argument(wait, "--timeout", "wait_timeout", metavar="T", type=delay)

        log = self._command(commands, "log")
        self._argument(log, "task_id", metavar="ID", type=number)
        log.add_argument("-f", "--follow", action="store_true", help=self._help("follow"))
        log.add_argument("-n", "--lines", metavar="N", type=number, help=self._help("lines"))
        self._argument(log, "--attempt", metavar="N", type=number)
        self._argument(log, "--times", action="store_true")

        explain = self._command(commands, "explain")
        self._argument(explain, "task_id", metavar="ID", type=number)

        for name in ("cancel", "retry"):
            self._argument(self._command(commands, name), "task_ids", "task_id", metavar="ID", nargs="+", type=number)

        self._command(commands, "kinds")

    def _argument(self, command: argparse._ActionsContainer, flag: str, help_key: str = "", **how: Any) -> None:
        """Add an option or argument. Its help has the name of the option, unless ``help_key`` is given."""
        key = help_key or flag.lstrip("-").replace("-", "_")
        command.add_argument(flag, help=self._help(key), **how)

    def _command(self, commands: Commands, name: str, more: str = "") -> Parser:
        summary = self._summary(name)
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary} {more}".strip(),
            epilog=self._epilog(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._common(command, top=False)
        return command

    def _common(self, command: Parser, top: bool) -> None:
        # A command has them too, without a default, so that they may stand before or after its name
        self._argument(command, "--server", metavar="ADDR", default=None if top else argparse.SUPPRESS)
        self._argument(command, "--json", action="store_true", default=False if top else argparse.SUPPRESS)

    def _translate(self, message: str) -> str:
        return _SPANISH.get(message, message) if self._texts.lang == "es" else message

    def _summary(self, name: str) -> str:
        return texts_of_help.summary(name, self._texts.lang).replace("%", "%%")

    def _help(self, name: str) -> str:
        return texts_of_help.option(name, self._texts.lang)

    def _epilog(self, name: str) -> str:
        examples = texts_of_help.EXAMPLES.get(name)
        return f"{self._help('examples')}\n{examples}".replace("%", "%%") if examples else ""

    def _positive(self, text: str) -> int:
        if text.isascii() and text.isdecimal() and len(text) < 20 and 1 <= int(text) < 2**63:
            return int(text)
        raise argparse.ArgumentTypeError(self._texts("bad_number", given=text))

    def _page(self, text: str) -> int:
        return min(self._positive(text), MAX_PAGE)

    def _duration(self, most: float, zero: bool = True) -> Callable[[str], float]:
        """The ``type`` of an option that is a duration, in seconds."""

        def read(text: str) -> float:
            try:
                seconds = seconds_in(text)
            except ValueError:
                raise argparse.ArgumentTypeError(self._texts("bad_duration", given=_printable(text))) from None
            if not (seconds or zero):
                raise argparse.ArgumentTypeError(self._texts("no_duration"))
            if seconds > most:
                longest = duration(most)
                raise argparse.ArgumentTypeError(self._texts("long_duration", given=_printable(text), most=longest))
            return seconds

        return read

    def _moment(self, text: str) -> datetime:
        try:
            return moment_in(text)
        except ValueError:
            raise argparse.ArgumentTypeError(self._texts("bad_moment", given=_printable(text))) from None


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


_SPANISH = {
    "usage: ": "uso: ",
    "positional arguments": "argumentos",
    "options": "opciones",
    "show this help message and exit": "mostrar esta ayuda y salir",
    "%(prog)s: error: %(message)s\n": "%(prog)s: error: %(message)s\n",
    "the following arguments are required: %s": "faltan estos argumentos: %s",
    "unrecognized arguments: %s": "argumentos desconocidos: %s",
    "expected one argument": "falta su valor",
    "expected at least one argument": "falta al menos un valor",
    "argument %(argument_name)s: %(message)s": "argumento %(argument_name)s: %(message)s",
    "invalid choice: %(value)r (choose from %(choices)s)": "valor no válido: %(value)r (elija %(choices)s)",
    "invalid %(type)s value: %(value)r": "valor no válido: %(value)r",
    "not allowed with argument %s": "no se admite junto con %s",
    "one of the arguments %s is required": "hace falta uno de estos argumentos: %s",
    "ignored explicit argument %r": "no admite el valor %r",
}
