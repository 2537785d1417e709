"""Health check of a daemon: exit status 0 if it is healthy, otherwise 1 and one line. Standard library only.

``healthcheck.py server [HOST:PORT]`` sends a ping over the line protocol.

``healthcheck.py worker`` looks for an open connection to RABBITMQ_PORT; it needs Linux. In a container only the worker
has such a connection, and a worker without one runs no tasks.
"""

import json
import os
import socket
import sys
from pathlib import Path

ESTABLISHED = "01"


def check_server(address: str = "127.0.0.1:5000") -> None:
    """Raises OSError or ValueError unless the server answers a ping."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=4) as connection:
        connection.sendall(b'{"action":"ping"}\n')
        with connection.makefile("rb") as replies:
            reply = json.loads(replies.readline())
    if reply.get("ok") is not True:
        raise ValueError(f"the server answered {reply}")


def check_worker(proc: Path = Path("/proc/net")) -> None:
    """Raises OSError unless this network namespace has an open connection to RABBITMQ_PORT."""
    port = int(os.environ.get("RABBITMQ_PORT") or 5672)
    for table in ("tcp", "tcp6"):
        lines = (proc / table).read_text().splitlines()[1:] if (proc / table).exists() else []
        for line in lines:
            _, _, remote, state, *_ = line.split()
            if state == ESTABLISHED and int(remote.rpartition(":")[2], 16) == port:
                return
    raise OSError(f"no open connection to RabbitMQ's port {port}")


def main() -> str | None:
    """The reason why the daemon is not healthy, or None."""
    what, *address = sys.argv[1:3] or [""]
    try:
        if what == "server":
            check_server(*address)
        elif what == "worker":
            check_worker()
        else:
            return __doc__
    except (OSError, ValueError) as e:
        return f"{what}: {e}"
    return None


if __name__ == "__main__":
    sys.exit(main())
