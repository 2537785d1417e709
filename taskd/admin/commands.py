"""The commands of taskadmin that change accounts. Each change is noted in the audit, in the same transaction."""

from __future__ import annotations

import csv
import os
import pwd
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from taskd.admin.failure import Failed
from taskd.admin.user_file import NewUser, read_users
from taskd.cli.texts.catalogue import Texts
from taskd.model.errors import Conflict, TaskdError, UsernameInUse
from taskd.model.tokens import CODE_SECONDS, code_hash, new_code, new_token
from taskd.model.uids import DYNAMIC, FIRST_UID, NOBODY, is_person
from taskd.model.users import Role, User, normalize_username
from taskd.ports.accounts import Entry
from taskd.ports.store import IStore
from taskd.store.opening import Startable

ACTOR = "taskadmin"
"""Who has done it, in the audit."""


@dataclass
class Admin:
    """What a command works with. ``out`` is standard output, and ``note`` writes a line to standard error."""

    store: IStore
    texts: Texts
    out: IO[str]
    note: Callable[[str], None]

    def print(self, line: str) -> None:
        """Write a line to standard output."""
        print(line, file=self.out, flush=True)


async def create_admin(admin: Admin, options: Namespace) -> None:
    """Raises BadRequest, Failed, Unavailable."""
    name, key = normalize_username(options.name)
    entry = Entry("create_admin", actor=ACTOR)
    if options.existing:
        user = await admin.store.set_role(key, Role.ADMIN, entry)
        if user is None:
            raise Failed(admin.texts("no_user", name=name))
        admin.note(admin.texts("created", name=user.username))
        if user.disabled:
            admin.note(admin.texts("is_disabled", name=user.username))
        return
    try:
        _, code = await _create(admin.store, NewUser(name, key, Role.ADMIN), entry)
    except UsernameInUse:
        raise Failed(admin.texts("exists", name=name)) from None
    admin.note(admin.texts("created", name=name))
    _show(admin, name, code)


async def reset_password(admin: Admin, options: Namespace) -> None:
    """Raises BadRequest, Failed, Unavailable."""
    name, key = normalize_username(options.name)
    code = new_code()
    user = await admin.store.set_code(key, code_hash(code), CODE_SECONDS, Entry("reset_password", actor=ACTOR))
    if user is None:
        raise Failed(admin.texts("no_user", name=name))
    _show(admin, user.username, code)
    if user.disabled:
        admin.note(admin.texts("is_disabled", name=user.username))


async def reset_totp(admin: Admin, options: Namespace) -> None:
    """Raises BadRequest, Failed, Unavailable."""
    name, key = normalize_username(options.name)
    user = await admin.store.reset_totp(key, Entry("reset_totp", actor=ACTOR))
    if user is None:
        raise Failed(admin.texts("no_user", name=name))
    admin.note(admin.texts("totp_reset", name=user.username))


async def import_users(admin: Admin, options: Namespace) -> None:
    """Raises Failed, Unavailable."""
    users = read_users(options.file, admin.texts)
    out = admin.out if options.output is None else _new_file(options.output, admin.texts)
    try:
        await _import(admin, users, out)
    finally:
        if out is not admin.out:
            out.close()


async def _import(admin: Admin, users: list[NewUser], out: IO[str]) -> None:
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["username", "role", "code"])
    count = skipped = 0
    try:
        for new in users:
            entry = Entry("import_user", actor=ACTOR, details=f"role {new.role.value}")
            try:
                user, code = await _create(admin.store, new, entry)
            except UsernameInUse:
                skipped += 1
                admin.note(admin.texts("skipped", name=new.username))
                continue
            count += 1
            table.writerow([user.username, new.role.value, code])
            # whatever happens next, this code is not lost
            out.flush()
    except TaskdError as e:
        raise Failed(e.message, admin.texts("interrupted_import", count=count)) from None
    admin.note(admin.texts("imported", count=count, skipped=skipped))


async def bind_local(admin: Admin, options: Namespace) -> None:
    """Raises BadRequest, Failed, Unavailable."""
    name, key = normalize_username(options.name)
    uid = None if options.none else _uid(options.uid, admin.texts)
    entry = Entry("bind_local", actor=ACTOR, details="no local uid" if uid is None else f"local uid {uid}")
    try:
        user = await admin.store.bind_local(key, uid, entry)
    except Conflict as e:
        raise Failed(admin.texts("bound_already", uid=uid, why=e.message)) from None
    if user is None:
        raise Failed(admin.texts("no_user", name=name))
    if uid is None:
        admin.note(admin.texts("unbound", name=user.username))
    else:
        admin.note(admin.texts("bound", name=user.username, uid=uid, local=_name_of(uid)))


async def migrate(admin: Admin, options: Namespace) -> None:
    """The start of the store has done it. Raises Unavailable."""
    version = await admin.store.check_writable()
    count = admin.store.migrated if isinstance(admin.store, Startable) else 0
    await admin.store.audit([Entry("migrate", actor=ACTOR, details=f"version {version}, {count} applied")])
    admin.print(admin.texts("migrated", version=version, count=count))


async def _create(store: IStore, new: NewUser, entry: Entry) -> tuple[User, str]:
    """Create a user without a password. Returns the user and a one-time code. Raises UsernameInUse, Unavailable."""
    # Until the code is stored, the account has a hash that no password has. Unlike an empty one, it tells a store that
    # repeats the call that the user is the one that it has just created.
    user = await store.create_user(new.username, new.key, f"!{new_token()}", entry, new.role)
    code = new_code()
    await store.set_code(new.key, code_hash(code), CODE_SECONDS)
    return user, code


def _uid(given: str, texts: Texts) -> int:
    """The uid of a person. Raises Failed."""
    uid = int(given) if re.fullmatch("[0-9]{1,10}", given) else -1
    if not is_person(uid):
        dynamic = f"{DYNAMIC[0]}-{DYNAMIC[-1]}"
        raise Failed(texts("bad_uid", uid=given, first=FIRST_UID, nobody=NOBODY, dynamic=dynamic))
    return uid


def _name_of(uid: int) -> str:
    """The name of a user of this machine, ``?`` if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "?"


def _show(admin: Admin, name: str, code: str) -> None:
    """The code alone goes to standard output."""
    admin.note(admin.texts("code", name=name))
    admin.print(code)


def _new_file(path: Path, texts: Texts) -> IO[str]:
    """A file that only its owner can read, and that does not exist yet. Raises Failed."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")
    except FileExistsError:
        raise Failed(texts("output_exists", file=path)) from None
    except OSError as e:
        raise Failed(texts("bad_file", file=path, why=e.strerror)) from None
