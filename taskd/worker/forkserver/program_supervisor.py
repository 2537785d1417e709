"""The supervisor of one program: a process that adopts what the program leaves behind, and reports how it ended."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import time

from taskd.model.errors import quote
from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.messages import Died, Exited, JobEnded, Path, Program, encode
from taskd.worker.handler_results import Fault


def supervise(channel: socket.socket, output: int, job: int, program: Program) -> None:
    """Run the program and report its end. Then wait until nothing of it is left, or until the fork server kills the
    rest.

    The program stays in the session and process group of its supervisor: the group has both.
    """
    begun = time.monotonic()
    # TERM stays blocked here: it is for the program. One that came before the program started is passed on below.
    try:
        argv = [_resolved(each, program.root) if isinstance(each, Path) else each for each in program.argv]
        started = _start(program, argv)
    except PathRefused as e:
        channel.sendall(encode(JobEnded(job, Fault(str(e), final=True))))
        return
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


class PathRefused(Exception):
    """A path of the payload is not below the root."""


def _resolved(path: Path, root: str | None) -> str:
    """The argument, with the real path of a file that exists or of one that the program may make: without links and
    ``..``. Raises PathRefused if that is not below the root."""
    assert root is not None
    folder = os.path.realpath(root)
    found = os.path.realpath(os.path.join(folder, path.value))
    if not found.startswith(os.path.join(folder, "")):
        raise PathRefused(f"{path.field} must be a path below {folder}, not {quote(path.value)}")
    return path.before + found


def _start(program: Program, argv: list[str]) -> subprocess.Popen[bytes]:
    supervisor = os.getpid()

    def prepare() -> None:
        process_tree.die_with_parent(supervisor, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if program.memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (program.memory, program.memory))
        if program.max_file is not None:
            # the worker's own limit may be lower
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            most = program.max_file if hard == resource.RLIM_INFINITY else min(program.max_file, hard)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    return subprocess.Popen(argv, cwd=program.cwd, env=program.env, preexec_fn=prepare)


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
