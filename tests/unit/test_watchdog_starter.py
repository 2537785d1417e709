"""How a watchdog is started. Each test is a process of its own, because a watchdog takes over its crash reports."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfd and /proc are Linux's")

BEGIN = """
import errno, os, socket
from pathlib import Path
from twisted.internet.task import Clock
from taskd.watchdog.board import Board
from taskd.watchdog.starter import Watchdog
clock = Clock()
board = Board(2)
watchdog = Watchdog(clock, board, None, stall=5, lease=30)
files = lambda: len(os.listdir("/proc/self/fd"))
"""
END = """
board.stopping()
watchdog.stop()
"""


def run(code: str) -> list[str]:
    """The lines that this code prints."""
    command = [sys.executable, "-c", BEGIN + code + END]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def test_without_site_packages_of_the_user() -> None:
    """A task could put a module there, and the watchdog has the password of the database."""
    [words] = run("""
watchdog.start()
while not (words := Path(f"/proc/{watchdog.pid}/cmdline").read_text()):
    pass  # Popen returns shortly before the kernel has the command
print(words.split(chr(0))[1:3])
""")
    assert words == "['-s', '-c']"


def test_without_a_free_file_it_is_tried_again_later() -> None:
    printed = run("""
socketpair, tries = socket.socketpair, []
def full():
    tries.append(clock.seconds())
    raise OSError(errno.EMFILE, "Too many open files")
socket.socketpair = full
watchdog.start()
clock.pump([0.2] * 4)
print(watchdog.pid, tries)
socket.socketpair = socketpair
before = files()
clock.advance(1)
print(watchdog.pid is not None, files() - before)
""")
    assert printed == ["None [0.0]", "True 0"]
