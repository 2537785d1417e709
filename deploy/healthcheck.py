"""Health check of a daemon: exit status 0 if it is healthy, otherwise 1 and one line. Standard library only.

``healthcheck.py server [HOST:PORT]`` sends the action ``health`` over the line protocol, from the server's own machine.

``healthcheck.py worker [PATH]`` asks on the worker's UNIX socket, the one of --health or TASKD_HEALTH.

A daemon that has not answered after 4 seconds is not healthy: it is frozen, or something blocks its reactor.
"""

import json
import os
import socket
import sys
import time

SECONDS = 4.0


def check_server(address: str = "127.0.0.1:5000") -> None:
    """Raises OSError or ValueError unless the server is healthy."""
    until = time.monotonic() + SECONDS
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS) as connection:
        connection.sendall(b'{"action":"health"}\n')
        check_answer(read_line(connection, until))


def check_worker(path: str = "") -> None:
    """Raises OSError or ValueError unless the worker is healthy."""
    until = time.monotonic() + SECONDS
    path = path or os.environ.get("TASKD_HEALTH", "")
    if not path:
        raise ValueError("name the socket of the worker, as --health or TASKD_HEALTH does")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        check_answer(read_line(connection, until))


def read_line(connection: socket.socket, until: float) -> bytes:
    """The first line that arrives. Raises OSError if there is none by then."""
    received = b""
    while b"\n" not in received:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no answer within {SECONDS:g} s")
        connection.settimeout(left)
        try:
            data = connection.recv(65536)
        except TimeoutError:
            continue
        if not data:
            raise OSError("the connection was closed without an answer")
        received += data
    return received.partition(b"\n")[0]


def check_answer(line: bytes) -> None:
    """Raises ValueError unless the daemon says that it is healthy."""
    answer = json.loads(line)
    if not isinstance(answer, dict) or answer.get("healthy") is not True:
        reasons = answer.get("reasons") if isinstance(answer, dict) else None
        raise ValueError("; ".join(map(str, reasons)) if reasons else f"it answered {answer}")


def main() -> str | None:
    """The reason why the daemon is not healthy, or None."""
    what, *address = sys.argv[1:3] or [""]
    try:
        if what == "server":
            check_server(*address)
        elif what == "worker":
            check_worker(*address)
        else:
            return __doc__
    except (OSError, ValueError) as e:
        return " ".join(f"{what}: {e}".split())
    return None


if __name__ == "__main__":
    sys.exit(main())
