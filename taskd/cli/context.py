"""What every command has at hand: the server, the session, the terminal and the language."""

from __future__ import annotations

import contextlib
import shlex
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from taskd.cli.texts.catalogue import Texts
from taskd.cli.ui.rendering import Renderer, ShownTask, read_view, visible
from taskd.cli.ui.terminal import Output, Screen, Source
from taskd.client.connection import LineClient, Received, connect
from taskd.client.errors import ClientError, EndOfInput, NotLoggedIn, Refused, Unconfirmed, UsageError
from taskd.client.sessions import BrokenSession, Session, SessionFile
from taskd.model.errors import BadRequest, TooLarge
from taskd.model.users import check_new_password, normalize_username

Request = tuple[str, dict[str, Any]]
"""An action and its fields."""

ORIGINAL_REFUSALS = ("in_use", "no_user", "wrong_credentials")
"""Statuses that say more than the code beside them."""


@dataclass
class Context:
    """``server`` is the normalized address; ``server_given`` whether hints must repeat it."""

    clock: IReactorTime
    endpoint: IStreamClientEndpoint
    server: str
    server_given: bool
    env: Mapping[str, str]
    texts: Texts
    out: Output
    source: Source
    renderer: Renderer
    sessions: SessionFile
    json: bool = False
    screen: Callable[[], Screen] | None = None
    """The size of the terminal at this moment, where that can keep lines at its foot."""
    new_key: Callable[[], str] = lambda: uuid.uuid4().hex

    async def connect(self) -> LineClient:
        """A new connection. Raises ConnectionTrouble."""
        return await connect(self.endpoint, self.clock, self.server)

    async def log_in(
        self, session: Session, on_event: Callable[[LineClient, Received], None] | None = None
    ) -> tuple[LineClient, Deferred[Received]]:
        """A connection, and the answer to its login. Requests may be sent at once, which saves a round trip.

        The server handles nothing before the login is through. When that fails the connection ends, and the requests
        fail for the same reason, such as NotLoggedIn.
        """
        client = await self.connect()
        if on_event is not None:
            client.on_event = on_event
        login = client.request("login", token=session.token)
        login.addErrback(self._login_failed, session, client)
        return client, login

    def _login_failed(self, failure: Failure, session: Session, client: LineClient) -> Failure:
        e: Any = failure.value
        if isinstance(e, Refused):
            try:
                e.undone = True
                if e.code == "auth_required":
                    self._forget(session)
                    e = NotLoggedIn("session_gone", server=self.server, command=self.command("login"))
            except ClientError as trouble:
                e = trouble
            client.abandon(e)
        return Failure(e)

    def _forget(self, session: Session) -> None:
        # Somebody may have logged in anew meanwhile
        with contextlib.suppress(BrokenSession):
            if self.sessions.load() == session:
                self.sessions.remove()

    async def logged_in(
        self, *requests: Request, on_event: Callable[[LineClient, Received], None] | None = None
    ) -> tuple[LineClient, list[Deferred[Received]]]:
        """A connection logged in with the kept session, and the answers to requests sent with the login.

        Raises NotLoggedIn, after forgetting a session that the server does not know any more.
        """
        client, login = await self.log_in(self.session(), on_event)
        answers: list[Deferred[Received]] = []
        try:
            for action, fields in requests:
                answers.append(client.request(action, **fields))
            await login
        except BaseException:
            for answer in (login, *answers):
                answer.addErrback(lambda _: None)
            client.close()
            raise
        return client, answers

    def session(self) -> Session:
        """The kept session. Raises NotLoggedIn, also for a file that is no session: logging in replaces it."""
        try:
            session = self.sessions.load()
        except BrokenSession:
            raise NotLoggedIn("state_broken", path=self.sessions.path, command=self.command("login")) from None
        if session is None:
            raise NotLoggedIn("not_logged_in", server=self.server, command=self.command("login"))
        return session

    async def ask(self, action: str, **fields: Any) -> Received:
        """One request of a logged-in user, on a connection of its own."""
        client, (answer,) = await self.logged_in((action, fields))
        try:
            return await answer
        finally:
            client.close()

    def command(self, *words: str) -> str:
        """A command line to recommend."""
        server = ["--server", self.server] if self.server_given else []
        return shlex.join(["taskclient", *server, *words])

    def show(self, received: Received, *lines: str) -> None:
        """Print a reply: as it came with ``--json``, else as these lines for people."""
        if self.json:
            self.out.raw((received.line,))
        else:
            self.out.lines(lines)

    def report(self, e: ClientError) -> None:
        """Print an error: on standard output with ``--json``, else as a line on standard error."""
        report(e, self.out, self.texts, self.json)

    def view(self, raw: msgspec.Raw) -> ShownTask:
        """A task as the server sent it."""
        return read_view(raw, self.server)

    def now(self) -> datetime:
        """The time, aware."""
        return datetime.fromtimestamp(self.clock.seconds(), timezone.utc)

    def sleep(self, seconds: float) -> Awaitable[None]:
        """Wait without blocking."""
        return deferLater(self.clock, seconds)

    async def prompt(self, key: str, hidden: bool = False, **fields: Any) -> str:
        """Ask at the terminal. Raises EndOfInput."""
        if not hidden:
            self.out.prompt(self.texts(key, **fields))
            return await self.source.line()
        with self.source.hidden():
            # Echo is off before the question is there: who answers at once would be overlooked otherwise
            self.out.prompt(self.texts(key, **fields))
            try:
                return await self.source.line()
            finally:
                self.out.prompt("\n")

    async def username(self, given: str | None) -> str:
        """The username from the command line, else asked for. Raises UsageError where nobody can be asked."""
        if given is not None:
            return given
        if not self.source.tty:
            raise UsageError("username_missing")
        return await self.prompt("username")

    async def password(self, twice: bool = False) -> str:
        """The password from TASKD_PASSWORD, the first line of the input, or asked for without echo."""
        given = self.env.get("TASKD_PASSWORD")
        if given:
            return given
        if not self.source.tty:
            try:
                line = await self.source.line()
            except EndOfInput:
                line = ""
            if not line:
                raise UsageError("password_missing")
            return line
        return await self.new_password() if twice else await self.prompt("password", hidden=True)

    async def new_password(self) -> str:
        """Asked for twice. Raises ClientError when it cannot be one, or differs the second time."""
        password = await self.prompt("password", hidden=True)
        check_password(password)
        if await self.prompt("password_again", hidden=True) != password:
            raise ClientError("passwords_differ")
        return password


def check_username(username: str) -> None:
    """Say in the user's language what the server would refuse."""
    try:
        normalize_username(username)
    except BadRequest:
        raise ClientError("bad_username") from None


def check_password(password: str) -> None:
    """Say in the user's language what the server would refuse."""
    try:
        check_new_password(password)
    except (BadRequest, TooLarge):
        raise ClientError("bad_password") from None


def explain(e: ClientError, texts: Texts) -> str:
    """The one line that tells a user about an error."""
    if e.key == "refused":
        status, field = e.fields["status"], e.fields["field"]
        keys = (status if status in ORIGINAL_REFUSALS else "", f"code.{e.code}.{field}", f"code.{e.code}", "code.other")
        return texts(next(key for key in keys if key in texts), message=visible(e.fields["message"]))
    return texts(e.key, **{name: visible(str(value)) for name, value in e.fields.items()})


def report(e: ClientError, out: Output, texts: Texts, json: bool) -> None:
    """Print an error: on standard output with ``--json``, else as a line on standard error."""
    if json:
        out.raw((error_line(e, texts),))
    else:
        out.note(f"taskclient: {explain(e, texts)}")


def error_line(e: ClientError, texts: Texts) -> bytes:
    """The same for ``--json``: the server's reply, or one of the same shape."""
    if isinstance(e, Refused):
        return e.received.line
    line = {"ok": False, "status": "error", "code": e.code, "message": explain(e, texts)}
    if isinstance(e, Unconfirmed):
        line["key"] = e.task_key
    return msgspec.json.encode(line)
