"""The supervisor of one program: a process that adopts whatever the program leaves behind, and says how it ended."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time

from taskd.worker.forkserver import process_tree
from taskd.worker.forkserver.child import default_signals, wire_standard_streams
from taskd.worker.forkserver.messages import Died, Exited, Program, encode


def supervise(forkserver: int, channel: socket.socket, output: int, job: int, program: Program) -> None:
    """Run the program and report its end; then stay until nothing of it is left, or until the fork server kills the
    rest.

    The program stays in this session and process group, so that the group holds both.
    """
    os.setsid()
    process_tree.become_subreaper()
    process_tree.die_with_parent(forkserver, signal.SIGKILL)
    process_tree.yield_to_the_worker()
    wire_standard_streams(output)
    begun = time.monotonic()
    why, trouble = os.pipe()
    # TERM stays blocked: it is for the program. One that came before there was a program is passed on.
    default_signals()
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
        words = pipe.read().decode(errors="replace")
    if signal.SIGTERM in signal.sigpending():
        process_tree.send(pid, signal.SIGTERM)
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        if ended == pid:
            seconds = time.monotonic() - begun
            if words:
                channel.sendall(encode(Died(job, words)))
            elif os.WIFSIGNALED(status):
                channel.sendall(encode(Exited(job, None, os.WTERMSIG(status), seconds)))
            else:
                channel.sendall(encode(Exited(job, os.waitstatus_to_exitcode(status), None, seconds)))


def _become(supervisor: int, program: Program, trouble: int) -> None:
    """Turn this process into the program, or write why that cannot be."""
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
    """Leave the standard streams open, and one that closes itself on exec."""
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with contextlib.suppress(OSError):
        highest = max(map(int, os.listdir("/proc/self/fd"))) + 1
    os.closerange(3, keep)
    os.closerange(keep + 1, highest)
