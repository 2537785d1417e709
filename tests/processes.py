"""Child processes that never outlive the one that started them, and the ports they listen on."""

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

# Linux sends a child its "parent death signal" when the *thread* that started it ends, so all are started by
# one thread that lives as long as this process.
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
                # Ctrl-C in a terminal is for the test run, which ends its children in its own order.
                start_new_session=True,
            ).result()
        _running.add(self)

    @property
    def pid(self) -> int:
        """The process id; also its process group's."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal that ended it."""
        status = self._popen.poll()
        if status is not None:
            _running.discard(self)
        return status

    def output(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended already."""
        if self.returncode is None:
            self._popen.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Its exit status. Raises AssertionError with its output when ``timeout`` seconds are not enough."""
        try:
            status = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.output()[-4000:]}") from None
        _running.discard(self)
        return status

    def stop(self, number: signal.Signals, timeout: float) -> int:
        """Send a signal and wait; whatever does not end in time is killed and reported as AssertionError."""
        self.send(number)
        try:
            return self.wait(timeout)
        except AssertionError:
            self.send(signal.SIGKILL)
            self.wait(10)
            raise

    def dispose(self) -> None:
        """End it without ceremony."""
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
    """End every process that still runs."""
    for process in list(_running):
        process.dispose()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on.

    It lies below the range of outgoing connections: otherwise one of them could take it before the server
    does, and a client that dials a server that is down could be connected to itself.
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
    """Wait until ``predicate()`` is true. Raises AssertionError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or predicate}")
        time.sleep(0.02)


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without the variables that would configure taskd or a service."""
    ours = ("TASKD_", "POSTGRES_", "RABBITMQ_", "PG")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | extra
