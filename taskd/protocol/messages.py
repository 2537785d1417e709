"""Typed requests.

A request's fields are described where they are declared; the docs and the client's help read them from here.
Fields that are not declared are ignored, so that a newer client can talk to an older server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypeAlias, Union

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, structs

from taskd.model.invalid import IN_PAYLOAD
from taskd.model.limits import (
    MAX_ATTEMPTS,
    MAX_DELAY_SECONDS,
    MAX_INVITATION_DAYS,
    MAX_INVITATION_USES,
    MAX_TIMEOUT_SECONDS,
    MAX_TOKEN_DAYS,
    MAX_WEIGHT,
    MIN_WEIGHT,
)
from taskd.model.quotas import MAX_QUOTA, MAX_QUOTA_MIB
from taskd.model.tasks import DEFAULT_KIND
from taskd.protocol import limits

Scalar: TypeAlias = Union[str, int, float, bool, None]  # noqa: UP007 (evaluated at run time on 3.10)
"""What a request's ``id`` may be."""

RequestId: TypeAlias = Union[Raw, UnsetType]  # noqa: UP007 (evaluated at run time on 3.10)
"""A request's ``id`` as the client wrote it, for the reply: 1.0 stays 1.0, and null differs from no id."""

TaskId: TypeAlias = Annotated[int, Meta(ge=1, le=2**63 - 1, description="A task's number.")]


class Envelope(Struct):
    """The fields of every request. The codec reads them first, so that an error can name the request."""

    action: str
    id: RequestId = UNSET


class Nothing(Struct):
    """A request without fields."""


class Register(Struct):
    username: Annotated[str, Meta(description="1 to 64 characters; upper and lower case count as the same.")]
    password: Annotated[str, Meta(description="8 to 72 bytes in UTF-8, and not a common one.")]
    invitation: Annotated[str | None, Meta(description="An invitation, where registration is only by invitation.")] = (
        None
    )


class ChangePassword(Struct):
    password: Annotated[str, Meta(description="The present password.")]
    new_password: Annotated[str, Meta(description="8 to 72 bytes in UTF-8, and not a common one.")]


class SetPassword(Struct):
    username: Annotated[str, Meta(description="Whose password to set.")]
    code: Annotated[str, Meta(description="A one-time code from an admin.")]
    new_password: Annotated[str, Meta(description="8 to 72 bytes in UTF-8, and not a common one.")]


class DeleteAccount(Struct):
    password: Annotated[str, Meta(description="The present password.")]


class TotpBegin(Struct):
    password: Annotated[str, Meta(description="The present password.")]


class TotpConfirm(Struct):
    code: Annotated[str, Meta(description="The six digits that the authenticator shows.")]


class TotpOff(Struct):
    password: Annotated[str, Meta(description="The present password.")]
    code: Annotated[str, Meta(description="The six digits that the authenticator shows, or a recovery code.")]


class OneSession(Struct):
    session_id: Annotated[int, Meta(description="The `id` of a session or an API token in `sessions`.")]


class EndSessions(Struct):
    keep_this: Annotated[bool, Meta(description="Whether this connection's own session stays.")] = True


class NewToken(Struct):
    name: Annotated[str, Meta(description="What the token is for: 1 to 64 characters.")]
    days: Annotated[float, Meta(gt=0, le=MAX_TOKEN_DAYS, description="Days until it expires, at most 365.")] = 90.0
    scopes: Annotated[
        list[str] | None,
        Meta(
            description="What it allows: `tasks:read`, `tasks:write`, `submit:KIND` for a kind. Default: everything but"
            " what changes the account."
        ),
    ] = None


class OneUser(Struct):
    username: Annotated[str, Meta(description="Whose account.")]


class Users(Struct):
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_PAGE, description="Users per page, at most 500.")] = (
        limits.DEFAULT_PAGE
    )
    cursor: Annotated[str | None, Meta(description="The `cursor` of the previous page.")] = None


class SetRole(Struct):
    username: Annotated[str, Meta(description="Whose role to set.")]
    role: Annotated[str, Meta(description="`user`, `operator` or `admin`.")]


class SetDisabled(Struct):
    username: Annotated[str, Meta(description="Whom to disable, or to enable again.")]
    disabled: Annotated[bool, Meta(description="True to disable.")]


class Invite(Struct):
    uses: Annotated[
        int, Meta(ge=1, le=MAX_INVITATION_USES, description="How many accounts may be created with it.")
    ] = 1
    days: Annotated[float, Meta(gt=0, le=MAX_INVITATION_DAYS, description="Days until it expires, at most 365.")] = 7.0


class EndInvitation(Struct):
    invitation_id: Annotated[int, Meta(description="The `id` of an invitation in `invitations`.")]


class GetAudit(Struct):
    username: Annotated[str | None, Meta(description="Only rows that this user did or suffered.")] = None
    action_name: Annotated[str | None, Meta(description="Only rows of this action, such as `login`.")] = None
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_PAGE, description="Rows per page, at most 500.")] = (
        limits.DEFAULT_PAGE
    )
    cursor: Annotated[str | None, Meta(description="The `cursor` of the previous page.")] = None


class Login(Struct):
    username: Annotated[str | None, Meta(description="Together with `password`.")] = None
    password: Annotated[str | None, Meta(description="Together with `username`.")] = None
    code: Annotated[
        str | None,
        Meta(description="With a second factor: the six digits that the authenticator shows, or a recovery code."),
    ] = None
    token: Annotated[
        str | None,
        Meta(description="From an earlier login, or an API token, instead of username and password."),
    ] = None
    local: Annotated[
        bool, Meta(description="Log in as the user of the machine, over a UNIX socket, with no other field but `code`.")
    ] = False


class SetWeight(Struct):
    username: Annotated[str, Meta(description="Whose share to set.")]
    weight: Annotated[
        float,
        Meta(
            ge=MIN_WEIGHT, le=MAX_WEIGHT, description="The share, compared with the others; every user begins with 1."
        ),
    ]


class GetQuota(Struct):
    username: Annotated[
        str | None, Meta(description="The use of this user instead of yours; for operators and admins.")
    ] = None


class SetQuota(Struct):
    username: Annotated[str, Meta(description="Whose limits to set.")]
    open: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_QUOTA)] | UnsetType | None,
        Meta(description="Tasks that have not ended. 0: no limit; null: the server's default; absent: as it is."),
    ] = UNSET
    daily: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_QUOTA)] | UnsetType | None,
        Meta(description="Tasks created within 24 hours; 0, null and absent as above."),
    ] = UNSET
    mib: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_QUOTA_MIB)] | UnsetType | None,
        Meta(description="MiB of texts, payloads, results and logs; 0, null and absent as above."),
    ] = UNSET


_NO_PAYLOAD = Raw(b"{}")
_payload = msgspec.json.Decoder(dict[str, Any]).decode


class TaskSpec(Struct):
    task: Annotated[
        str,
        Meta(description="What the task is, in the user's words: 1 to 4,096 characters, at least one of them visible."),
    ]
    kind: Annotated[str, Meta(description="Which handler runs it.")] = DEFAULT_KIND
    payload: Annotated[Raw, Meta(description="The handler's arguments, a JSON object.")] = _NO_PAYLOAD
    queue: Annotated[str | None, Meta(description="One of the server's queues. Default: the first one.")] = None
    max_attempts: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS)] | None,
        Meta(description="How many attempts the task may have. Default: as many as its kind."),
    ] = None
    timeout: Annotated[
        Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_SECONDS)] | None,
        Meta(description="Seconds that an attempt may take. A value above the kind's has no effect."),
    ] = None
    delay: Annotated[
        Annotated[float, Meta(ge=0, le=MAX_DELAY_SECONDS)] | None,
        Meta(description="Seconds from now until the task may run."),
    ] = None
    run_at: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        Meta(description="The earliest time to run the task, in RFC 3339 form. Not together with `delay`."),
    ] = None
    key: Annotated[
        str | None,
        Meta(
            description="A request with a key can be sent again: a second one with the same key returns the same task."
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.payload is not _NO_PAYLOAD:
            try:
                _payload(self.payload)
            except msgspec.ValidationError as e:
                raise ValueError(f"{str(e).partition(' - at `')[0]}{IN_PAYLOAD}") from None


def fingerprint(spec: TaskSpec, queue: str) -> str:
    """Tells whether two requests with the same key ask for the same task: they are compared by value, so white
    space, escapes and the order of names in a payload do not matter. 1 and 1.0 differ, and so do the same times in two
    time zones. ``queue`` is the queue that the request means."""
    asked = structs.asdict(spec) | {"key": None, "queue": queue, "payload": _payload(spec.payload)}
    return hashlib.blake2b(_in_order(asked), digest_size=16).hexdigest()


class NewTasks(Struct):
    tasks: Annotated[list[TaskSpec], Meta(description="1 to 1,000 tasks with the fields of `new_task`.")]


class GetTasks(Struct):
    status: Annotated[
        str | None, Meta(description="Only tasks with status `Procesando`, `Completada`, `Fallida` or `Cancelada`.")
    ] = None
    state: Annotated[
        str | None,
        Meta(
            description="Only tasks in state `waiting`, `scheduled`, `retrying`, `queued`, `running`,"
            " `completed`, `failed` or `cancelled`."
        ),
    ] = None
    kind: Annotated[str | None, Meta(description="Only tasks of this kind.")] = None
    username: Annotated[
        str | None, Meta(description="Tasks of this user instead of yours; for operators and admins.")
    ] = None
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_PAGE, description="Tasks per page, at most 500.")] = (
        limits.DEFAULT_PAGE
    )
    cursor: Annotated[str | None, Meta(description="The `cursor` of the previous page.")] = None


class OneTask(Struct):
    task_id: TaskId


class GetLog(Struct):
    task_id: TaskId
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_LOG_LINES, description="Lines in the reply, at most 1,000.")] = (
        limits.DEFAULT_LOG_LINES
    )
    cursor: Annotated[str | None, Meta(description="The `cursor` of the previous reply or event.")] = None
    tail: Annotated[bool, Meta(description="Return the last lines instead of the first.")] = False
    follow: Annotated[bool, Meta(description="Send later lines as `log` events, until the task has ended.")] = False


class Watch(Struct):
    limit: Annotated[
        int, Meta(ge=1, le=limits.MAX_PAGE, description="How many of the newest tasks are in the reply.")
    ] = limits.DEFAULT_PAGE


class Wait(Struct):
    task_ids: Annotated[list[TaskId], Meta(description="1 to 1,000 task numbers.")]
    timeout: Annotated[float, Meta(ge=0, le=limits.MAX_WAIT_SECONDS, description="Seconds to wait, at most 3,600.")] = (
        limits.DEFAULT_WAIT_SECONDS
    )


Reply: TypeAlias = Mapping[str, Any]
"""A reply's fields without ``id`` and ``ok``; ``status`` is always among them."""

encode = msgspec.json.Encoder().encode

_in_order = msgspec.json.Encoder(order="sorted").encode
