"""Where PostgreSQL, RabbitMQ, nginx and libfaketime are, and which user runs PostgreSQL.

TASKD_TEST_SERVICES=FOLDER takes PostgreSQL and RabbitMQ from the Debian system in FOLDER, not from this machine.
They run in a chroot, so this needs root, and /tmp, /proc and /dev must be bound into FOLDER.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PACKAGES = {
    "postgres": "postgresql",
    "rabbitmq": "rabbitmq-server",
    "nginx": "nginx libnginx-mod-stream",
    "faketime": "faketime",
}
SYSTEM = Path(os.environ.get("TASKD_TEST_SERVICES") or "/")
"""The root folder of the Debian system that has PostgreSQL and RabbitMQ. Their paths below are paths inside it."""

CHROOT: list[str | Path] = [] if Path("/") == SYSTEM else ["chroot", SYSTEM]
"""The beginning of a command that runs in SYSTEM."""


def missing() -> list[str]:
    """Those of ``postgres``, ``rabbitmq``, ``nginx`` and ``faketime`` that are not installed.

    Raises RuntimeError when TASKD_TEST_SERVICES names a folder without PostgreSQL or RabbitMQ.
    """
    found = {"postgres": _postgres_folder(), "rabbitmq": _rabbitmq_folder()}
    absent = [name for name, where in found.items() if where is None]
    if CHROOT and absent:
        raise RuntimeError(f"TASKD_TEST_SERVICES: {' and '.join(absent)} not found in {SYSTEM}")
    found = {"nginx": _nginx(), "faketime": _faketime()}
    return absent + [name for name, where in found.items() if where is None]


def how_to_get(names: Sequence[str]) -> str:
    """The one command that installs these services on Debian."""
    return f"apt-get install {' '.join(PACKAGES[name] for name in names)}"


def postgres(program: str) -> Path:
    """A program of PostgreSQL. Raises RuntimeError when it is not installed."""
    return _installed(_postgres_folder()) / program


def rabbitmq(program: str) -> Path:
    """A program of RabbitMQ. Raises RuntimeError when it is not installed."""
    return _installed(_rabbitmq_folder()) / program


def epmd() -> Path:
    """Erlang's port mapper, which comes with RabbitMQ. Raises RuntimeError when it is not installed."""
    return Path("/usr/bin/epmd") if CHROOT else _installed(_on_path("epmd"))


def nginx() -> Path:
    """nginx with its stream module, always this machine's. Raises RuntimeError when it is not installed."""
    return _installed(_nginx())


def faketime() -> Path:
    """The library of libfaketime, always this machine's. Raises RuntimeError when it is not installed."""
    return _installed(_faketime())


def service_user() -> tuple[int, int] | None:
    """User and group id for PostgreSQL, which refuses to run as root; None if this process is not root's."""
    if os.geteuid() != 0:
        return None
    lines = [line.split(":") for line in (SYSTEM / "etc/passwd").read_text().splitlines()]
    users = {name: (int(uid), int(gid)) for name, _, uid, gid, *_ in lines}
    return users.get("postgres") or users["nobody"]


def _postgres_folder() -> Path | None:
    # Debian keeps the programs of the server off the PATH, in one folder for each version
    versions = sorted(SYSTEM.glob("usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if versions:
        return "/" / versions[-1].parent.relative_to(SYSTEM)
    initdb = _on_path("initdb")
    return initdb and initdb.parent


def _rabbitmq_folder() -> Path | None:
    # Debian's command on the PATH switches to the user rabbitmq and to folders of the machine; this one does not
    folder = Path("/usr/lib/rabbitmq/bin")
    if (SYSTEM / folder.relative_to("/") / "rabbitmq-server").exists():
        return folder
    server = _on_path("rabbitmq-server")
    return server and server.parent


def _nginx() -> Path | None:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        return None
    built = subprocess.run([program, "-V"], capture_output=True, text=True).stderr
    has_stream = any(nginx_modules()) or re.search(r"--with-stream(\s|$)", built)
    return Path(program) if has_stream else None


def _faketime() -> Path | None:
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def nginx_modules() -> list[Path]:
    """The modules that nginx has to load for deploy/nginx.conf; none if they are built in."""
    return list(Path("/usr/lib").glob("nginx/modules/ngx_stream_module.so"))


def _on_path(program: str) -> Path | None:
    found = None if CHROOT else shutil.which(program)
    return Path(found) if found else None


def _installed(found: Path | None) -> Path:
    if found is None:
        raise RuntimeError(f"not installed; {how_to_get(missing())}")
    return found
