"""Performs requests: who may do what, which method does it, and which errors a client may see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from twisted.logger import Logger

from taskd.api.principal import Principal
from taskd.api.reply import Reply
from taskd.api.rights import Rights
from taskd.api.subscriptions import Subscriptions
from taskd.model.errors import AuthRequired, Draining, Forbidden, Internal, TaskdError, quote
from taskd.protocol import messages as m
from taskd.protocol.actions import ACTIONS, Access, Action, Scope, Theme

LOGGED_IN = (Access.USER, Access.OPERATOR, Access.ADMIN)

ActionMethod = Callable[[Principal, Subscriptions, Any], Awaitable[Reply]]


class _Duty(NamedTuple):
    """What each request for one action needs. It is worked out once: on Python 3.11 each look at a member of an Enum
    takes as long as a look into a dict, and a request would take a dozen.

    ``role``: it is not for every user. ``asks``: it makes something that stays, so the store is asked about the session
    each time. ``reads``: it may wait for long, and reads what is there at its end; ``of_others``: an operator also what
    others have, which a wait or a watch never shows.
    """

    method: ActionMethod
    local: bool
    secret: bool
    logged_in: bool
    role: bool
    asks: bool
    reads: bool
    of_others: bool


class Api:
    """``themes`` has the object of each theme. The method that performs an action has the action's name. ``rights``
    knows which sessions are still valid."""

    _log = Logger()

    def __init__(self, themes: Mapping[Theme, object], rights: Rights) -> None:
        self._draining = False
        self._rights = rights
        self._duties = {
            action.name: _Duty(
                method=getattr(themes[action.theme], action.name),
                local=action.access is Access.LOCAL,
                secret=action.secret,
                logged_in=action.access in LOGGED_IN,
                role=action.access in (Access.OPERATOR, Access.ADMIN),
                asks=action.access is Access.ADMIN or action.scope is Scope.ACCOUNT,
                reads=action.access in LOGGED_IN and action.scope is Scope.READ,
                of_others=action.theme is not Theme.LIVE,
            )
            for action in ACTIONS.values()
        }

    async def perform(self, principal: Principal, subscriptions: Subscriptions, action: Action, request: Any) -> Reply:
        """The reply to a typed request. Raises TaskdError, whatever happens."""
        if self._draining:
            raise Draining("this server is stopping; connect again", retry_after=1)
        duty = self._duties[action.name]
        if duty.local and not principal.local:
            raise Forbidden(f"{action.name} is only for clients on the server's own machine")
        if duty.secret and not principal.private:
            raise Forbidden(
                f"{action.name} carries a secret, and this connection is not encrypted: connect with TLS, for example"
                " taskclient --server tls:HOST:PORT; or the administrator sets TASKD_ALLOW_PLAINTEXT=1"
            )
        try:
            if duty.logged_in:
                if not principal.user_id:
                    raise AuthRequired(f"log in first: {action.name} is for a logged-in user")
                present = None if duty.asks else self._rights.fresh(principal)
                if present is None:
                    await self._rights.check(principal, anew=duty.asks)
                    present = self._rights.present(principal)
                principal = present
                if duty.role:
                    check_role(principal, action)
                if principal.scopes is not None:
                    check_scope(principal.scopes, action, request)
            reply = await duty.method(principal, subscriptions, request)
            if duty.reads and not subscriptions.closed:
                present = self._rights.present(principal)
                if duty.of_others and principal.operator and not present.operator:
                    raise Forbidden(f"{action.name}: your role has changed; try again")
            return reply
        except TaskdError:
            raise
        except Exception:
            self._log.failure("{action} failed", action=action.name)
            raise internal_error(action) from None

    def drain(self) -> None:
        """Refuse every new request from now on; requests under way go on."""
        self._draining = True


def check_role(principal: Principal, action: Action) -> None:
    """Raises Forbidden or TotpRequired if the action is for operators or admins, and the client is none."""
    if action.access is Access.ADMIN and not principal.admin:
        raise principal.role_refused(f"{action.name} is only for admins")
    if action.access is Access.OPERATOR and not principal.operator:
        raise principal.role_refused(f"{action.name} is only for operators and admins")


def check_scope(scopes: Sequence[str], action: Action, request: Any) -> None:
    """Raises Forbidden if an API token does not allow this."""
    if action.scope is Scope.NONE or action.scope.value in scopes:
        return
    if action.scope is Scope.ACCOUNT:
        raise Forbidden(f"{action.name} needs a login with the password; an API token does not allow it")
    missing = action.scope.value
    if action.scope is Scope.SUBMIT:
        if Scope.WRITE.value in scopes:
            return
        specs = request.tasks if isinstance(request, m.NewTasks) else [request]
        kinds = dict.fromkeys(spec.kind for spec in specs)
        missing = next((f"submit:{kind}" for kind in kinds if f"submit:{kind}" not in scopes), "")
        if not missing:
            return
    raise Forbidden(f"this API token does not allow {action.name}: it has no scope {quote(missing)}")


def internal_error(action: Action) -> Internal:
    """What a client learns of a defect."""
    return Internal(f"{action.name} failed because of an error in the server; its log has the details")
