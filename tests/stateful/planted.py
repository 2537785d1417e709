"""Deliberate defects of taskd, which the machines must find."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from taskd.api import core
from taskd.api.actions.accounts import AccountActions
from taskd.api.actions.admin import AdminActions
from taskd.api.login_throttle import LoginThrottle
from taskd.api.owners import Owners
from taskd.api.principal import Principal
from taskd.api.rights import Rights
from taskd.api.states import StateReader
from taskd.events.watch_hub import Hub
from taskd.model.states import State
from taskd.scheduling.maintenance.purge_deleted import PurgeDeleted
from taskd.scheduling.quotas import Quotas
from taskd.store.sqlite import accounts, audit, sessions, tasks
from taskd.store.sqlite.audit import note
from tests.planting import Replacement, replaced, without


@dataclass(frozen=True)
class Defect:
    """The attribute ``name`` of ``owner`` is replaced by ``broken``. The machine for ``registration`` then fails in one
    of its first games. Those of the seed ``first`` are played first: one of them fails by now."""

    owner: Any
    name: str
    broken: Any
    registration: str = "open"
    first: int = 0
    also: Replacement | None = None
    """Another owner, name and replacement: taskd has two defences here, and each is enough."""

    def planted(self) -> AbstractContextManager[None]:
        """Run with this defect."""
        return replaced([(self.owner, self.name, self.broken), *([self.also] if self.also else [])])


_present: Callable[..., Principal] = Rights.present


def _does_nothing(*_: Any, **__: Any) -> None:
    pass


async def _does_nothing_soon(*_: Any) -> None:
    pass


def _nobody(*_: Any) -> Sequence[Any]:
    return ()


def _always(*_: Any) -> bool:
    return True


async def _owner_of_any(self: Owners, principal: Principal, task_id: int) -> int:
    return await self._states.owner(task_id) or principal.user_id


async def _states_of_any(self: StateReader, user_id: int, ids: Sequence[int], field: str) -> Mapping[int, State]:
    found = await self._batcher.submit(ids)
    return {task_id: found[task_id].state for task_id in ids if task_id in found}


def _keeps_the_sessions(db: Any, now: int, user_id: int, key: str, new: str, keep: bytes | None, entry: Any) -> None:
    db.execute(accounts.SET_PASSWORD, (new, user_id))
    note(db, now, entry, user_id, key)


def _with_the_role_of_the_login(self: Rights, principal: Principal) -> Principal:
    _present(self, principal)
    return principal


def _notes_no_roles(db: Any, now: int, entry: Any, *rest: Any) -> None:
    if entry is not None and entry.action != "set_role":
        note(db, now, entry, *rest)


DEFECTS: Mapping[str, Defect] = {
    "a user reads the tasks of others": Defect(Owners, "of_task", _owner_of_any, first=1),
    "a user waits for the tasks of others": Defect(StateReader, "own_states", _states_of_any),
    "a changed password ends no session": Defect(accounts, "_replace_password", _keeps_the_sessions),
    "a code works twice": Defect(
        accounts, "SET_PASSWORD", without(accounts.SET_PASSWORD, ", code_hash = NULL, code_until = NULL", ""), first=1
    ),
    "a cancelled task loses its key": Defect(tasks, "CANCEL", without(tasks.CANCEL, "SET ", "SET key = NULL, ")),
    "a disabled user works on": Defect(AdminActions, "_announce", _does_nothing),
    "an ended session works on": Defect(Rights, "_end", _does_nothing),
    "a role counts from the next login on": Defect(Rights, "present", _with_the_role_of_the_login),
    "an invitation is never used up": Defect(
        accounts, "SPEND_INVITATION", without(accounts.SPEND_INVITATION, "uses_left - 1", "uses_left"), "invitation"
    ),
    "scopes are not checked": Defect(core, "check_scope", _does_nothing),
    "the last admin can go": Defect(accounts, "_check_last_admin", _does_nothing),
    "a login ends no session": Defect(AccountActions, "_end_presented", _does_nothing_soon),
    "anybody ends any session": Defect(
        sessions, "END_SESSION", without(sessions.END_SESSION, "user_id = ?", "user_id > ? - 1000"), first=1
    ),
    "a session may be idle for ever": Defect(
        sessions,
        "FIND_SESSION",
        without(sessions.FIND_SESSION, "s.used_at > ?", "s.used_at <> ?"),
        first=1,
        also=(audit, "SWEEPS", {name: sweep for name, sweep in audit.SWEEPS.items() if name != "idle"}),
    ),
    "wrong passwords cost no time": Defect(LoginThrottle, "_refuse", _does_nothing),
    "quotas are not checked": Defect(Quotas, "admits", _always),
    "a new role is not in the audit": Defect(accounts, "note", _notes_no_roles),
    "the tasks of deleted users stay": Defect(PurgeDeleted, "run", _does_nothing_soon),
    "a watch gets no events": Defect(Hub, "_by_watched_user", _nobody),
}
