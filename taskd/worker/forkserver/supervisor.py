"""The supervisor of one program: a process that adopts what the program leaves behind, and reports how it ended."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time

from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.messages import Died, Exited, JobEnded, Program, encode


def supervise(channel: socket.socket, output: int, job: int, program: Program) -> None:
    """Run the program and report its end. Then wait until nothing of it is left, or until the fork server kills the
    rest.

    The program stays in the session and process group of its supervisor: the group has both.
    """
    begun = time.monotonic()
    why, trouble = os.pipe()
    # TERM stays blocked here: it is for the program. One that came before the program started is passed on below.
    me = os.getpid()
    pid = os.fork()
    if not pid:
        try:
            _become(me, program, trouble)
        finally:
            os._exit(127)
    os.close(trouble)
    # only the program's own tree keeps the output open
    for fd in (1, 2, output):
        os.close(fd)
    with open(why, "rb") as pipe:
        not_started = pipe.read().decode(errors="replace")
    if signal.SIGTERM in signal.sigpending():
        process_tree.send(pid, signal.SIGTERM)
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        if ended == pid:
            code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - begun
            end = Exited(code, None, seconds) if code >= 0 else Exited(None, -code, seconds)
            channel.sendall(encode(JobEnded(job, Died(not_started) if not_started else end)))


def _become(supervisor: int, program: Program, trouble: int) -> None:
    """Turn this process into the program, or write into ``trouble`` why that is impossible."""
    what = repr(program.argv[0])
    try:
        process_tree.die_with_parent(supervisor, signal.SIGKILL)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if program.memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (program.memory, program.memory))
        _close_all_but(trouble)
        what += f" in the folder {program.cwd!r}"
        os.chdir(program.cwd)
        what = repr(program.argv[0])
        os.execve(program.argv[0], list(program.argv), program.env)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        os.write(trouble, f"cannot start {what}: {reason}".encode(errors="replace")[:2000])


def _close_all_but(keep: int) -> None:
    """Close all files but the standard streams and ``keep``, which exec closes."""
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with contextlib.suppress(OSError):
        highest = max(map(int, os.listdir("/proc/self/fd"))) + 1
    os.closerange(3, keep)
    os.closerange(keep + 1, highest)
