"""Actions of admins on the accounts of others."""

from __future__ import annotations

from typing import Any

from taskd.api.accounts import Accounts
from taskd.api.cursors import audit_cursor, audit_place, users_cursor, users_place
from taskd.api.principal import Principal
from taskd.api.reply import SUCCESS, Reply
from taskd.api.rights import Rights
from taskd.api.shared_checks import check_choice
from taskd.api.subscriptions import Subscriptions
from taskd.events.publisher import Publisher
from taskd.model.tokens import CODE_SECONDS
from taskd.model.users import Role, User, normalize_username
from taskd.ports.accounts import Audited, UserRow
from taskd.protocol import messages as m


class AdminActions:
    """Each change is in the audit, in the transaction that makes it, and is announced, so that it takes effect on the
    open connections of all servers."""

    def __init__(self, accounts: Accounts, rights: Rights, publisher: Publisher) -> None:
        self._accounts = accounts
        self._rights = rights
        self._publisher = publisher

    async def set_weight(self, principal: Principal, subscriptions: Subscriptions, request: m.SetWeight) -> Reply:
        name = await self._accounts.set_weight(principal, request.username, request.weight)
        return Reply({"status": "success", "username": name, "weight": request.weight})

    async def users(self, principal: Principal, subscriptions: Subscriptions, request: m.Users) -> Reply:
        after = "" if request.cursor is None else users_place(request.cursor)
        rows = await self._accounts.list_users(after, request.limit)
        cursor = users_cursor(normalize_username(rows[-1].user.username)[1]) if len(rows) == request.limit else None
        return Reply({"status": "success", "users": [self._user(row) for row in rows], "cursor": cursor})

    def _user(self, row: UserRow) -> dict[str, Any]:
        return {
            "username": row.user.username,
            "user_id": row.user.id,
            "role": self._accounts.role_of(row.user).value,
            "disabled": row.user.disabled,
            "totp": row.user.totp,
            "weight": row.weight,
            "created_at": row.created_at,
            "used_at": row.used_at,
            "has_code": row.has_code,
        }

    async def set_role(self, principal: Principal, subscriptions: Subscriptions, request: m.SetRole) -> Reply:
        check_choice(request.role, [role.value for role in Role], "role")
        return self._changed(await self._accounts.set_role(principal, request.username, Role(request.role)))

    async def set_disabled(self, principal: Principal, subscriptions: Subscriptions, request: m.SetDisabled) -> Reply:
        return self._changed(await self._accounts.set_disabled(principal, request.username, request.disabled))

    async def reset_password(self, principal: Principal, subscriptions: Subscriptions, request: m.OneUser) -> Reply:
        user, code = await self._accounts.reset_password(principal, request.username)
        self._announce(user)
        return Reply({"status": "success", "username": user.username, "code": code, "expires_in": CODE_SECONDS})

    async def reset_totp(self, principal: Principal, subscriptions: Subscriptions, request: m.OneUser) -> Reply:
        return self._changed(await self._accounts.reset_totp(principal, request.username))

    async def end_user_sessions(self, principal: Principal, subscriptions: Subscriptions, request: m.OneUser) -> Reply:
        user, ended = await self._accounts.end_user_sessions(principal, request.username)
        self._announce(user)
        return Reply({"status": "success", "ended": ended})

    async def invite(self, principal: Principal, subscriptions: Subscriptions, request: m.Invite) -> Reply:
        number, invitation = await self._accounts.invite(principal, request.uses, request.days)
        fields = {
            "invitation_id": number,
            "invitation": invitation,
            "uses": request.uses,
            "expires_in": request.days * 86_400,
        }
        return Reply({"status": "success", **fields})

    async def invitations(self, principal: Principal, subscriptions: Subscriptions, request: m.Nothing) -> Reply:
        found = [
            {
                "id": each.id,
                "uses_left": each.uses_left,
                "created_by": each.created_by,
                "created_at": each.created_at,
                "expires_at": each.expires_at,
            }
            for each in await self._accounts.invitations()
        ]
        return Reply({"status": "success", "invitations": found})

    async def end_invitation(
        self, principal: Principal, subscriptions: Subscriptions, request: m.EndInvitation
    ) -> Reply:
        await self._accounts.end_invitation(principal, request.invitation_id)
        return SUCCESS

    async def audit(self, principal: Principal, subscriptions: Subscriptions, request: m.GetAudit) -> Reply:
        before = None if request.cursor is None else audit_place(request.cursor)
        rows = await self._accounts.read_audit(before, request.limit, request.username, request.action_name)
        cursor = audit_cursor(rows[-1].id) if len(rows) == request.limit else None
        return Reply({"status": "success", "audit": [_audited(row) for row in rows], "cursor": cursor})

    def _changed(self, user: User) -> Reply:
        self._announce(user)
        fields = {"username": user.username, "role": self._accounts.role_of(user).value, "disabled": user.disabled}
        return Reply({"status": "success", **fields})

    def _announce(self, user: User) -> None:
        self._rights.changed([user.id])
        self._publisher.publish_rights([user.id])


def _audited(row: Audited) -> dict[str, Any]:
    entry = row.entry
    return {
        "id": row.id,
        "at": row.at,
        "action": entry.action,
        "outcome": entry.outcome,
        "actor": entry.actor,
        "subject": entry.subject,
        "address": entry.address,
        "number": entry.number,
        "details": entry.details,
    }
