"""Rules: roles, disabled users, one-time codes, invitations, weights, quotas, the audit."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.stateful.base import Base, Conn, names, picks
from tests.stateful.model import CODE_SECONDS, DAY, Account, Invitation, Row

REFUSED_SECONDS = 62.0
"""Until when refused logins are in the audit."""


class AdminRules(Base):
    """What admins do, and others try. A request is mostly sent by an admin."""

    def admin(self, pick: int) -> Conn:
        """A connection that may do everything, if there is one; every sixth time any other."""
        able = [each for each in self.conns if self.model.refusal(each.login, "users") is None]
        return able[pick % len(able)] if able and pick % 6 else self.user(pick)

    def whom(self, pick: int, name: str) -> str:
        """This name, or that of somebody who is logged in."""
        found = [conn.login[0].name for conn in self.conns if conn.login is not None]
        return found[pick % len(found)] if found and pick % 2 else name

    def _of(self, reply: dict[str, Any] | None, name: str, *codes: str) -> Account | None:
        """The account that an admin has changed."""
        if reply is None:
            return None
        account = self.model.accounts.get(name.lower())
        if account is None:
            self.judge(reply, "not_found/no_user")
            return None
        return account if self.judge(reply, *codes) else None

    def _note(self, conn: Conn, action: str, subject: str) -> None:
        assert conn.login is not None
        self.model.audit.append(self.row(action, conn.login[0], subject, conn.address))

    @rule(pick=picks, name=names, role=st.sampled_from(["user", "operator", "admin"]))
    def set_role(self, pick: int, name: str, role: str) -> None:
        """Give a role."""
        name = self.whom(pick, name)
        conn, account = self.admin(pick), self.model.accounts.get(name.lower())
        is_last = account is not None and role != "admin" and self.model.is_last_admin(account)
        reply = self.ask(conn, "set_role", username=name, role=role)
        if self._of(reply, name, *(["conflict"] if is_last else [])) is None or reply is None or account is None:
            return
        if account.role != role:
            account.role = role
            self._note(conn, "set_role", account.key)
        assert (reply["role"], reply["disabled"]) == (account.shown_role, account.disabled), reply

    @rule(pick=picks, name=names, disabled=st.booleans())
    def set_disabled(self, pick: int, name: str, disabled: bool) -> None:
        """Disable or enable."""
        name = self.whom(pick, name)
        conn, account = self.admin(pick), self.model.accounts.get(name.lower())
        is_last = account is not None and disabled and self.model.is_last_admin(account)
        reply = self.ask(conn, "set_disabled", username=name, disabled=disabled)
        if self._of(reply, name, *(["conflict"] if is_last else [])) is None or reply is None or account is None:
            return
        if account.disabled is not disabled:
            account.disabled = disabled
            if disabled:
                account.sessions.clear()
            self._note(conn, "set_disabled", account.key)
        assert (reply["role"], reply["disabled"]) == (account.shown_role, disabled), reply

    @rule(pick=picks, name=names)
    def reset_password(self, pick: int, name: str) -> None:
        """Make a one-time code."""
        name = self.whom(pick, name)
        conn = self.admin(pick)
        reply = self.ask(conn, "reset_password", username=name)
        account = self._of(reply, name)
        if account is None or reply is None:
            return
        assert reply["expires_in"] == CODE_SECONDS
        if account.code is not None:
            self.model.old_codes.append((account.key, account.code))
        account.password, account.code, account.code_until = None, reply["code"], self.now + CODE_SECONDS
        account.sessions.clear()
        self._note(conn, "reset_password", account.key)

    @rule(pick=picks, name=names)
    def end_user_sessions(self, pick: int, name: str) -> None:
        """End all sessions of somebody."""
        name = self.whom(pick, name)
        conn, at = self.admin(pick), self.now
        reply = self.ask(conn, "end_user_sessions", username=name)
        account = self._of(reply, name)
        if account is None or reply is None:
            return
        ended = sum(session.is_valid(at) for session in account.sessions.values())
        assert reply["ended"] == ended, (reply, account.sessions)
        account.sessions.clear()
        if ended:
            self._note(conn, "end_user_sessions", account.key)

    @rule(pick=picks, name=names, weight=st.sampled_from([0.5, 1.0, 3.0]))
    def set_weight(self, pick: int, name: str, weight: float) -> None:
        """Set a weight."""
        name = self.whom(pick, name)
        conn = self.admin(pick)
        account = self._of(self.ask(conn, "set_weight", username=name, weight=weight), name)
        if account is not None and account.weight != weight:
            account.weight = weight
            self._note(conn, "set_weight", account.key)

    # -- invitations

    @rule(pick=picks, uses=st.integers(1, 2), days=st.sampled_from([1, 6]))
    def invite(self, pick: int, uses: int, days: int) -> None:
        """Make an invitation."""
        self.make_invitation(self.admin(pick), uses, days)

    def make_invitation(self, conn: Conn, uses: int, days: int) -> None:
        """Make an invitation on this connection."""
        at = self.now
        reply = self.ask(conn, "invite", uses=uses, days=days)
        if reply is None:
            return
        self.judge(reply)
        assert conn.login is not None
        found = Invitation(reply["invitation_id"], reply["invitation"], uses, conn.login[0].name, at + days * DAY)
        self.model.invitations.append(found)
        self._note(conn, "invite", "")

    @rule(pick=picks, which=picks)
    def end_invitation(self, pick: int, which: int) -> None:
        """Withdraw an invitation. One that cannot be used any more may still be there for an hour."""
        conn, invitations = self.admin(pick), self.model.invitations
        found = invitations[which % len(invitations)] if invitations else None
        codes = []
        if found is None or not found.is_valid(self.now):
            codes = ["not_found", *([] if found is None or found.withdrawn else ["ok"])]
        reply = self.ask(conn, "end_invitation", invitation_id=999 if found is None else found.number)
        if reply is not None and self.judge(reply, *codes):
            assert found is not None
            found.withdrawn = True
            self._note(conn, "end_invitation", "")

    # -- quotas

    @rule(pick=picks, name=names, what=st.sampled_from(["open", "daily"]), limit=st.sampled_from([1, 2, 3, 0, None]))
    def set_quota(self, pick: int, name: str, what: str, limit: int | None) -> None:
        """Set a limit."""
        self.limit(self.admin(pick), self.whom(pick, name), what, limit)

    def limit(self, conn: Conn, name: str, what: str, limit: int | None) -> None:
        """Set a limit on this connection."""
        fields: dict[str, Any] = {what: limit}
        reply = self.ask(conn, "set_quota", username=name, **fields)
        account = self._of(reply, name)
        if account is None or reply is None:
            return
        if account.limits.get(what) != limit:
            if limit and limit < (account.limits.get(what) or 1 << 60):
                account.lowered = self.now
            account.limits[what] = limit
            self._note(conn, "set_quota", account.key)
        self._compare_quota(reply, account)

    @rule(pick=picks, name=names, own=st.booleans())
    def quota(self, pick: int, name: str, own: bool) -> None:
        """Read what a user has used."""
        conn = self.user(pick)
        fields: dict[str, Any] = {} if own else {"username": name}
        reply = self.ask(conn, "quota", **fields)
        if reply is None or conn.login is None:
            return
        if not own and not conn.login[0].is_operator:
            self.judge(reply, "forbidden")
            return
        account = conn.login[0] if own else self._of(reply, name)
        if account is not None:
            self.judge(reply)
            self._compare_quota(reply, account)

    def _compare_quota(self, reply: dict[str, Any], account: Account) -> None:
        assert reply["username"].lower() == account.key, reply
        for what, used in (("open", account.open_tasks()), ("daily", account.daily(self.now)), ("bytes", account.size)):
            limit = account.limits.get(what)
            shown = reply[what]
            most = limit + 1 if what == "open" and limit else 1 << 60
            assert shown["used"] == min(used, most), (what, shown, used)
            assert shown["default"] is (limit is None), (what, shown)
            assert limit is None or shown["limit"] == limit, (what, shown)

    # -- the audit

    @rule(
        pick=picks,
        name=st.one_of(st.none(), names),
        action=st.sampled_from([None, None, "login", "set_role", "delete_account"]),
        limit=st.sampled_from([2, 7, 500]),
    )
    def audit(self, pick: int, name: str | None, action: str | None, limit: int) -> None:
        """Read all rows, page by page."""
        conn = self.admin(pick)
        filters: dict[str, Any] = {"username": name, "action_name": action, "limit": limit}
        rows: list[dict[str, Any]] = []
        cursor = None
        while not rows or cursor is not None:
            reply = self.ask(conn, "audit", cursor=cursor, **filters)
            if reply is None:
                return
            self.judge(reply)
            rows += reply["audit"]
            assert len(reply["audit"]) <= limit
            cursor = reply["cursor"]
            if not reply["audit"]:
                break
        assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), reverse=True)
        expected = [row for row in self.model.audit if _is_about(row, name, self.model.accounts, action)]
        self.are_rows(rows, expected)
        self._compare_refused(rows, name, action)

    def _compare_refused(self, rows: list[dict[str, Any]], name: str | None, action: str | None) -> None:
        found: dict[tuple[str, str], int] = {}
        for row in rows:
            if row["outcome"] == "forbidden":
                found[row["action"], row["subject"]] = found.get((row["action"], row["subject"]), 0) + row["number"]
        expected = {
            (what, key): number
            for (what, key), number in self.model.refused.items()
            if (name is None or name.lower() == key) and action in (None, what)
        }
        assert found.items() <= expected.items() or all(n <= expected.get(k, 0) for k, n in found.items()), found
        if self.now - self.model.refused_at > REFUSED_SECONDS:
            assert found == expected, (found, expected)


def _is_about(row: Row, name: str | None, accounts: dict[str, Account], action: str | None) -> bool:
    """Whether a row passes the filters. A name stands for what was done to it, and what its present owner did."""
    if action is not None and row.action != action:
        return False
    if name is None or row.subject == name.lower():
        return True
    owner = accounts.get(name.lower())
    if owner is None:
        return False
    return row.by == owner.number
