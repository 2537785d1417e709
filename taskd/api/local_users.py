"""Users of this machine, who log in without a password: the kernel says who they are.

An account belongs to a uid, not to a name: whoever registers a name over the network neither takes over the account of
the machine's user with this name, nor is taken over by it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from taskd.api.login_guard import Client, LoginGuard
from taskd.model.errors import BadRequest, Forbidden, RateLimited, UsernameInUse, quote
from taskd.model.uids import FIRST_UID, is_person
from taskd.model.users import User, check_new_username
from taskd.ports.accounts import Entry, IAccountStore

FindName = Callable[[int], Awaitable[str | None]]
"""The name of a uid on this machine, None if it has none. Raises Unavailable."""


class LocalUsers:
    """Finds the accounts of users of this machine, and creates them. ``admins`` are the keys of TASKD_ADMINS: nobody
    gets an account with such a name by coming first."""

    def __init__(
        self, store: IAccountStore, guard: LoginGuard, find_name: FindName, admins: Collection[str] = ()
    ) -> None:
        self._store = store
        self._guard = guard
        self._find_name = find_name
        self._admins = frozenset(admins)

    async def find(self, client: Client, uid: int) -> User:
        """The account that is bound to this uid. Raises Forbidden, RateLimited, Unavailable."""
        try:
            if not is_person(uid):
                raise _refused(f"a local login needs the uid of a person: from {FIRST_UID} on, and none of services")
            await self._guard.local_login(client, uid)
            user = await self._find(client, uid)
            if user.disabled:
                raise _refused("this account is disabled; ask an admin")
        except (Forbidden, RateLimited) as e:
            self._guard.local_refused(uid_text(uid), e.code)
            raise
        return user

    async def _find(self, client: Client, uid: int) -> User:
        # also for an account that exists: whoever was deleted on the machine may not log in any more
        found = await self._find_name(uid)
        if found is None:
            raise _refused(f"the uid {uid} has no name on this machine; ask the machine's administrator")
        user: User | None = await self._store.find_local(uid)
        if user is not None:
            return user
        try:
            name, key = check_new_username(found)
        except BadRequest as e:
            raise _refused(f"{quote(found)} cannot be a username here ({e.message}); {_ask(uid)}") from None
        if key in self._admins:
            raise _refused(f"{quote(name)} is the name of an admin in TASKD_ADMINS; {_ask(uid)}")
        entry = Entry("register", actor=name, subject=key, address=client.address, details=uid_text(uid))
        try:
            return await self._store.create_local(name, key, uid, entry)
        except UsernameInUse:
            raise _refused(f"another account has the username {quote(name)}; {_ask(uid)}") from None


def uid_text(uid: int) -> str:
    """How the audit names a user of the machine."""
    return f"local uid {uid}"


def _ask(uid: int) -> str:
    return f"ask the machine's administrator to bind an account to you, with taskadmin bind-local NAME {uid}"


def _refused(text: str) -> Forbidden:
    return Forbidden(text, field="local")
