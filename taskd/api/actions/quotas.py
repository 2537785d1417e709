"""Actions about quotas: quota, set_quota."""

from __future__ import annotations

from typing import Any

from msgspec import UnsetType

from taskd.api.accounts import Accounts, no_user
from taskd.api.principal import Principal
from taskd.api.reply import Reply
from taskd.api.subscriptions import Subscriptions
from taskd.model.errors import BadRequest
from taskd.model.quotas import MIB
from taskd.model.users import User, normalize_username
from taskd.ports.accounts import Entry
from taskd.ports.store import IStore
from taskd.protocol import messages as m
from taskd.scheduling.quotas import Quotas


class QuotaActions:
    """A user sees its own quotas; operators and admins see those of everybody, and admins set them."""

    def __init__(self, store: IStore, accounts: Accounts, quotas: Quotas) -> None:
        self._store = store
        self._accounts = accounts
        self._quotas = quotas

    async def quota(self, principal: Principal, subscriptions: Subscriptions, request: m.GetQuota) -> Reply:
        user_id, name = principal.user_id, principal.username
        if request.username is not None:
            if not principal.operator:
                text = "username is only for operators and admins: you see your own use"
                raise principal.role_refused(text, "username")
            user = await self._accounts.find(request.username)
            user_id, name = user.id, user.username
        # it counts up to 100,000 tasks: not for all requests of a connection at the same time
        async with subscriptions.large_reply:
            return await self._shown(user_id, name)

    async def set_quota(self, principal: Principal, subscriptions: Subscriptions, request: m.SetQuota) -> Reply:
        name, key = normalize_username(request.username)
        asked = {"open": request.open, "daily": request.daily, "mib": request.mib}
        changes: dict[str, int | None] = {n: limit for n, limit in asked.items() if not isinstance(limit, UnsetType)}
        if not changes:
            raise BadRequest("name at least one limit to set: open, daily or mib", field="open")
        details = ", ".join(f"{n} {'default' if limit is None else limit}" for n, limit in changes.items())
        if "mib" in changes:
            mib = changes.pop("mib")
            changes["bytes"] = None if mib is None else mib * MIB
        entry = Entry(
            "set_quota", principal.user_id, principal.username, subject=key, address=principal.address, details=details
        )
        if await self._store.set_quota(key, changes, entry) is None:
            raise no_user(name)
        user: User = await self._accounts.find(name)
        self._quotas.changed(user.id)
        return await self._shown(user.id, user.username)

    async def _shown(self, user_id: int, name: str) -> Reply:
        usage, limits = await self._quotas.usage(user_id)
        used = {"open": usage.open, "daily": usage.daily, "bytes": usage.bytes}
        fields: dict[str, Any] = {
            what: {"used": used[what], "limit": limit, "default": own is None}
            for what, limit, own in zip(used, limits, usage.quota, strict=True)
        }
        return Reply({"status": "success", "username": name, **fields})
