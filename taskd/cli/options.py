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
from taskd.cli.texts.argparse_texts import translate_argparse
from taskd.cli.texts.catalogue import Texts
from taskd.model.limits import (
    MAX_DELAY_SECONDS,
    MAX_INVITATION_DAYS,
    MAX_INVITATION_USES,
    MAX_TIMEOUT_SECONDS,
    MAX_TOKEN_DAYS,
    MAX_WEIGHT,
    MIN_WEIGHT,
)
from taskd.model.quotas import MAX_QUOTA, MAX_QUOTA_MIB
from taskd.model.states import SHOWN_STATES, STATUSES
from taskd.model.users import Role
from taskd.protocol.limits import MAX_PAGE

Parser = argparse.ArgumentParser


def parser(texts: Texts) -> Parser:
    """The parser for ``taskclient``. It raises SystemExit(2) for a command line that it does not understand."""
    return _Builder(texts).main


class _Builder:
    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        translate_argparse(texts)
        self.main = Parser(prog="taskclient", **self._description("main"))
        self.main.epilog = f"{self.main.epilog}\n\n{self._help('exit')}"
        self._add_common(self.main)
        self._named = {"main": self.main}
        self._commands = self.main.add_subparsers(
            title=self._help("commands"),
            dest="command",
            metavar=self._help("command"),
            help="",
        )
        self._add_commands()
        self._add_account_commands()
        for name, command in self._named.items():
            for action in command._actions:
                if action.help is None:
                    action.help = texts_of_help.option(action.dest, texts.lang, name)

    def _add_commands(self) -> None:
        number: dict[str, Any] = {"metavar": "N", "type": self._positive}
        task: dict[str, Any] = {"metavar": "ID", "type": self._positive}
        delay: dict[str, Any] = {"metavar": "T", "type": self._duration(MAX_DELAY_SECONDS)}
        spanish = self._texts.lang == "es"

        for name in ("register", "login"):
            command = self._command(name, self._help("password"))
            command.add_argument("username", nargs="?")
            self._add_no_wait(command)
        invitation = self._named["register"].add_mutually_exclusive_group()
        invitation.add_argument("--invitation", action="store_true")
        invitation.add_argument("--invitation-file", metavar="FILE")
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
        tasks.add_argument("--user", dest="username", metavar="USER")
        self._add_amount(tasks)

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

    def _add_account_commands(self) -> None:
        one: dict[str, Any] = {"metavar": "ID", "type": self._positive}

        passwd = self._command("passwd", self._help("new_password"))
        passwd.add_argument("username", nargs="?")
        passwd.add_argument("--code", action="store_true")
        self._add_no_wait(passwd)
        self._add_no_wait(self._command("delete-account", self._help("password")))

        totp = self._verbs(self._command("totp"), required=True)
        for verb in ("on", "off"):
            self._add_no_wait(self._command(f"totp {verb}", self._help("totp_input"), under=totp))
        self._command("totp status", under=totp)

        end = self._command("sessions").add_mutually_exclusive_group()
        end.add_argument("--end", **one)
        end.add_argument("--end-all", action="store_true")

        token = self._verbs(self._command("token"), required=True)
        new = self._command("token new", under=token)
        new.add_argument("name", metavar="NAME")
        new.add_argument("--days", metavar="N", type=self._days(MAX_TOKEN_DAYS))
        new.add_argument("--scope", metavar="S", action="append", default=[])
        self._command("token list", under=token)
        self._command("token end", under=token).add_argument("token_id", **one)

        users = self._command("users")
        self._add_amount(users)
        change = self._verbs(users, required=False)
        for verb in ("set-role", "disable", "enable", "reset-password", "reset-totp", "end-sessions"):
            self._command(f"users {verb}", under=change).add_argument("username", metavar="USER")
        self._named["users set-role"].add_argument("role", metavar="ROLE", choices=[role.value for role in Role])

        invite = self._command("invite")
        invite.add_argument("--uses", metavar="N", type=self._uses)
        invite.add_argument("--days", metavar="N", type=self._days(MAX_INVITATION_DAYS))
        self._command("invitations").add_argument("--end", **one)

        audit = self._command("audit")
        audit.add_argument("--user", metavar="USER")
        audit.add_argument("--action", metavar="A")
        self._add_amount(audit)

    def _command(self, name: str, more: str = "", under: Any = None) -> Parser:
        """A command, or with ``under`` the verb of one."""
        command: Parser = (under or self._commands).add_parser(
            name.rpartition(" ")[2], help=self._summary(name), **self._description(name, more)
        )
        # A command has the options of main too, without a default, so that they may stand before or after its name
        self._add_common(command, given_before=True)
        self._named[name] = command
        return command

    def _verbs(self, command: Parser, required: bool) -> Any:
        """What the verbs of a command are added to."""
        return command.add_subparsers(
            title=self._help("verbs"), dest="verb", metavar=self._help("verb"), help="", required=required
        )

    def _add_amount(self, command: Parser) -> None:
        amount = command.add_mutually_exclusive_group()
        amount.add_argument("--limit", metavar="N", type=self._positive)
        amount.add_argument("--all", action="store_true")

    def _add_no_wait(self, command: Parser) -> None:
        command.add_argument("--no-wait", dest="wait_turn", action="store_false")

    def _description(self, name: str, more: str = "") -> dict[str, Any]:
        return {
            "description": f"{self._summary(name)} {more}".strip(),
            "epilog": self._epilog(name),
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "allow_abbrev": False,
        }

    @staticmethod
    def _add_common(command: Parser, given_before: bool = False) -> None:
        defaults: Any = (argparse.SUPPRESS,) * 4 if given_before else (None, None, None, False)
        command.add_argument("--server", metavar="ADDR", default=defaults[0])
        command.add_argument("--cafile", metavar="PATH", default=defaults[1])
        command.add_argument("--token-file", metavar="FILE", default=defaults[2])
        command.add_argument("--json", action="store_true", default=defaults[3])

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

    def _uses(self, text: str) -> int:
        uses = self._positive(text)
        if uses > MAX_INVITATION_USES:
            raise self._error("many_uses", most=f"{MAX_INVITATION_USES}")
        return uses

    def _days(self, most: int) -> Callable[[str], float]:
        """The ``type`` of an option that is a number of days."""

        def read(text: str) -> float:
            wrong = self._error("bad_days", given=text, most=str(most))
            days: float = checked(float, text, wrong)
            if not 0 < days <= most:
                raise wrong
            return days

        return read

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
