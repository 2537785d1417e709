"""The menu that ``taskclient`` without a command shows on a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from functools import partial
from typing import Any

from twisted.python.failure import Failure

from taskd.cli.commands.accounts import send_registration
from taskd.cli.commands.kinds import served_kinds
from taskd.cli.commands.log import print_page
from taskd.cli.commands.passwords import change_password
from taskd.cli.commands.sessions import session_lines
from taskd.cli.commands.tasks import reason
from taskd.cli.context import Context
from taskd.cli.credentials import ask_new_password
from taskd.cli.durations import number_in
from taskd.cli.errors import OK, EndOfInput, UsageError
from taskd.cli.fields import checked, possible_kind, read_fields, task_text
from taskd.cli.logins import send_login
from taskd.cli.texts.words import WORDS
from taskd.client.address import is_unix
from taskd.client.admission import Admission
from taskd.client.connection import Connection
from taskd.client.connector import ignore_session_end
from taskd.client.errors import ClientError, NotLoggedIn, Unconfirmed
from taskd.client.messages import Received
from taskd.client.retry import Resender
from taskd.model.task_checks import check_kind
from taskd.model.tasks import DEFAULT_KIND, PROGRAM_PREFIX
from taskd.model.users import normalize_username

Action = Callable[[], Awaitable[None]]

SHOWN = 50
SHOWN_KINDS = 10
COLUMNS = ("id", "status", "age", "text")
LOG_LINES = 100
"""The most lines of a log: its last ones. ``taskclient log`` prints all of it."""

VERBS = {
    "show": "get_task",
    "log": "get_log",
    "explain": "explain",
    "retry": "retry_task",
    "cancel": "cancel_task",
}
"""What the user can type before a task's number instead of an option, and the action that it sends."""

RELOGIN_SECONDS = 10.0
"""How long to wait for the login after a reconnect; the user is waiting for the action that follows."""

GOODBYE_SECONDS = 5.0
"""How long to wait for the reply to a logout."""


class Menu:
    """One user at one terminal. After a lost connection the menu logs in again with the token of the login, and after
    the end of the session with the password, which it asks for."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._connection: Connection | None = None
        self._token: str | None = None
        self._username = ""
        self._in_account = False
        self._is_local = False
        self._asking = ""

    async def run(self) -> int:
        """Run until the user leaves; that is never an error."""
        try:
            while (action := await self._choose()) is not None:
                await self._guarded(action)
        except EndOfInput:
            self._ctx.out.line("")
            with suppress(ClientError):
                await self._back()
        finally:
            if self._connection is not None:
                self._connection.close()
        return OK

    async def _choose(self) -> Action | None:
        """The action that the user chooses, None to leave."""
        ctx, options = self._ctx, self._options()
        title = "menu.server" if self._token is None else "menu.user"
        names = [f"{n}. {ctx.texts(key)}" for n, key in enumerate(options, 1)]
        ctx.out.lines(["", ctx.texts(title, username=self._username, server=ctx.server), *names])
        actions = {str(n): action for n, action in enumerate(options.values(), 1)}
        while True:
            answer = (await self._ask("menu.choose")).strip()
            if answer in actions:
                return actions[answer]
            if self._token is not None and (action := self._verb_action(answer)) is not None:
                return action
            ctx.say("menu.wrong", n=len(options))

    def _options(self) -> dict[str, Action | None]:
        if self._token is None:
            return {"menu.register": self._register, "menu.login": self._login, "menu.leave": None}
        if self._in_account:
            return {
                "menu.password": self._change_password,
                "menu.sessions": self._see_sessions,
                "menu.back": self._leave_account,
            }
        return {
            "menu.tasks": self._see,
            "menu.create": self._create,
            "menu.back": self._back,
            "menu.account": self._enter_account,
        }

    async def _guarded(self, action: Action) -> None:
        """Run an action. An error is one line, and the menu continues."""
        try:
            await action()
        except ClientError as e:
            if self._connection is not None and self._connection.lost is not None:
                self._connection = None  # the line below reports the loss
            gone = e.code == "auth_required" and self._token is not None
            if gone:
                self._token = None
                if not isinstance(e, Unconfirmed):
                    e = ClientError("menu.session_gone")
            self._ctx.out.line(self._ctx.reporter.explain(e))
            if gone:
                await self._guarded(self._log_in_again)

    async def _register(self) -> None:
        username = await self._ask_needed("username")
        checked(normalize_username, username, ClientError("bad_username"))
        password = await ask_new_password(self._ctx)
        await send_registration(self._ctx, self._admission(), username, password)
        self._ctx.say("menu.registered")

    async def _login(self) -> None:
        if is_unix(self._ctx.server):
            await self._open_connection()
            username = await self._ask("menu.local_username")
            if not username.strip():
                self._in_account = False
                await self._log_in_locally()
                return
        else:
            username = await self._ask_needed("username")
        password = await self._ctx.prompt("password", hidden=True)
        self._in_account = False
        await self._log_in(username, password)

    async def _log_in_again(self) -> None:
        """Ask for the password after the session has ended, and go on where the user was."""
        if self._is_local:
            await self._log_in_locally()
            return
        password = await self._ctx.prompt("menu.password_of", hidden=True, username=self._username)
        if password:
            await self._log_in(self._username, password)

    async def _log_in(self, username: str, password: str) -> None:
        reply = await send_login(self._ctx, self._admission(), username=username, password=password)
        self._logged_in(reply, username)

    async def _log_in_locally(self) -> None:
        """Log in as the user of the machine."""
        self._logged_in(await send_login(self._ctx, self._admission(), local=True), "", is_local=True)

    def _logged_in(self, reply: Received, username: str, is_local: bool = False) -> None:
        self._token = reply.body.token
        self._username = reply.body.username or username
        self._is_local = is_local
        self._ctx.say("logged_in", username=self._username)

    async def _enter_account(self) -> None:
        self._in_account = True

    async def _leave_account(self) -> None:
        self._in_account = False

    async def _change_password(self) -> None:
        await self._open_connection()
        old = await self._ctx.prompt("password", hidden=True)
        new = await ask_new_password(self._ctx, "new_password")
        await change_password(self._admission(), old, new)
        self._ctx.say("password_changed")

    async def _see_sessions(self) -> None:
        ctx, reply = self._ctx, await (await self._open_connection()).request("sessions")
        ctx.out.lines(["", *session_lines(ctx, reply.body.sessions)])
        ctx.say("menu.end_hint", verb=ctx.texts("menu.end"))

    async def _end_session(self, session_id: int) -> None:
        connection = await self._open_connection()
        connection.on_session_ended = ignore_session_end  # it may be this one
        await connection.request("end_session", session_id=session_id)
        self._ctx.say("session_ended", id=session_id)

    async def _see(self) -> None:
        page = (await (await self._open_connection()).request("get_tasks", limit=SHOWN)).body
        ctx = self._ctx
        if not page.tasks:
            self._ctx.say("no_tasks")
            return
        ctx.out.line("")
        rows = ctx.renderer.rows(map(ctx.view, page.tasks), ctx.now())
        ctx.out.lines(ctx.renderer.table(COLUMNS).lines(rows))
        if page.cursor is not None:
            ctx.say("more_menu", n=len(page.tasks), command=ctx.command("list", "--all"))
        ctx.say("menu.hint", verbs=", ".join(f"{ctx.texts(f'menu.{verb}')} N" for verb in VERBS))

    def _verb_action(self, answer: str) -> Action | None:
        """The action of an answer such as ``show 7``, in either language."""
        verb, _, word = answer.lower().partition(" ")
        with suppress(ValueError):
            number = number_in(word.strip())
            if self._in_account and verb in WORDS["menu.end"]:
                return partial(self._end_session, number)
            for name in VERBS:
                if verb in WORDS[f"menu.{name}"]:
                    return partial(self._run_verb, name, number)
        return None

    async def _run_verb(self, verb: str, task_id: int) -> None:
        ctx, connection = self._ctx, await self._open_connection()
        fields = {"tail": True, "limit": LOG_LINES} if verb == "log" else {}
        reply = await connection.request(VERBS[verb], task_id=task_id, **fields)
        if verb == "show":
            ctx.out.lines(ctx.renderer.details(ctx.view(reply.body.task)))
        elif verb == "log":
            print_page(ctx, task_id, reply)
        elif verb == "explain":
            ctx.out.line(reason(ctx, task_id, reply))
        else:
            self._ctx.say("retried" if verb == "retry" else "cancelled", id=task_id)

    async def _create(self) -> None:
        task, key = task_text(await self._ask_needed("menu.task")), self._ctx.new_key()
        resender = Resender(self._ctx.clock, self._connect, self._ctx.reporter, await self._open_connection())
        kind = await self._choose_kind(resender, task)
        given: list[str] = []
        more: dict[str, Any] = {}
        if kind != DEFAULT_KIND:
            more["kind"] = kind
            given = checked(shlex.split, await self._ask("menu.fields"), UsageError("menu.quotes"))
            if payload := read_fields(given):
                more["payload"] = payload
        try:
            reply, _ = await resender.send("new_task", key, task=task, key=key, **more)
        except Unconfirmed as e:
            words = ["--kind", kind, *(word for field in given for word in ("--field", field))] if more else []
            e.key, e.fields["command"] = "menu.unconfirmed", self._ctx.command("add", *words, "--key", key, task)
            raise
        self._ctx.say("created_kind" if more else "created", id=reply.body.task_id, kind=kind)

    async def _choose_kind(self, resender: Resender, text: str) -> str:
        """The kind that the text names, else the one that the user chooses, if workers serve more than the default."""
        if text.startswith(PROGRAM_PREFIX) and possible_kind([text]):
            return text
        others = sorted(await served_kinds(self._ctx, resender) - {DEFAULT_KIND})
        if not others:
            return DEFAULT_KIND
        if text in others:
            return text
        names = ", ".join(others[:SHOWN_KINDS]) + (", ..." if len(others) > SHOWN_KINDS else "")
        kind = (await self._ask("menu.kind", kinds=names, default=DEFAULT_KIND)).strip() or DEFAULT_KIND
        return checked(check_kind, kind, UsageError("bad_kind"))

    async def _back(self) -> None:
        token, self._token = self._token, None
        connection, self._connection = self._connection, None
        if connection is not None:
            # Also after an error: the connection must not stay logged in when the menu says otherwise
            with closing(connection):
                if token is not None and connection.lost is None:
                    await connection.request("logout", reply_timeout=GOODBYE_SECONDS)

    def _admission(self) -> Admission:
        """For requests that the server may put off, on the connection of the menu."""
        return self._ctx.admission(self._open_connection)

    async def _open_connection(self) -> Connection:
        """The open connection, or a new one."""
        if self._connection is not None and self._connection.lost is None:
            return self._connection
        return await self._connect()

    async def _connect(self) -> Connection:
        """A new connection, logged in again if the user was."""
        connection = await self._ctx.connector.connect()
        if self._token is not None:
            try:
                await connection.request("login", RELOGIN_SECONDS, token=self._token)
            except BaseException as e:
                connection.close()
                if isinstance(e, ClientError):
                    e.nothing_done = True
                raise
        self._connection = connection
        connection.wait_until_lost().addErrback(self._lost, connection)
        return connection

    def _lost(self, reason: Failure, connection: Connection) -> None:
        # A running action reports the loss itself
        # and a server closes a connection that nobody has logged in on: no news for a user who is not logged in
        if self._asking and connection is self._connection and self._token is not None:
            key = "menu.session_gone" if reason.check(NotLoggedIn) else "menu.lost"
            self._ctx.out.line("\n" + self._ctx.texts(key))
            self._ctx.out.prompt(self._asking)

    async def _ask_needed(self, key: str) -> str:
        """Ask once the server is reachable. Raises ClientError for an empty answer."""
        await self._open_connection()
        answer = await self._ask(key)
        if not answer.strip():
            raise ClientError("menu.nothing")
        return answer

    async def _ask(self, key: str, **fields: Any) -> str:
        self._asking = self._ctx.texts(key, **fields)
        try:
            return await self._ctx.prompt(key, **fields)
        except ClientError as e:  # for example a line that is not UTF-8
            self._ctx.out.line(self._ctx.reporter.explain(e))
            return ""
        finally:
            self._asking = ""
