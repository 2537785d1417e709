"""Actions about accounts and sessions: register, login, logout, whoami, set_weight."""

from __future__ import annotations

from taskd.api.accounts import Accounts
from taskd.api.principal import Principal
from taskd.api.reply import SUCCESS, Reply
from taskd.api.subscriptions import Subscriptions
from taskd.model.errors import BadRequest
from taskd.protocol import messages as m


class AccountActions:
    """A login or logout returns a new principal and ends the connection's subscriptions."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def register(self, principal: Principal, subscriptions: Subscriptions, request: m.Register) -> Reply:
        user = await self._accounts.register(request.username, request.password)
        return Reply({"status": "success", "user_id": user.id, "username": user.username})

    async def login(self, principal: Principal, subscriptions: Subscriptions, request: m.Login) -> Reply:
        expires: dict[str, int] = {}
        if request.token is not None:
            user, token = await self._accounts.resume(request.token), request.token
        elif request.username is not None and request.password is not None:
            user, token = await self._accounts.login(request.username, request.password)
            expires = {"expires_in": self._accounts.session_seconds}
        else:
            missing = "username" if request.username is None else "password"
            raise BadRequest(f"{missing} is missing: log in with username and password, or with a token", field=missing)
        subscriptions.cancel_subscriptions()
        fields = {"status": "logged_in", "token": token, "user_id": user.id, "username": user.username, **expires}
        admin = self._accounts.is_admin(user)
        return Reply(fields, Principal(user.id, user.username, token, principal.address, admin))

    async def logout(self, principal: Principal, subscriptions: Subscriptions, request: m.Nothing) -> Reply:
        if principal.token is not None:
            await self._accounts.forget(principal.token)
        subscriptions.cancel_subscriptions()
        return Reply(SUCCESS.fields, Principal(address=principal.address))

    async def whoami(self, principal: Principal, subscriptions: Subscriptions, request: m.Nothing) -> Reply:
        return Reply({"status": "success", "user_id": principal.user_id, "username": principal.username})

    async def set_weight(self, principal: Principal, subscriptions: Subscriptions, request: m.SetWeight) -> Reply:
        name = await self._accounts.set_weight(request.username, request.weight)
        return Reply({"status": "success", "username": name, "weight": request.weight})
