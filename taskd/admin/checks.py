"""``taskadmin check``: what is wrong with an installation. It changes nothing."""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from taskd.admin.failure import Failed, explained
from taskd.cli.texts.catalogue import Texts
from taskd.config import Settings
from taskd.daemon import DATABASE, open_store
from taskd.model.users import Role, normalize_username
from taskd.ports.store import IStore

PAGE = 1000
"""Users that are read at once."""

_UNIX = ("unix:", "systemd:domain=UNIX:")
"""How endpoints begin that are UNIX sockets."""

_KEY = re.compile(r"privateKey=((?:[^:\\]|\\.)+)")


async def check(reactor: Any, settings: Settings, texts: Texts, env_file: Path) -> None:
    """Print what is right. Raises Failed with a line for each thing that is wrong."""
    wrong = [texts("readable", file=file) for file in secret_files(settings, env_file) if readable_by_others(file)]
    if not wrong:
        print(texts("ok.files"))
    if settings.local_users:
        print(texts("ok.local" if has_unix_socket(settings) else "no_unix"))
    try:
        wrong += await _check_database(reactor, settings, texts)
    except Exception as e:
        wrong += explained(e, settings, texts)
    if wrong:
        raise Failed(*wrong)


def secret_files(settings: Settings, env_file: Path) -> Iterator[Path]:
    """The files that only the daemons should read: variables with passwords, the embedded database, keys of TLS."""
    yield env_file
    if settings.embedded:
        yield from sorted(settings.data.glob(f"{DATABASE}*"))
    for endpoint in settings.listen:
        # in the description of an endpoint, a backslash takes the meaning from the next character
        yield from (Path(re.sub(r"\\(.)", r"\1", key)) for key in _KEY.findall(endpoint))


def has_unix_socket(settings: Settings) -> bool:
    """Whether clients may connect to a UNIX socket. ``haproxy:unix:`` is one for a balancer."""
    return any(endpoint.startswith(_UNIX) for endpoint in settings.listen)


def readable_by_others(path: Path) -> bool:
    """Whether users of this machine who are neither the owner nor in the group of the file may read or write it."""
    try:
        return path.is_file() and bool(path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))
    except OSError:
        return False


async def _check_database(reactor: Any, settings: Settings, texts: Texts) -> list[str]:
    """Print what is right with the store, and return what is wrong. Raises what the store raises."""
    where = texts("sqlite", folder=settings.data)
    if settings.postgres is not None:
        where = texts("postgres", host=settings.postgres.host)
    elif not (settings.data / DATABASE).exists():
        return [texts("no_database", folder=settings.data)]
    store = open_store(settings, reactor, migrate=False)
    try:
        await store.start_once()
        print(texts("ok.store", store=where, version=await store.check_writable()))
        print(texts("ok.installation", id=store.installation))
        count = await count_admins(store, settings.admins)
        if not count:
            return [texts("no_admin")]
        print(texts("ok.admins", count=count))
        return []
    finally:
        await store.stop()


async def count_admins(store: IStore, named: Collection[str]) -> int:
    """How many admins are not disabled. Users with the keys ``named`` are admins whatever their role."""
    count, after = 0, ""
    while page := await store.list_users(after, PAGE):
        for user in (row.user for row in page):
            after = normalize_username(user.username)[1]
            count += not user.disabled and (user.role is Role.ADMIN or after in named)
    return count
