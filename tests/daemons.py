"""Real daemons, and a blocking client of the line protocol, for tests that are plain functions."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.processes import Process, clean_environment, eventually, free_port

__all__ = ["TWISTD", "Daemon", "LineClient", "eventually", "free_port", "talk"]

TWISTD = ("twistd", "-n", "--pidfile=")
"""The command of a daemon here, in ``make run``, in the containers and under systemd. It writes no pid file: a
container that restarts would find its own process id in the old file, and refuse to start."""

_numbers = itertools.count(1)


class Daemon(Process):
    """A daemon of taskd as a process. As a context manager it is killed at the end of the block."""

    @classmethod
    def twistd(
        cls, command: str, arguments: Sequence[str] = (), env: Mapping[str, str] | None = None, *, cwd: Path
    ) -> Daemon:
        """Start ``twistd COMMAND ARGUMENTS`` in the folder ``cwd``. ``env`` has all variables of taskd."""
        # the script beside the interpreter belongs to the same virtual environment
        script = Path(sys.executable).with_name(TWISTD[0])
        return cls.run([str(script), *TWISTD[1:], command, *arguments], env, cwd=cwd)

    @classmethod
    def run(cls, command: Sequence[str], env: Mapping[str, str] | None = None, *, cwd: Path) -> Daemon:
        """Start any command in the folder ``cwd``. Its output goes to a file there."""
        log = cwd / f"output-{next(_numbers)}.log"
        return cls(command, log, env=clean_environment(PYTHONUNBUFFERED="1", **(env or {})), cwd=cwd)

    def wait_for(self, text: str, timeout: float = 20.0) -> None:
        """Wait until the daemon has printed ``text``. Raises AssertionError with its output if that takes too long."""
        deadline = time.monotonic() + timeout
        while text not in self.output():
            ended = self.returncode is not None
            if (ended and text not in self.output()) or time.monotonic() > deadline:
                why = f"ended with {self.returncode}" if ended else f"not within {timeout} s"
                raise AssertionError(f"no {text!r}, {why}:\n{self.output()[-4000:]}")
            time.sleep(0.02)

    def terminate(self, timeout: float = 30.0) -> int:
        """Send SIGTERM and wait until the daemon has drained. Returns its exit status."""
        return self.stop(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """``kill -9``."""
        self.stop(signal.SIGKILL, 10)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dispose()


class LineClient:
    """A blocking connection to a task server. ``events`` has the events that arrived while it waited for replies."""

    def __init__(self, port: int, host: str = "127.0.0.1", timeout: float = 20.0) -> None:
        self._timeout = timeout
        self._socket = socket.create_connection((host, port), timeout)
        self._buffer = bytearray()
        self._ids = itertools.count(1)
        self.events: deque[dict[str, Any]] = deque()

    def request(self, action: str, **fields: Any) -> dict[str, Any]:
        """Send one request with a new id, and return the reply to it."""
        number = next(self._ids)
        self.send_line(json.dumps({"action": action, "id": number, **fields}).encode())
        while True:
            message = self._read()
            if message.get("id") == number:
                return message
            if "event" not in message:
                raise AssertionError(f"a reply to another request than {number}: {message}")
            self.events.append(message)

    def event(self, timeout: float | None = None) -> dict[str, Any]:
        """The next event, in the order of arrival. Raises TimeoutError."""
        if self.events:
            return self.events.popleft()
        message = self._read(timeout)
        if "event" not in message:
            raise AssertionError(f"not an event: {message}")
        return message

    def send_line(self, line: bytes) -> None:
        """Send bytes and a line feed."""
        self._socket.sendall(line + b"\n")

    def read_line(self, timeout: float | None = None) -> bytes:
        """The next line without its line feed; empty if the server has closed the connection. Raises TimeoutError."""
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no line in time, only {bytes(self._buffer)!r}")
            self._socket.settimeout(left)
            if not (received := self._socket.recv(65536)):
                return b""
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return bytes(line)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _read(self, timeout: float | None = None) -> dict[str, Any]:
        line = self.read_line(timeout)
        if not line:
            raise ConnectionError("the server has closed the connection")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def __enter__(self) -> LineClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def talk(port: int, lines: Sequence[str]) -> list[dict[str, Any]]:
    """Do what ``printf '...' | nc`` does: send all lines, close that direction, and return all replies."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall("".join(f"{line}\n" for line in lines).encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as replies:
            return [json.loads(line) for line in replies]
