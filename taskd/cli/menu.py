"""The menu that ``taskclient`` shows on a terminal: register, log in, see and create tasks."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from twisted.python.failure import Failure

from taskd.cli.commands.add import served_kinds
from taskd.cli.commands.basic import reason
from taskd.cli.commands.log import print_page
from taskd.cli.context import Context, check_username, explain
from taskd.cli.fields import kind_perhaps, read_fields, task_text
from taskd.cli.resend import Resender
from taskd.cli.texts.words import WORDS
from taskd.cli.ui.rendering import visible
from taskd.client.connection import LineClient
from taskd.client.errors import OK, ClientError, EndOfInput, Unconfirmed, UsageError
from taskd.model.tasks import DEFAULT_KIND, PROGRAM_PREFIX

Action = Callable[[], Awaitable[None]]

SHOWN = 50
SHOWN_KINDS = 10
COLUMNS = ("id", "status", "age", "text")
LOG_LINES = 100
"""Of a log, its end; ``taskclient log`` has all of it."""

VERBS = {
    "show": "get_task",
    "log": "get_log",
    "explain": "explain",
    "retry": "retry_task",
    "cancel": "cancel_task",
}
"""What can be done with one task, typed before its number where an option is asked for, and the action for it."""

RELOGIN_SECONDS = 10.0
"""How long logging in with a token may take, where somebody waits for what comes after it."""

GOODBYE_SECONDS = 5.0
"""How long leaving waits for the server to forget the login."""


class Menu:
    """One user at one terminal. Who is logged in has a token, which serves again after a lost connection."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._client: LineClient | None = None
        self._token: str | None = None
        self._username = ""
        self._asking = ""

    async def run(self) -> int:
        """Until the user leaves, which is never an error."""
        try:
            await self._top()
        except EndOfInput:
            self._ctx.out.line("")
            with contextlib.suppress(ClientError):
                await self._back()
        finally:
            if self._client is not None:
                self._client.close()
        return OK

    async def _top(self) -> None:
        while True:
            title = self._ctx.texts("menu.server", server=visible(self._ctx.server))
            choice = await self._choose(title, ("menu.register", "menu.login", "menu.leave"))
            if not isinstance(choice, int) or choice == 3:
                return
            await self._guarded((self._register, self._login)[choice - 1])
            if self._token is not None:
                await self._inside()

    async def _inside(self) -> None:
        while self._token is not None:
            title = self._ctx.texts("menu.user", username=visible(self._username), server=visible(self._ctx.server))
            choice = await self._choose(title, ("menu.tasks", "menu.create", "menu.back"), self._one_of)
            if isinstance(choice, int):
                await self._guarded((self._see, self._create, self._back)[choice - 1])
            else:
                await self._guarded(choice)

    async def _guarded(self, action: Action) -> None:
        """Do something; what goes wrong is one line, and the menu goes on."""
        try:
            await action()
        except ClientError as e:
            if self._client is not None and self._client.lost is not None:
                self._client = None  # this line says it already
            if e.code == "auth_required":
                self._token = None
                if not isinstance(e, Unconfirmed):
                    e = ClientError("menu.session_gone")
            self._say(explain(e, self._ctx.texts))

    async def _register(self) -> None:
        await self._connection()
        username = await self._ask("username")
        if not username.strip():
            self._say(self._ctx.texts("menu.nothing"))
            return
        check_username(username)
        password = await self._ctx.new_password()
        client = await self._connection()
        await client.request("register", username=username, password=password)
        self._say(self._ctx.texts("menu.registered"))

    async def _login(self) -> None:
        await self._connection()
        username = await self._ask("username")
        if not username.strip():
            self._say(self._ctx.texts("menu.nothing"))
            return
        password = await self._ctx.prompt("password", hidden=True)
        client = await self._connection()
        reply = await client.request("login", username=username, password=password)
        self._token = reply.body.token
        self._username = reply.body.username or username
        self._say(self._ctx.texts("logged_in", username=visible(self._username)))

    async def _see(self) -> None:
        page = (await (await self._connection()).request("get_tasks", limit=SHOWN)).body
        ctx = self._ctx
        if not page.tasks:
            self._say(ctx.texts("no_tasks"))
            return
        ctx.out.line("")
        ctx.out.lines(ctx.renderer.table(COLUMNS).rows([ctx.view(raw) for raw in page.tasks], ctx.now()))
        if page.cursor is not None:
            ctx.out.line(ctx.texts("more_menu", n=len(page.tasks), command=ctx.command("list", "--all")))
        ctx.out.line(ctx.texts("menu.hint", verbs=", ".join(f"{ctx.texts(f'menu.{verb}')} N" for verb in VERBS)))

    def _one_of(self, answer: str) -> Action | None:
        """What an answer such as ``show 7`` asks for, in either language."""
        verb, _, number = answer.lower().partition(" ")
        number = number.strip()
        if not (number.isascii() and number.isdecimal() and 0 < int(number[:20]) < 2**63):
            return None
        for name in VERBS:
            if verb in WORDS[f"menu.{name}"]:
                return partial(self._look, name, int(number))
        return None

    async def _look(self, verb: str, task_id: int) -> None:
        ctx, client = self._ctx, await self._connection()
        fields = {"tail": True, "limit": LOG_LINES} if verb == "log" else {}
        reply = await client.request(VERBS[verb], task_id=task_id, **fields)
        if verb == "show":
            ctx.out.lines(ctx.renderer.details(ctx.view(reply.body.task)))
        elif verb == "log":
            print_page(ctx, task_id, reply)
        elif verb == "explain":
            self._say(reason(ctx, task_id, reply))
        else:
            self._say(ctx.texts("retried" if verb == "retry" else "cancelled", id=task_id))

    async def _create(self) -> None:
        await self._connection()
        text = await self._ask("menu.task")
        if not text.strip():
            self._say(self._ctx.texts("menu.nothing"))
            return
        task, key = task_text(text), self._ctx.new_key()
        delivery = Resender(self._ctx, self._connect, await self._connection())
        kind = await self._kind(delivery, task)
        given = await self._fields() if kind != DEFAULT_KIND else []
        payload = read_fields(given)
        more: dict[str, Any] = {"kind": kind} if kind != DEFAULT_KIND else {}
        if payload:
            more["payload"] = payload
        try:
            reply, _ = await delivery.send("new_task", key, task=task, key=key, **more)
        except Unconfirmed as e:
            words = ["--kind", kind, *(word for field in given for word in ("--field", field))] if more else []
            e.key, e.fields["command"] = "menu.unconfirmed", self._ctx.command("add", *words, "--key", key, task)
            raise
        if more:
            self._say(self._ctx.texts("created_kind", id=reply.body.task_id, kind=kind))
        else:
            self._say(self._ctx.texts("created", id=reply.body.task_id))

    async def _kind(self, delivery: Resender, text: str) -> str:
        """The kind that the text names, else what the user chooses where there is a choice."""
        if text.startswith(PROGRAM_PREFIX) and kind_perhaps([text]):
            return text
        others = sorted({kind.kind for kind in await served_kinds(self._ctx, delivery)} - {DEFAULT_KIND})
        if text in others or not others:
            return text if others else DEFAULT_KIND
        names = ", ".join(map(visible, others[:SHOWN_KINDS])) + (", ..." if len(others) > SHOWN_KINDS else "")
        kind = (await self._ask("menu.kind", kinds=names, default=DEFAULT_KIND)).strip() or DEFAULT_KIND
        if kind_perhaps([kind]) is None:
            raise UsageError("bad_kind")
        return kind

    async def _fields(self) -> list[str]:
        """NAME=VALUE, as many as there are, with a shell's quotation marks around blanks."""
        try:
            return shlex.split(await self._ask("menu.fields"))
        except ValueError:
            raise UsageError("menu.quotes") from None

    async def _back(self) -> None:
        token, self._token = self._token, None
        client, self._client = self._client, None
        if client is None:
            return
        try:
            if token is not None and client.lost is None:
                await client.request("logout", patience=GOODBYE_SECONDS)
        finally:
            client.close()  # in any case: nobody must remain logged in behind a menu that says nobody is

    async def _connection(self) -> LineClient:
        """The connection, or a new one."""
        if self._client is not None and self._client.lost is None:
            return self._client
        return await self._connect()

    async def _connect(self) -> LineClient:
        """A new connection, logged in again where somebody was."""
        client = await self._ctx.connect()
        if self._token is not None:
            try:
                await client.request("login", RELOGIN_SECONDS, token=self._token)
            except BaseException as e:
                client.close()
                if isinstance(e, ClientError):
                    e.undone = True
                raise
        self._client = client
        client.gone().addErrback(self._lost, client)
        return client

    def _lost(self, reason: Failure, client: LineClient) -> None:
        # While an action is under way it fails and says so itself
        if self._asking and client is self._client:
            self._ctx.out.line("\n" + self._ctx.texts("menu.lost"))
            self._ctx.out.prompt(self._asking)

    async def _choose(
        self, title: str, options: tuple[str, ...], other: Callable[[str], Action | None] = lambda answer: None
    ) -> int | Action:
        """The number of an option, or what ``other`` makes of the answer."""
        ctx = self._ctx
        ctx.out.lines(["", title, *(f"{n}. {ctx.texts(key)}" for n, key in enumerate(options, 1))])
        while True:
            answer = (await self._ask("menu.choose")).strip()
            if answer in ("1", "2", "3")[: len(options)]:
                return int(answer)
            if (action := other(answer)) is not None:
                return action
            self._say(ctx.texts("menu.wrong", n=len(options)))

    async def _ask(self, key: str, **fields: Any) -> str:
        self._asking = self._ctx.texts(key, **fields)
        try:
            return await self._ctx.prompt(key, **fields)
        except ClientError as e:  # such as a line that is not UTF-8
            self._say(explain(e, self._ctx.texts))
            return ""
        finally:
            self._asking = ""

    def _say(self, line: str) -> None:
        self._ctx.out.line(line)
