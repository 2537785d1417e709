"""The parser of the command line: commands, their options, and help in the user's language."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime
from typing import Any

from taskd.cli.commands.quota import DEFAULT
from taskd.cli.durations import duration, moment_in, number_in, seconds_in
from taskd.cli.fields import checked
from taskd.cli.texts import help as texts_of_help
from taskd.cli.texts.catalogue import Texts
from taskd.model.limits import MAX_DELAY_SECONDS, MAX_TIMEOUT_SECONDS, MAX_WEIGHT, MIN_WEIGHT
from taskd.model.quotas import MAX_QUOTA, MAX_QUOTA_MIB
from taskd.model.states import SHOWN_STATES, STATUSES
from taskd.protocol.limits import MAX_PAGE

Parser = argparse.ArgumentParser


def parser(texts: Texts) -> Parser:
    """The parser for ``taskclient``. It raises SystemExit(2) for a command line that it does not understand."""
    return _Builder(texts).main


class _Builder:
    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        # argparse translates its texts with this function; the documented way needs a compiled gettext catalogue
        vars(argparse)["_"] = self._translate
        self.main = Parser(prog="taskclient", **self._description("main"))
        self.main.epilog = f"{self.main.epilog}\n\n{self._help('exit')}"
        self._add_common(self.main, server=None, json=False)
        self._commands = self.main.add_subparsers(
            title=self._help("commands"),
            dest="command",
            metavar=self._help("command"),
            help="",
        )
        self._add_commands()
        for name, command in [("main", self.main), *self._commands.choices.items()]:
            for action in command._actions:
                if action.help is None:
                    action.help = texts_of_help.option(action.dest, texts.lang, name)

    def _add_commands(self) -> None:
        number: dict[str, Any] = {"metavar": "N", "type": self._positive}
        task: dict[str, Any] = {"metavar": "ID", "type": self._positive}
        delay: dict[str, Any] = {"metavar": "T", "type": self._duration(MAX_DELAY_SECONDS)}
        spanish = self._texts.lang == "es"

        for name in ("register", "login"):
            self._command(name, self._help("password")).add_argument("username", nargs="?")
        self._command("logout")
        self._command("whoami")

        add = self._command("add")
        add.add_argument("text", nargs="*", metavar="TIPO|TEXTO" if spanish else "KIND|TEXT")
        add.add_argument("--stdin", action="store_true")
        add.add_argument("--kind", metavar="K")
        add.add_argument("--payload", metavar="JSON")
        name_value = "NOMBRE=VALOR" if spanish else "NAME=VALUE"
        add.add_argument("--field", metavar=name_value, action="append", default=[])
        add.add_argument("--queue", metavar="Q")
        add.add_argument("--max-attempts", **number)
        add.add_argument("--timeout", metavar="T", type=self._duration(MAX_TIMEOUT_SECONDS, zero=False))
        begin = add.add_mutually_exclusive_group()
        begin.add_argument("--delay", **delay)
        begin.add_argument("--at", metavar="WHEN", type=self._moment)
        add.add_argument("--key", metavar="K")
        add.add_argument("--wait", action="store_true")
        add.add_argument("--wait-timeout", **delay)

        tasks = self._command("list")
        tasks.add_argument("--status", choices=STATUSES, metavar="STATUS")
        tasks.add_argument("--state", choices=SHOWN_STATES, metavar="STATE")
        tasks.add_argument("--kind", metavar="K")
        amount = tasks.add_mutually_exclusive_group()
        amount.add_argument("--limit", **number)
        amount.add_argument("--all", action="store_true")

        self._command("show").add_argument("task_id", **task)
        self._command("watch").add_argument("--limit", metavar="N", type=self._page, default=10)

        wait = self._command("wait")
        wait.add_argument("task_ids", nargs="+", **task)
        wait.add_argument("--timeout", dest="wait_timeout", **delay)

        log = self._command("log")
        log.add_argument("task_id", **task)
        log.add_argument("-f", "--follow", action="store_true")
        log.add_argument("-n", "--lines", **number)
        log.add_argument("--attempt", **number)
        log.add_argument("--times", action="store_true")

        self._command("explain").add_argument("task_id", **task)
        for name in ("cancel", "retry"):
            self._command(name).add_argument("task_ids", nargs="+", **task)
        self._command("kinds")
        self._command("overview")
        quota = self._command("quota")
        quota.add_argument("username", nargs="?", metavar="USER")
        for name, most in (("open", MAX_QUOTA), ("daily", MAX_QUOTA), ("mib", MAX_QUOTA_MIB)):
            quota.add_argument(f"--{name}", metavar="N", type=self._quota(most))
        weight = self._command("weight")
        weight.add_argument("username", metavar="USER")
        weight.add_argument("weight", metavar="WEIGHT", type=self._weight)

    def _command(self, name: str, more: str = "") -> Parser:
        command: Parser = self._commands.add_parser(name, help=self._summary(name), **self._description(name, more))
        # A command has the options of main too, without a default, so that they may stand before or after its name
        self._add_common(command, argparse.SUPPRESS, argparse.SUPPRESS)
        return command

    def _description(self, name: str, more: str = "") -> dict[str, Any]:
        return {
            "description": f"{self._summary(name)} {more}".strip(),
            "epilog": self._epilog(name),
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "allow_abbrev": False,
        }

    @staticmethod
    def _add_common(command: Parser, server: str | None, json: str | bool) -> None:
        command.add_argument("--server", metavar="ADDR", default=server)
        command.add_argument("--json", action="store_true", default=json)

    def _translate(self, message: str) -> str:
        return _SPANISH.get(message, message) if self._texts.lang == "es" else message

    def _summary(self, name: str) -> str:
        return texts_of_help.summary(name, self._texts.lang).replace("%", "%%")

    def _help(self, name: str) -> str:
        return texts_of_help.option(name, self._texts.lang)

    def _epilog(self, name: str) -> str:
        examples = texts_of_help.EXAMPLES.get(name)
        return f"{self._help('examples')}\n{examples}".replace("%", "%%") if examples else ""

    def _error(self, key: str, **fields: str) -> argparse.ArgumentTypeError:
        return argparse.ArgumentTypeError(self._texts(key, **fields))

    def _positive(self, text: str) -> int:
        return checked(number_in, text, self._error("bad_number", given=text))

    def _weight(self, text: str) -> float:
        wrong = self._error("bad_weight", given=text, least=f"{MIN_WEIGHT:g}", most=f"{MAX_WEIGHT:g}")
        weight: float = checked(float, text, wrong)
        if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
            raise wrong
        return weight

    def _quota(self, most: int) -> Callable[[str], int | str]:
        """The ``type`` of an option that is a limit of a user, or the word for the default."""

        def read(text: str) -> int | str:
            if text == DEFAULT:
                return text
            if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= most):
                raise self._error("bad_quota", given=text, most=f"{most}", default=DEFAULT)
            return int(text)

        return read

    def _page(self, text: str) -> int:
        return min(self._positive(text), MAX_PAGE)

    def _moment(self, text: str) -> datetime:
        return checked(moment_in, text, self._error("bad_moment", given=text))

    def _duration(self, most: float, zero: bool = True) -> Callable[[str], float]:
        """The ``type`` of an option that is a duration, in seconds."""

        def read(text: str) -> float:
            seconds = checked(seconds_in, text, self._error("bad_duration", given=text))
            if not (seconds or zero):
                raise self._error("no_duration")
            if seconds > most:
                raise self._error("long_duration", given=text, most=duration(most))
            return seconds

        return read


_SPANISH = {
    "usage: ": "uso: ",
    "positional arguments": "argumentos",
    "options": "opciones",
    "show this help message and exit": "mostrar esta ayuda y salir",
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
