"""Child processes that never outlive this process, and free ports for them."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Linux sends a child its parent death signal when the thread that started it ends. So one thread starts all children,
# and it lives as long as this process.
_starter = ThreadPoolExecutor(1, thread_name_prefix="start-processes")
_running: set[Process] = set()


class Process:
    """A child process whose output goes to a file.

    The child gets ``death_signal`` when this process ends: on Linux even after ``kill -9``. ``user`` is
    its user and group id. ``prefix`` is a command that runs all this, such as ``chroot FOLDER``.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        prefix: Sequence[str | Path] = (),
        user: tuple[int, int] | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.log = log
        self._death_signal = death_signal
        with log.open("ab") as output:
            self._popen = _starter.submit(
                subprocess.Popen,
                [*prefix, *_privileges(user, death_signal), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                # Ctrl-C in a terminal must reach the test run only, which then ends its children in order
                start_new_session=True,
            ).result()
        _running.add(self)

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status; None while it runs, a negative signal number if a signal ended it."""
        status = self._popen.poll()
        if status is not None:
            _running.discard(self)
        return status

    def output(self) -> str:
        """Everything that it has printed so far."""
        return self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.returncode is None:
            self._popen.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Wait for its exit status. Raises AssertionError with its output after ``timeout`` seconds."""
        try:
            status = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.output()[-4000:]}") from None
        _running.discard(self)
        return status

    def stop(self, number: signal.Signals, timeout: float) -> int:
        """Send a signal and wait for the exit status. After ``timeout`` seconds, kill it and raise AssertionError."""
        self.send(number)
        try:
            return self.wait(timeout)
        except AssertionError:
            self.send(signal.SIGKILL)
            self.wait(10)
            raise

    def dispose(self) -> None:
        """End it with its death signal."""
        with contextlib.suppress(AssertionError):
            self.stop(self._death_signal, 10)


def _privileges(user: tuple[int, int] | None, death_signal: signal.Signals) -> list[str]:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        if user is not None:
            raise RuntimeError("setpriv (Debian: util-linux) is needed to run a service as another user")
        return []
    options = [setpriv, "--pdeathsig", death_signal.name.removeprefix("SIG")]
    if user is not None:
        options += [f"--reuid={user[0]}", f"--regid={user[1]}", "--clear-groups"]
    return options


@atexit.register
def dispose_all() -> None:
    """End all processes that still run."""
    for process in list(_running):
        process.dispose()


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nothing listens.

    It lies below the port range of outgoing connections. Otherwise such a connection could take the port before the
    server does, and a client of a server that is down could connect to itself.
    """
    try:
        end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        end = 32768
    while True:
        port = random.randrange(10000, max(end, 11000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def eventually(predicate: Callable[[], object], timeout: float = 10.0, what: str = "") -> None:
    """Wait until ``predicate()`` is true. Raises AssertionError with ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or predicate}")
        time.sleep(0.02)


def pids_with(variable: str) -> set[int]:
    """The processes that were started with this variable, ``NAME=VALUE``, and their forks. Zombies do not count.
    Only root sees those of taskd that hide their environment (taskd/hardening.py)."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of this process without the variables that configure taskd or a service, plus ``extra``."""
    configuring = ("TASKD_", "POSTGRES_", "RABBITMQ_", "PG")
    return {k: v for k, v in os.environ.items() if not k.startswith(configuring)} | extra
