"""Connections that are logged in with the stored session, or with the token that the user has given."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.python.failure import Failure

from taskd.client.connection import Connection, EventListener, connect, ignore
from taskd.client.errors import ClientError, NotLoggedIn, Refused
from taskd.client.messages import Received
from taskd.client.sessions import Session, SessionSource

Request = tuple[str, dict[str, Any]]
"""An action and its fields."""


@dataclass(frozen=True)
class Connector:
    """Opens connections to one server. ``server`` is its normalized address, ``sessions`` has the token for it.

    When the session ends elsewhere, a connection that is logged in with it ends, and the session is forgotten.
    """

    clock: IReactorTime
    endpoint: IStreamClientEndpoint
    server: str
    sessions: SessionSource
    allow_plaintext: bool = False
    """Secrets may be sent without TLS to other machines."""

    async def connect(self) -> Connection:
        """A new connection, not logged in. Raises ConnectionFailed."""
        return await connect(self.endpoint, self.clock, self.server, self.allow_plaintext)

    def session(self) -> Session:
        """The stored session. Raises NotLoggedIn, also for a broken file: the next login replaces it."""
        session = self.sessions.load()
        if session is None:
            raise NotLoggedIn("not_logged_in", server=self.server)
        return session

    async def log_in(
        self,
        session: Session,
        on_event: EventListener | None = None,
    ) -> tuple[Connection, Deferred[Received]]:
        """A connection, and the reply to its login. Requests may be sent before that reply, to save a round trip.

        The server handles them after the login. If the login fails, the connection ends and they fail for the same
        reason, such as NotLoggedIn.
        """
        connection = await self.connect()
        connection.on_event = on_event
        connection.on_session_ended = partial(self._session_ended, session, connection)
        try:
            login = connection.request("login", token=session.token)
        except ClientError:
            connection.close()
            raise
        login.addErrback(self._login_failed, session, connection)
        return connection, login

    async def send(
        self,
        *requests: Request,
        on_event: EventListener | None = None,
    ) -> tuple[Connection, list[Deferred[Received]]]:
        """Send the login of the stored session and these requests together: the connection, and the replies to them.

        Raises NotLoggedIn, and deletes a session that the server no longer accepts.
        """
        connection, login = await self.log_in(self.session(), on_event)
        answers: list[Deferred[Received]] = []
        try:
            for action, fields in requests:
                answers.append(connection.request(action, **fields))
            await login
        except BaseException:
            for answer in (login, *answers):
                answer.addErrback(ignore)
            connection.close()
            raise
        return connection, answers

    async def ask(self, action: str, **fields: Any) -> Received:
        """The reply to one request, on a connection of its own. Raises like :meth:`send`."""
        connection, (answer,) = await self.send((action, fields))
        with closing(connection):
            return await answer

    async def logged_in(self) -> Connection:
        """A connection for requests that may end its own session: then only their replies count. Raises like
        :meth:`send`."""
        connection, _ = await self.send()
        connection.on_session_ended = ignore_session_end
        return connection

    def _login_failed(self, failure: Failure, session: Session, connection: Connection) -> Failure:
        error: Any = failure.value
        if isinstance(error, Refused):
            error.nothing_done = True
            if error.code == "auth_required":
                error = self._session_gone(session)
            connection.abort(error)
        return Failure(error)

    def _session_ended(self, session: Session, connection: Connection) -> None:
        connection.abort(self._session_gone(session, nothing_done=False))

    def _session_gone(self, session: Session, nothing_done: bool = True) -> ClientError:
        """Delete the session, unless another command has logged in again meanwhile. Returns the error to report."""
        gone: ClientError = self.sessions.gone()
        try:
            if self.sessions.load() == session:
                self.sessions.remove()
        except NotLoggedIn:
            pass
        except ClientError as e:
            gone = e
        gone.nothing_done = nothing_done
        return gone


def ignore_session_end() -> None:
    """For ``Connection.on_session_ended``, if the user has asked for that end: then only the reply counts."""
