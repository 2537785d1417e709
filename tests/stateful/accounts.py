"""Rules: register, log in and out, passwords, sessions, API tokens."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.stateful.base import PASSWORDS, USERS, WRONG, Base, Conn, names, picks
from tests.stateful.model import DAY, SETTINGS_ADMIN, Account, Session

SCOPES = (
    None,
    ["tasks:read"],
    ["tasks:write"],
    ["submit:simulate"],
    ["submit:count", "tasks:read"],
)
passwords = st.sampled_from(PASSWORDS)
mostly = st.sampled_from([True, True, True, False])


class AccountRules(Base):
    """What users do with their own accounts."""

    @rule(pick=picks, name=names, right=mostly, other=passwords)
    def log_in(self, pick: int, name: str, right: bool, other: str) -> None:
        """Log in with the right password, if there is one, or with another that may be right, too."""
        conn = self.conn(pick)
        if conn.waits:
            return
        account = self.model.accounts.get(name.lower())
        known = account.password if right and account is not None else None
        self.logs_in(conn, name.upper() if other == PASSWORDS[1] else name, known or other)

    @rule(pick=picks, name=names, times=st.integers(1, 3))
    def guess(self, pick: int, name: str, times: int) -> None:
        """Try wrong passwords, and then the right one without a pause."""
        conn = self.conn(pick)
        account = self.model.accounts.get(name.lower())
        right = (account.password if account is not None else None) or WRONG
        for password in (*[WRONG] * times, right):
            # a late answer may come after the time to log in
            if not conn.waits and not conn.client.closed:
                self.logs_in(conn, name, password)

    @precondition(lambda self: self.model.tokens)
    @rule(pick=picks, which=picks)
    def log_in_with_token(self, pick: int, which: int) -> None:
        """Log in with any token that there ever was, the newest first."""
        conn, tokens = self.conn(pick), self.model.tokens
        if not conn.waits:
            self.logs_in_with(conn, tokens[-1 - which % len(tokens)])

    @rule(pick=picks)
    def log_out(self, pick: int) -> None:
        """End the session, but no API token."""
        conn = self.user(pick)
        if conn.waits or self.ask(conn, "logout") is None:
            return
        assert conn.login is not None
        account, session = conn.login
        if session.name is None:
            account.sessions.pop(session.number)
        self.strangers(conn)

    @rule(pick=picks, name=names, with_invitation=mostly, which=picks, password=passwords)
    def register(self, pick: int, name: str, with_invitation: bool, which: int, password: str) -> None:
        """Create an account, if the server lets anybody do so."""
        conn, model, at = self.conn(pick), self.model, self.now
        if conn.waits:
            return
        free = [each for each in (*USERS, "Kim") if each.lower() not in model.accounts]
        name = free[0] if free and which % 2 else name
        invitations = model.invitations
        text = invitations[-1 - which % min(2, len(invitations))].text if with_invitation and invitations else None
        invited = model.invitation(text, at)
        reply = self.send(conn, "register", username=name, password=password, invitation=text)
        if (
            model.registration == "closed"
            or (model.registration == "invitation" and invited is None)
            or name.lower() == SETTINGS_ADMIN
        ):
            self.judge(reply, "forbidden")
        elif name.lower() in model.accounts:
            self.judge(reply, "conflict/in_use")
        else:
            self.judge(reply)
            assert reply["username"] == name and reply["user_id"] not in model.numbers, reply
            model.numbers.add(reply["user_id"])
            account = model.accounts[name.lower()] = Account(reply["user_id"], name, password)
            if model.registration == "invitation":
                assert invited is not None
                invited.uses_left -= 1
            row = self.row("register", None, account.key, conn.address)
            row.actor = account.name
            model.audit.append(row)

    def _checked(self, conn: Conn, action: str, right: bool, **fields: Any) -> bool:
        """Do what needs the present password. Whether nothing is against it as far as the password is concerned."""
        model, at = self.model, self.now
        login = conn.login
        key = "" if login is None else login[0].key
        must_wait = model.must_wait(key, conn.address, at)
        known = None if login is None or not right else login[0].password
        reply = self.ask(conn, action, password=known or WRONG, **fields)
        if reply is None:
            return False
        assert login is not None
        if must_wait:
            self.judge(reply, "rate_limited")
            return False
        model.guessed(action, key, conn.address, right, at)
        if not right:
            self.judge(reply, "forbidden/wrong_credentials")
        elif action == "delete_account" and model.is_last_admin(login[0]):
            self.judge(reply, "conflict")
        else:
            return self.judge(reply)
        return False

    @rule(pick=picks, right=mostly, new=passwords)
    def change_password(self, pick: int, right: bool, new: str) -> None:
        """Change the own password: only the session that asks for it goes on."""
        conn = self.user(pick)
        if conn.waits or not self._checked(conn, "change_password", right, new_password=new):
            return
        assert conn.login is not None
        account, session = conn.login
        account.password, account.code = new, None
        account.sessions = {session.number: session}
        self.model.audit.append(self.row("change_password", account, account.key, conn.address))

    @rule(pick=picks, right=mostly)
    def delete_account(self, pick: int, right: bool) -> None:
        """Delete the own account."""
        conn = self.user(pick)
        if conn.waits or not self._checked(conn, "delete_account", right):
            return
        assert conn.login is not None
        account = conn.login[0]
        self.model.delete(account, self.now)
        self.strangers(conn)
        self.model.audit.append(self.row("delete_account", account, account.key, conn.address))

    @rule(pick=picks, name=names, which=st.sampled_from(["right", "right", "right", "old", "made up"]), new=passwords)
    def set_password(self, pick: int, name: str, which: str, new: str) -> None:
        """Set a password with the one-time code of an admin. No code works twice."""
        if self._set_password(pick, name, which, new):
            self._set_password(pick, name, "old", new)

    def _set_password(self, pick: int, name: str, which: str, new: str) -> bool:
        conn, model, at = self.conn(pick), self.model, self.now
        if conn.waits:
            return False
        with_code = [account for account in model.accounts.values() if account.code is not None]
        account = (
            with_code[pick % len(with_code)] if with_code and which == "right" else model.accounts.get(name.lower())
        )
        if which == "old" and model.old_codes:
            account = model.accounts.get(model.old_codes[-1][0])
        key = name.lower() if account is None else account.key
        code = "MADE-UP"
        if which == "right" and account is not None and account.code is not None:
            code = account.code.lower().replace("-", " ")
        elif which == "old" and model.old_codes:
            code = model.old_codes[-1][1]
        must_wait = model.must_wait(key, conn.address, at)
        reply = self.send(conn, "set_password", username=key, code=code, new_password=new)
        if must_wait:
            self.judge(reply, "rate_limited")
            return False
        valid = account is not None and account.code is not None and at < account.code_until
        right = valid and account is not None and code.upper().replace(" ", "-") == account.code
        model.guessed("set_password", key, conn.address, right, at)
        if not right:
            self.judge(reply, "forbidden/wrong_credentials")
            return False
        self.judge(reply)
        assert account is not None and account.code is not None
        model.old_codes.append((account.key, account.code))
        account.password, account.code = new, None
        account.sessions.clear()
        model.audit.append(self.row("set_password", account, account.key, conn.address))
        return True

    # -- sessions and API tokens

    @rule(pick=picks, which=picks)
    def end_session(self, pick: int, which: int) -> None:
        """End a session or API token, perhaps one of somebody else."""
        conn, at = self.user(pick), self.now
        found = [session for account in self.model.accounts.values() for session in account.sessions.values()]
        number = found[which % len(found)].number if found else 1
        reply = self.ask(conn, "end_session", session_id=number)
        if reply is None:
            return
        assert conn.login is not None
        account = conn.login[0]
        own = account.sessions.get(number)
        if own is None or not own.is_valid(at):
            self.judge(reply, "not_found")
            return
        self.judge(reply)
        del account.sessions[number]
        self.model.audit.append(self.row("end_session", account, account.key, conn.address))

    @rule(pick=picks, keep=st.booleans())
    def end_sessions(self, pick: int, keep: bool) -> None:
        """End all own sessions and API tokens, perhaps but for this one."""
        conn, at = self.user(pick), self.now
        reply = self.ask(conn, "end_sessions", keep_this=keep)
        if reply is None:
            return
        self.judge(reply)
        assert conn.login is not None
        account, session = conn.login
        ended = [each for each in account.sessions.values() if each.is_valid(at) and not (keep and each is session)]
        assert reply["ended"] == len(ended), (reply, ended)
        account.sessions = {session.number: session} if keep else {}
        if ended:
            self.model.audit.append(self.row("end_sessions", account, account.key, conn.address))

    @rule(pick=picks, scopes=st.sampled_from(SCOPES), days=st.sampled_from([1, 6, 19]), log_in=picks)
    def new_token(self, pick: int, scopes: list[str] | None, days: int, log_in: int) -> None:
        """Make an API token, and often use it at once."""
        conn, at = self.user(pick), self.now
        reply = self.ask(conn, "new_token", name="a program", days=days, scopes=scopes)
        if reply is None:
            return
        self.judge(reply)
        assert conn.login is not None
        account, number, token = conn.login[0], reply["session_id"], reply["token"]
        assert token.startswith("taskd_") and token not in self.model.tokens
        assert number not in account.sessions
        allowed = ("tasks:read", "tasks:write") if scopes is None else tuple(scopes)
        account.sessions[number] = Session(number, token, conn.address, at + days * DAY, at, "a program", allowed)
        self.model.tokens.append(token)
        self.model.audit.append(self.row("new_token", account, account.key, conn.address))
        other = self.conn(log_in)
        if other is not conn and not other.waits:
            self.logs_in_with(other, token)
