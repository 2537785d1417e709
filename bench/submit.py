"""One client: it logs in, waits for SIGUSR1, submits tasks, and prints the time of the last confirmation.

It is its own process, uses only the standard library and needs little CPU time, so that the server is measured: it
encodes the requests beforehand and only counts the replies. Run it as ``python submit.py HOST PORT USERNAME PASSWORD
TASKS IN_FLIGHT BATCH``. With a BATCH of 0 it sends one task in a request, otherwise BATCH tasks by ``new_tasks``.
"""

from __future__ import annotations

import json
import resource
import signal
import socket
import sys
import time

SILENCE_SECONDS = 60.0
START_SECONDS = 300.0
SPEC = {"task": "t", "kind": "simulate", "payload": {"seconds": 0}}


def encoded(tasks: int, batch: int) -> list[bytes]:
    """The request lines."""
    if not batch:
        return [_line({"action": "new_task", "id": n, **SPEC}) for n in range(tasks)]
    sizes = [batch] * (tasks // batch) + ([tasks % batch] if tasks % batch else [])
    return [_line({"action": "new_tasks", "id": n, "tasks": [SPEC] * size}) for n, size in enumerate(sizes)]


def submit(connection: socket.socket, lines: list[bytes], in_flight: int) -> float:
    """Send all lines, with ``in_flight`` unanswered at a time. Returns the monotonic time of the last reply.

    Raises SystemExit at an error reply.
    """
    sent = min(in_flight, len(lines))
    connection.sendall(b"".join(lines[:sent]))
    answered, rest = 0, b""
    while answered < len(lines):
        received = connection.recv(262144)
        if not received:
            raise SystemExit(f"the server closed the connection after {answered} of {len(lines)} replies")
        whole, end, rest = (rest + received).rpartition(b"\n")
        if not end:
            continue
        count = whole.count(b"\n") + 1
        if whole.count(b'"status":"task_created"') != count:
            wrong = next(line for line in whole.split(b"\n") if b'"status":"task_created"' not in line)
            raise SystemExit(f"not a confirmation: {wrong.decode(errors='replace')}")
        answered += count
        if sent < len(lines):
            connection.sendall(b"".join(lines[sent : sent + count]))
            sent += count
    return time.monotonic()


def cpu_seconds() -> float:
    """User and system seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Log in, wait for the signal, submit and print the result."""
    host, port, username, password = sys.argv[1:5]
    tasks, in_flight, batch = map(int, sys.argv[5:8])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    connection = socket.create_connection((host, int(port)), SILENCE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(_line({"action": "login", "username": username, "password": password}))
    answer = b""
    while not answer.endswith(b"\n"):
        received = connection.recv(65536)
        if not received:
            raise SystemExit("the server closed the connection at login")
        answer += received
    if json.loads(answer)["status"] != "logged_in":
        raise SystemExit(f"no login: {answer.decode(errors='replace')}")
    lines = encoded(tasks, batch)
    print("ready", flush=True)
    if signal.sigtimedwait({signal.SIGUSR1}, START_SECONDS) is None:
        raise SystemExit("got no signal to start")
    before = cpu_seconds()
    last = submit(connection, lines, in_flight)
    print(json.dumps({"confirmed_at": last, "cpu_seconds": cpu_seconds() - before}), flush=True)


def _line(request: dict[str, object]) -> bytes:
    return json.dumps(request, separators=(",", ":")).encode() + b"\n"


if __name__ == "__main__":
    main()
