"""What the server must answer, according to docs/protocol.md. Nothing here comes from taskd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

DAY = 86_400.0
HOUR = 3_600.0
SESSION_SECONDS = 9 * DAY
IDLE_SECONDS = 7 * DAY
CODE_SECONDS = DAY
LOGIN_SECONDS = 30.0
PURGE_SECONDS = 30.0
"""Until when the tasks of a deleted account have gone."""

SETTINGS_ADMIN = "root"
"""Who is an admin by the settings."""

# Who may use an action, and which scope an API token needs.
ANYONE, LOCAL, USER, ADMIN = "anyone", "local", "logged in", "admin"
FREE, READ, WRITE, SUBMIT, NEVER = "", "tasks:read", "tasks:write", "submit", "never"

ACTIONS: dict[str, tuple[str, str]] = {
    "hello": (ANYONE, FREE),
    "ping": (ANYONE, FREE),
    "health": (LOCAL, FREE),
    "register": (ANYONE, FREE),
    "login": (ANYONE, FREE),
    "logout": (USER, FREE),
    "whoami": (USER, FREE),
    "set_weight": (ADMIN, NEVER),
    "change_password": (USER, NEVER),
    "set_password": (ANYONE, FREE),
    "delete_account": (USER, NEVER),
    "totp_begin": (USER, NEVER),
    "totp_confirm": (USER, NEVER),
    "totp_off": (USER, NEVER),
    "reset_totp": (ADMIN, NEVER),
    "sessions": (USER, NEVER),
    "end_session": (USER, NEVER),
    "end_sessions": (USER, NEVER),
    "new_token": (USER, NEVER),
    "users": (ADMIN, NEVER),
    "set_role": (ADMIN, NEVER),
    "set_disabled": (ADMIN, NEVER),
    "reset_password": (ADMIN, NEVER),
    "end_user_sessions": (ADMIN, NEVER),
    "invite": (ADMIN, NEVER),
    "invitations": (ADMIN, NEVER),
    "end_invitation": (ADMIN, NEVER),
    "audit": (ADMIN, NEVER),
    "new_task": (USER, SUBMIT),
    "new_tasks": (USER, SUBMIT),
    "get_tasks": (USER, READ),
    "get_task": (USER, READ),
    "cancel_task": (USER, WRITE),
    "retry_task": (USER, WRITE),
    "explain": (USER, READ),
    "get_log": (USER, READ),
    "kinds": (USER, READ),
    "overview": (USER, READ),
    "quota": (USER, READ),
    "set_quota": (ADMIN, NEVER),
    "watch": (USER, READ),
    "unwatch": (USER, READ),
    "wait": (USER, READ),
}


@dataclass
class Session:
    """A session, or an API token, which has a name and scopes. Times are in seconds."""

    number: int
    token: str
    address: str
    expires: float
    used: float
    name: str | None = None
    scopes: tuple[str, ...] | None = None

    def is_valid(self, now: float) -> bool:
        """Whether it has not ended by itself."""
        return now < self.expires and (self.name is not None or now < self.used + IDLE_SECONDS)

    def allows(self, scope: str, kinds: Sequence[str]) -> bool:
        """Whether a token with these scopes may do what needs this one."""
        if self.scopes is None or scope == FREE or scope in self.scopes:
            return True
        return scope == SUBMIT and (WRITE in self.scopes or all(f"submit:{kind}" in self.scopes for kind in kinds))


@dataclass
class Task:
    """A task as far as its owner sees it."""

    number: int
    spec: dict[str, Any]
    run_at: float
    state: str = "waiting"
    log: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """Which handler runs it."""
        return str(self.spec.get("kind", "simulate"))

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state in ("waiting", "running")

    def shown(self, now: float) -> str:
        """The state that readers see."""
        return "scheduled" if self.state == "waiting" and now < self.run_at else self.state


@dataclass
class Account:
    """An account. ``password`` is None while there is only a one-time code."""

    number: int
    name: str
    password: str | None
    role: str = "user"
    disabled: bool = False
    weight: float = 1.0
    code: str | None = None
    code_until: float = 0.0
    sessions: dict[int, Session] = field(default_factory=dict)
    tasks: dict[int, Task] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int | None] = field(default_factory=dict)
    lowered: float = float("-inf")
    """When a quota was made lower."""
    created: list[float] = field(default_factory=list)
    """When it created its tasks."""
    size: int = 0
    """Bytes of their texts and payloads."""

    @property
    def key(self) -> str:
        """The name as it counts."""
        return self.name.lower()

    @property
    def shown_role(self) -> str:
        """The role that counts: the settings may name admins, too."""
        return "admin" if self.key == SETTINGS_ADMIN else self.role

    @property
    def is_operator(self) -> bool:
        """Whether the user sees the tasks of all users."""
        return self.shown_role != "user"

    def open_tasks(self) -> int:
        """How many have not ended."""
        return sum(task.is_open for task in self.tasks.values())

    def daily(self, now: float) -> int:
        """How many tasks count for the day: those of an hour do until a day after it began."""
        return sum(now - now % HOUR < at - at % HOUR + DAY for at in self.created)

    def may_exceed(self, now: float) -> bool:
        """Whether a limit may be exceeded now: a lower one takes effect within ten seconds."""
        return now - self.lowered < 10.0

    def exceeds(self, count: int, now: float) -> bool:
        """Whether so many new tasks are more than the user may have."""
        open_limit, daily_limit = self.limits.get("open"), self.limits.get("daily")
        return bool(
            (open_limit and self.open_tasks() + count > open_limit)
            or (daily_limit and self.daily(now) + count > daily_limit)
        )


@dataclass
class Invitation:
    """An invitation to register."""

    number: int
    text: str
    uses_left: int
    created_by: str
    expires: float
    withdrawn: bool = False

    def is_valid(self, now: float) -> bool:
        """Whether it can still be used."""
        return self.uses_left > 0 and now < self.expires and not self.withdrawn


@dataclass
class Row:
    """A row of the audit about something that was done. ``by`` is the number of the actor, 0 for nobody."""

    action: str
    actor: str
    subject: str
    address: str
    by: int = 0


class Model:
    """All that there is. ``registration`` says who may create accounts."""

    def __init__(self, registration: str) -> None:
        self.registration = registration
        self.accounts: dict[str, Account] = {}
        self.ghosts: dict[int, float] = {}
        """Tasks of deleted accounts, and when they were deleted."""
        self.numbers: set[int] = set()
        """Those of all accounts that ever were."""
        self.invitations: list[Invitation] = []
        self.tokens: list[str] = []
        """Every token that there ever was."""
        self.old_codes: list[tuple[str, str]] = []
        """Codes that are not valid any more, and whose they were."""
        self.audit: list[Row] = []
        self.refused: Counter[tuple[str, str]] = Counter()
        """Wrong passwords and codes, by action and account."""
        self.refused_at = float("-inf")
        self._failures: dict[tuple[str, str], tuple[int, float]] = {}

    # -- accounts and sessions

    def by_number(self, number: int) -> Account | None:
        """The account with this number, unless it is deleted."""
        return next((account for account in self.accounts.values() if account.number == number), None)

    def by_token(self, token: str, now: float) -> tuple[Account, Session] | None:
        """Whose token it is, if it is valid."""
        for account in self.accounts.values():
            for session in account.sessions.values():
                if session.token == token and session.is_valid(now):
                    return account, session
        return None

    def admins(self) -> list[Account]:
        """The admins in the database who are not disabled."""
        return [account for account in self.accounts.values() if account.role == "admin" and not account.disabled]

    def is_last_admin(self, account: Account) -> bool:
        """Whether no other admin is left."""
        return self.admins() == [account]

    def delete(self, account: Account, now: float) -> None:
        """The account is deleted."""
        del self.accounts[account.key]
        self.ghosts.update(dict.fromkeys(account.tasks, now))

    def invitation(self, text: str | None, now: float) -> Invitation | None:
        """The invitation with this text, if it is valid."""
        return next((each for each in self.invitations if each.text == text and each.is_valid(now)), None)

    # -- requests

    def refusal(self, login: tuple[Account, Session] | None, action: str, kinds: Sequence[str] = ()) -> str | None:
        """The code of the error if this client may not use the action at all."""
        who, scope = ACTIONS[action]
        if who == LOCAL:
            return "forbidden"
        if who == ANYONE:
            return None
        if login is None:
            return "auth_required"
        account, session = login
        if who == ADMIN and account.shown_role != "admin":
            return "forbidden"
        return None if session.allows(scope, kinds) else "forbidden"

    # -- wrong passwords

    def must_wait(self, key: str, address: str, now: float) -> bool:
        """Whether this address has tried a wrong password for this account, and has to wait: a second, then twice as
        long each time."""
        number, last = self._failures.get((key, address), (0, 0.0))
        return number > 0 and now < last + min(2.0 ** (number - 1), 900.0)

    def guessed(self, action: str, key: str, address: str, right: bool, now: float) -> None:
        """A password or code was checked. A day without a wrong one ends the waiting, too."""
        if right:
            self._failures.pop((key, address), None)
            return
        number, last = self._failures.get((key, address), (0, now))
        self._failures[key, address] = (1 if now - last >= DAY else number + 1, now)
        self.refused[action, key] += 1
        self.refused_at = now

    # -- tasks

    def tasks(self) -> Iterator[tuple[Account, Task]]:
        """All tasks of accounts that exist, with their owners."""
        for account in self.accounts.values():
            for task in account.tasks.values():
                yield account, task
