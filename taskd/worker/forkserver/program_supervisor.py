"""The supervisor of one program: a process that adopts what the program leaves behind, and reports how it ended."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import time

from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.messages import Died, Exited, JobEnded, Program, encode


def supervise(channel: socket.socket, output: int, job: int, program: Program) -> None:
    """Run the program and report its end. Then wait until nothing of it is left, or until the fork server kills the
    rest.

    The program stays in the session and process group of its supervisor: the group has both.
    """
    begun = time.monotonic()
    # TERM stays blocked here: it is for the program. One that came before the program started is passed on below.
    try:
        started = _start(program)
    except (OSError, ValueError, subprocess.SubprocessError) as e:
        channel.sendall(encode(JobEnded(job, Died(_why(program, e)))))
        return
    # only the program's own tree keeps the output open
    for fd in (1, 2, output):
        os.close(fd)
    if signal.SIGTERM in signal.sigpending():
        process_tree.send(started.pid, signal.SIGTERM)
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        if ended == started.pid:
            code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - begun
            end = Exited(code, None, seconds) if code >= 0 else Exited(None, -code, seconds)
            channel.sendall(encode(JobEnded(job, end)))


def _start(program: Program) -> subprocess.Popen[bytes]:
    supervisor = os.getpid()

    def prepare() -> None:
        process_tree.die_with_parent(supervisor, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if program.memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (program.memory, program.memory))

    return subprocess.Popen(program.argv, cwd=program.cwd, env=program.env, preexec_fn=prepare)


def _why(program: Program, error: Exception) -> str:
    """Why it cannot start."""
    what, reason = repr(program.argv[0]), str(error)
    if isinstance(error, OSError):
        reason = error.strerror or reason
        if error.filename == program.cwd:
            what += f" in the folder {program.cwd!r}"
    elif isinstance(error, subprocess.SubprocessError):
        # raised for all errors of prepare()
        reason = f"its memory cannot be limited to {program.memory} bytes"
    return f"cannot start {what}: {reason}"
