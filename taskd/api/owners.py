"""Whose tasks a request may see: an operator or admin sees those of all users."""

from __future__ import annotations

from taskd.api.accounts import Accounts
from taskd.api.principal import Principal
from taskd.api.rights import Rights
from taskd.api.states import StateReader


class Owners:
    """Finds the owner of what is asked for. Others than operators and admins own only what is theirs."""

    def __init__(self, accounts: Accounts, states: StateReader, rights: Rights) -> None:
        self._accounts = accounts
        self._rights = rights
        self._states = states

    async def of_task(self, principal: Principal, task_id: int) -> int:
        """The user as whose task the client may read this one: its owner for an operator, else the client itself,
        whose it may be or not. Raises AuthRequired if the session has ended meanwhile, TotpRequired, Unavailable."""
        if not principal.operator and not principal.lacks_totp:
            return principal.user_id
        owner = await self._states.owner(task_id)
        if principal.lacks_totp and owner != principal.user_id:
            # the same whether there is such a task or not
            raise principal.role_refused("")
        # meanwhile the session may have ended, or the role
        return (owner or principal.user_id) if self._rights.present(principal).operator else principal.user_id

    async def of_username(self, principal: Principal, username: str) -> int:
        """The user with this name. Raises Forbidden, TotpRequired, BadRequest, NoUser, Unavailable."""
        if not principal.operator:
            text = "username is only for operators and admins: you see your own tasks"
            raise principal.role_refused(text, "username")
        return (await self._accounts.find(username)).id
