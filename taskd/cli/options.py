"""The parser of the command line: commands, their options, and help in the user's language."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime

from taskd.cli.durations import duration, moment_in, seconds_in
from taskd.cli.texts import help as texts_of_help
from taskd.cli.texts.catalogue import Texts
from taskd.model.limits import MAX_DELAY_SECONDS, MAX_TIMEOUT_SECONDS
from taskd.model.states import SHOWN_STATES, STATUSES
from taskd.protocol.limits import MAX_PAGE

Parser = argparse.ArgumentParser


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

    def _accounts(self, commands: argparse._SubParsersAction[Parser]) -> None:
        for name in ("register", "login"):
            command = self._command(commands, name, self._help("password"))
            command.add_argument("username", nargs="?", help=self._help("username"))
        self._command(commands, "logout")
        self._command(commands, "whoami")

    def _tasks(self, commands: argparse._SubParsersAction[Parser]) -> None:
        number = self._positive
        delay = self._duration(MAX_DELAY_SECONDS)

        add = self._command(commands, "add")
        text = "TIPO|TEXTO" if self._texts.lang == "es" else "KIND|TEXT"
        add.add_argument("text", nargs="*", metavar=text, help=f"{self._help('text')} {self._help('kind_or_text')}")
        add.add_argument("--stdin", action="store_true", help=self._help("stdin"))
        add.add_argument("--kind", metavar="K", help=self._help("kind"))
        add.add_argument("--payload", metavar="JSON", help=self._help("payload"))
        name_value = "NOMBRE=VALOR" if self._texts.lang == "es" else "NAME=VALUE"
        add.add_argument("--field", metavar=name_value, action="append", default=[], help=self._help("field"))
        add.add_argument("--queue", metavar="Q", help=self._help("queue"))
        add.add_argument("--max-attempts", metavar="N", type=number, help=self._help("max_attempts"))
        limit = self._duration(MAX_TIMEOUT_SECONDS, zero=False)
        add.add_argument("--timeout", metavar="T", type=limit, help=self._help("timeout"))
        begin = add.add_mutually_exclusive_group()
        begin.add_argument("--delay", metavar="T", type=delay, help=self._help("delay"))
        begin.add_argument("--at", metavar="WHEN", type=self._moment, help=self._help("at"))
        add.add_argument("--key", metavar="K", help=self._help("key"))
        add.add_argument("--wait", action="store_true", help=self._help("wait"))
        add.add_argument("--wait-timeout", metavar="T", type=delay, help=self._help("wait_timeout"))

        tasks = self._command(commands, "list")
        tasks.add_argument("--status", choices=STATUSES, metavar="STATUS", help=self._help("status"))
        tasks.add_argument("--state", choices=SHOWN_STATES, metavar="STATE", help=self._help("state"))
        tasks.add_argument("--kind", metavar="K", help=self._help("kind_filter"))
        amount = tasks.add_mutually_exclusive_group()
        amount.add_argument("--limit", metavar="N", type=number, help=self._help("limit"))
        amount.add_argument("--all", action="store_true", help=self._help("all"))

        show = self._command(commands, "show")
        show.add_argument("task_id", metavar="ID", type=number, help=self._help("task_id"))

        watch = self._command(commands, "watch")
        watch.add_argument("--limit", metavar="N", type=self._page, default=10, help=self._help("watch_limit"))

        wait = self._command(commands, "wait")
        wait.add_argument("task_ids", metavar="ID", nargs="+", type=number, help=self._help("task_id"))
        wait.add_argument("--timeout", metavar="T", type=delay, help=self._help("wait_timeout"))

        log = self._command(commands, "log")
        log.add_argument("task_id", metavar="ID", type=number, help=self._help("task_id"))
        log.add_argument("-f", "--follow", action="store_true", help=self._help("follow"))
        log.add_argument("-n", "--lines", metavar="N", type=number, help=self._help("lines"))
        log.add_argument("--attempt", metavar="N", type=number, help=self._help("attempt"))
        log.add_argument("--times", action="store_true", help=self._help("times"))

        explain = self._command(commands, "explain")
        explain.add_argument("task_id", metavar="ID", type=number, help=self._help("task_id"))

        for name in ("cancel", "retry"):
            command = self._command(commands, name)
            command.add_argument("task_ids", metavar="ID", nargs="+", type=number, help=self._help("task_id"))

        self._command(commands, "kinds")

    def _command(self, commands: argparse._SubParsersAction[Parser], name: str, more: str = "") -> Parser:
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
        given = None if top else argparse.SUPPRESS
        command.add_argument("--server", metavar="ADDR", default=given, help=self._help("server"))
        command.add_argument(
            "--json",
            action="store_true",
            default=False if top else argparse.SUPPRESS,
            help=self._help("json"),
        )

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
