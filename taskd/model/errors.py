"""Domain errors. Each has the stable code that clients see on the wire.

``message`` says what to do, in English. ``status`` is ``error``, except where the original vocabulary has its own word
(``in_use``, ``no_user``, ``wrong_credentials``).
"""

from __future__ import annotations

from typing import ClassVar


class TaskdError(Exception):
    """An error that a client may see. Each subclass has its own code.

    ``field`` names the request's wrong field; ``retry_after`` is in seconds. ``detail`` is for the log and for the
    operator: what the database says, with addresses and paths. Clients see ``message`` only; ``str()`` has both.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[str] = "error"

    def __init__(
        self, message: str, *, field: str | None = None, retry_after: float | None = None, detail: str = ""
    ) -> None:
        super().__init__(f"{message}: {detail}" if detail else message)
        self.message = message
        self.field = field
        self.retry_after = retry_after
        self.detail = detail


class BadJson(TaskdError):
    """The line is not one JSON object in UTF-8."""

    code = "bad_json"


class BadRequest(TaskdError):
    """A field is missing, of the wrong type or out of its range."""

    code = "bad_request"


class UnknownAction(TaskdError):
    """No action of that name is registered."""

    code = "unknown_action"


class AuthRequired(TaskdError):
    """The connection is not logged in, or its session token is unknown or expired."""

    code = "auth_required"


class Forbidden(TaskdError):
    """The user is known but may not do this."""

    code = "forbidden"


class NotFound(TaskdError):
    """No such task of this user. A foreign id gets the same answer as a missing one."""

    code = "not_found"


class Conflict(TaskdError):
    """The request contradicts what is stored, such as cancelling a finished task."""

    code = "conflict"


class TooLarge(TaskdError):
    """A line, a list or a value exceeds its limit."""

    code = "too_large"


class RateLimited(TaskdError):
    """Too many requests at once; ``retry_after`` says when to try again."""

    code = "rate_limited"


class QuotaExceeded(TaskdError):
    """The user has reached a limit."""

    code = "quota_exceeded"


class Draining(TaskdError):
    """This server is stopping; a new connection reaches another one."""

    code = "draining"


class Unavailable(TaskdError):
    """The store cannot be reached now. Nothing was confirmed."""

    code = "unavailable"


class Internal(TaskdError):
    """A defect in taskd; the server's log has the details."""

    code = "internal"


class UsernameInUse(Conflict):
    """Another user has this username already, perhaps in other letter case."""

    status = "in_use"


class KeyTaken(Conflict):
    """Another request has just stored a task with this key. The server looks it up; clients never see this error."""


class LastAdmin(Conflict):
    """Nobody would be left who may change accounts."""


class NoUser(NotFound):
    """No user has this username."""

    status = "no_user"


class WrongCredentials(Forbidden):
    """The password does not belong to the username."""

    status = "wrong_credentials"


class TotpRequired(Forbidden):
    """The password is right, and the code of the second factor is missing. Or the settings want a second factor of
    admins, and this session has not shown one."""

    code = "totp_required"


class WrongCode(Forbidden):
    """The code of the second factor is not right, or no longer, or was used already."""

    code = "wrong_code"


def code_missing() -> TotpRequired:
    """The password is right, and not enough for this account."""
    return TotpRequired("this account needs the code of its authenticator, or a recovery code, too", field="code")


def code_refused() -> WrongCode:
    """The code of a second factor that is not accepted. Why, is not said."""
    return WrongCode("the code is not right, or no longer, or was used already; wait for the next one", field="code")


def quote(text: str) -> str:
    """A user's text for a message: in quotes, escaped, and cut to 64 characters so that replies stay short."""
    return repr(text if len(text) <= 64 else text[:64] + "...")


class SettingsError(Exception):
    """A setting is missing or malformed. The message is one line that names the variable or option."""


class DataInUse(SettingsError):
    """Another process has locked the folder of the embedded database."""


class SchemaTooOld(SettingsError):
    """The database lacks migrations, and the caller did not want them applied."""


class SchemaTooNew(Exception):
    """The database was migrated by a newer taskd than this one."""
