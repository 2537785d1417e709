"""The errors of the client library. The program that uses the library turns them into text and exit statuses."""

from __future__ import annotations

from typing import Any

from taskd.client.messages import Received


class ClientError(Exception):
    """Something that the user of the client must know.

    ``key`` names the error and never changes; ``fields`` are the values for its text. ``code`` is one of the error
    codes of the protocol. ``transient`` means that the same request may succeed later, but not before ``retry_after``
    seconds. ``nothing_done`` means that the server certainly created nothing.
    """

    retry_after = 0.0

    def __init__(
        self,
        key: str,
        *,
        code: str = "bad_request",
        transient: bool = False,
        nothing_done: bool = True,
        **fields: Any,
    ) -> None:
        super().__init__(key)
        self.key = key
        self.code = code
        self.transient = transient
        self.nothing_done = nothing_done
        self.fields = fields


class BadAddress(ClientError):
    """The text is not the address of a server."""


class NeedsTls(ClientError):
    """A secret would go over the network without TLS. It was not sent."""

    def __init__(self, server: str) -> None:
        super().__init__("plaintext", code="forbidden", server=server)


class NotLoggedIn(ClientError):
    """There is no session for this server, or the server no longer accepts it."""

    def __init__(self, key: str, *, nothing_done: bool = True, **fields: Any) -> None:
        super().__init__(key, code="auth_required", nothing_done=nothing_done, **fields)


class ConnectionFailed(ClientError):
    """The connection could not be opened, was lost, or does not lead to a taskd server."""

    def __init__(self, key: str, *, transient: bool = True, nothing_done: bool = False, **fields: Any) -> None:
        super().__init__(key, code="unavailable", transient=transient, nothing_done=nothing_done, **fields)


class Refused(ClientError):
    """The server answered with an error. ``received`` is its reply."""

    def __init__(self, received: Received) -> None:
        body = received.body
        code = body.code or "internal"
        super().__init__(
            "refused",
            code=code,
            transient=code in ("draining", "unavailable", "rate_limited"),
            # Without an id it may be the answer to another request
            nothing_done=body.id is not None and code not in ("unavailable", "internal"),
            status=body.status,
            field=body.field,
            message=body.message,
        )
        self.received = received
        self.retry_after = body.retry_after or 0.0


class Unconfirmed(ClientError):
    """The tasks may exist or not. Sent again under ``task_key``, they are not created twice. ``cause`` is the last
    error."""

    def __init__(self, cause: ClientError, task_key: str) -> None:
        super().__init__("unconfirmed", code=cause.code, nothing_done=False, task_key=task_key)
        self.cause = cause
