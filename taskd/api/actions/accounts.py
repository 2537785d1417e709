"""Actions about the client's own account: register, login, logout, passwords, second factor, sessions, API tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from taskd.api.accounts import Accounts
from taskd.api.login_guard import Client
from taskd.api.principal import Principal
from taskd.api.reply import SUCCESS, Reply
from taskd.api.rights import Rights
from taskd.api.subscriptions import Subscriptions
from taskd.events.publisher import Publisher
from taskd.model.errors import BadRequest, Draining
from taskd.ports.accounts import Session
from taskd.protocol import messages as m


class AccountActions:
    """A login or logout returns a new principal and ends the connection's subscriptions. Whatever ends sessions is
    announced, so that it takes effect on other connections and servers."""

    def __init__(self, accounts: Accounts, rights: Rights, publisher: Publisher) -> None:
        self._accounts = accounts
        self._rights = rights
        self._publisher = publisher

    async def register(self, principal: Principal, subscriptions: Subscriptions, request: m.Register) -> Reply:
        client = self._client(principal, subscriptions)
        user = await self._accounts.register(client, request.username, request.password, request.invitation)
        return Reply({"status": "success", "user_id": user.id, "username": user.username})

    async def login(self, principal: Principal, subscriptions: Subscriptions, request: m.Login) -> Reply:
        expires: dict[str, float] = {}
        if request.local:
            if (request.username, request.password, request.token) != (None, None, None):
                raise BadRequest("a local login has no username, password or token", field="local")
            client = self._client(principal, subscriptions)
            session, token = await self._accounts.login_local(client, principal.uid, request.code)
            expires = {"expires_in": self._accounts.session_seconds}
            await self._end_presented(principal)
        elif request.token is not None:
            session, token = await self._accounts.resume(request.token), request.token
            subscriptions.admit(session.user.id)
        elif request.username is not None and request.password is not None:
            client = self._client(principal, subscriptions)
            session, token = await self._accounts.login(client, request.username, request.password, request.code)
            expires = {"expires_in": self._accounts.session_seconds}
            await self._end_presented(principal)
        else:
            missing = "username" if request.username is None else "password"
            raise BadRequest(f"{missing} is missing: log in with username and password, or with a token", field=missing)
        if subscriptions.closed:
            if request.token is None:
                await self._accounts.forget(session.token_hash)
            raise Draining("this connection is closed; connect again")
        subscriptions.begin_session()
        self._rights.enter(subscriptions, session)
        user = session.user
        role = self._accounts.role_of(user)
        fields = {
            "status": "logged_in",
            "token": token,
            "user_id": user.id,
            "username": user.username,
            "role": role.value,
            **expires,
        }
        logged_in = replace(
            principal,
            user_id=user.id,
            username=user.username,
            role=role,
            session=session.token_hash,
            scopes=session.scopes,
        )
        return Reply(fields, self._rights.present(logged_in))

    async def _end_presented(self, principal: Principal) -> None:
        """A login ends the session that the connection had: whoever has planted it must not share the new one. It does
        not end an API token, which has its own life."""
        if principal.session is not None and principal.scopes is None:
            await self._accounts.forget(principal.session)
            self._announce(principal.user_id)

    async def logout(self, principal: Principal, subscriptions: Subscriptions, request: m.Nothing) -> Reply:
        if principal.session is not None and principal.scopes is None:
            await self._accounts.forget(principal.session)
        subscriptions.cancel_subscriptions()
        self._rights.leave(subscriptions)
        self._announce(principal.user_id)
        return Reply(SUCCESS.fields, principal.logged_out())

    async def whoami(self, principal: Principal, subscriptions: Subscriptions, request: m.Nothing) -> Reply:
        fields = {"user_id": principal.user_id, "username": principal.username, "role": principal.role.value}
        return Reply({"status": "success", **fields, "totp": principal.totp})

    async def change_password(
        self, principal: Principal, subscriptions: Subscriptions, request: m.ChangePassword
    ) -> Reply:
        client = self._client(principal, subscriptions)
        await self._accounts.change_password(client, principal, request.password, request.new_password)
        self._announce(principal.user_id)
        return SUCCESS

    async def set_password(self, principal: Principal, subscriptions: Subscriptions, request: m.SetPassword) -> Reply:
        client = self._client(principal, subscriptions)
        user = await self._accounts.set_password(client, request.username, request.code, request.new_password)
        self._announce(user.id)
        return SUCCESS

    async def totp_begin(self, principal: Principal, subscriptions: Subscriptions, request: m.TotpBegin) -> Reply:
        client = self._client(principal, subscriptions)
        secret, uri = await self._accounts.begin_totp(client, principal, request.password)
        return Reply({"status": "success", "secret": secret, "uri": uri})

    async def totp_confirm(self, principal: Principal, subscriptions: Subscriptions, request: m.TotpConfirm) -> Reply:
        client = self._client(principal, subscriptions)
        codes = await self._accounts.confirm_totp(client, principal, request.code)
        self._announce(principal.user_id)
        return Reply({"status": "success", "recovery_codes": codes})

    async def totp_off(self, principal: Principal, subscriptions: Subscriptions, request: m.TotpOff) -> Reply:
        client = self._client(principal, subscriptions)
        await self._accounts.end_totp(client, principal, request.password, request.code)
        self._announce(principal.user_id)
        return SUCCESS

    async def delete_account(
        self, principal: Principal, subscriptions: Subscriptions, request: m.DeleteAccount
    ) -> Reply:
        await self._accounts.delete_account(self._client(principal, subscriptions), principal, request.password)
        subscriptions.cancel_subscriptions()
        self._rights.leave(subscriptions)
        self._announce(principal.user_id)
        return Reply(SUCCESS.fields, principal.logged_out())

    async def sessions(self, principal: Principal, subscriptions: Subscriptions, request: m.Nothing) -> Reply:
        found = await self._accounts.sessions(principal)
        return Reply({"status": "success", "sessions": list(_views(found, principal.session))})

    async def end_session(self, principal: Principal, subscriptions: Subscriptions, request: m.OneSession) -> Reply:
        await self._accounts.end_session(principal, request.session_id)
        self._announce(principal.user_id)
        return SUCCESS

    async def end_sessions(self, principal: Principal, subscriptions: Subscriptions, request: m.EndSessions) -> Reply:
        ended = await self._accounts.end_sessions(principal, request.keep_this)
        self._announce(principal.user_id)
        return Reply({"status": "success", "ended": ended})

    async def new_token(self, principal: Principal, subscriptions: Subscriptions, request: m.NewToken) -> Reply:
        session, token = await self._accounts.new_token(principal, request.name, request.days, request.scopes)
        return Reply({"status": "success", "session_id": session.id, "token": token, "expires_at": session.expires_at})

    def _client(self, principal: Principal, subscriptions: Subscriptions) -> Client:
        """Who waits for a hash. Whoever closes the connection waits no longer."""
        subscriptions.on_close.add(self._accounts.guard.leave)
        return Client(principal.address, subscriptions, subscriptions.admit, lambda: subscriptions.closed)

    def _announce(self, user_id: int) -> None:
        self._rights.changed([user_id])
        self._publisher.publish_rights([user_id])


def _views(sessions: Iterable[Session], current: bytes | None) -> Iterable[dict[str, Any]]:
    for s in sessions:
        yield {
            "id": s.id,
            "current": s.token_hash == current,
            "name": s.name,
            "ending": s.ending,
            "scopes": s.scopes,
            "address": s.address,
            "created_at": s.created_at,
            "used_at": s.used_at,
            "expires_at": s.expires_at,
        }
