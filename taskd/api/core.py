"""Performs requests: who may do what, which method does it, and which errors a client may see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twisted.logger import Logger

from taskd.api.principal import Principal
from taskd.api.reply import Reply
from taskd.api.subscriptions import Subscriptions
from taskd.model.errors import AuthRequired, Draining, Forbidden, Internal, TaskdError
from taskd.protocol.actions import ACTIONS, Access, Action, Theme

ActionMethod = Callable[[Principal, Subscriptions, Any], Awaitable[Reply]]


class Api:
    """``themes`` has the object of each theme. The method that performs an action has the action's name."""

    _log = Logger()

    def __init__(self, themes: Mapping[Theme, object]) -> None:
        self._draining = False
        self._methods: dict[str, ActionMethod] = {
            action.name: getattr(themes[action.theme], action.name) for action in ACTIONS.values()
        }

    async def perform(self, principal: Principal, subscriptions: Subscriptions, action: Action, request: Any) -> Reply:
        """The reply to a typed request. Raises TaskdError, whatever happens."""
        if self._draining:
            raise Draining("this server is stopping; connect again", retry_after=1)
        if action.access in (Access.USER, Access.ADMIN) and not principal.user_id:
            raise AuthRequired(f"log in first: {action.name} is for a logged-in user")
        if action.access is Access.ADMIN and not principal.admin:
            raise Forbidden(f"{action.name} is only for admins; the servers' setting TASKD_ADMINS names them")
        if action.access is Access.LOCAL and not principal.local:
            raise Forbidden(f"{action.name} is only for clients on the server's own machine")
        try:
            return await self._methods[action.name](principal, subscriptions, request)
        except TaskdError:
            raise
        except Exception:
            self._log.failure("{action} failed", action=action.name)
            raise internal_error(action) from None

    def drain(self) -> None:
        """Refuse every new request from now on; requests under way go on."""
        self._draining = True


def internal_error(action: Action) -> Internal:
    """What a client learns of a defect."""
    return Internal(f"{action.name} failed because of an error in the server; its log has the details")
