"""What a process hides. Each test is a process of its own: what it does cannot be undone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl and /proc are Linux's")

BEGIN = """
import os, posix, subprocess, sys
from pathlib import Path
from taskd.hardening import erase_variables, forbid_inspection, forbid_new_privileges
status = lambda: Path("/proc/self/status").read_text()
"""


def run(code: str, **env: str) -> str:
    """What this code prints, with these variables more."""
    command = [sys.executable, "-c", BEGIN + code]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True).stdout


def test_erased_variables_are_nowhere() -> None:
    """Neither where the kernel put them, nor where Python and the C library copied them, nor in a new process."""
    code = """
os.environ["LATER"] = "later-word"
erase_variables(["FIRST", "LATER", "EMPTY", "ABSENT"])
block = Path("/proc/self/environ").read_bytes()
child = subprocess.run(["env"], capture_output=True).stdout
print([word in text for text in (block, child) for word in (b"first-word", b"later-word")])
print([name in os.environ or name.encode() in posix.environ for name in ("FIRST", "LATER", "EMPTY", "ABSENT")])
print(b"OTHER=first" in block, os.environ["OTHER"], b"OTHER=first" in child, b"FIRST_2=stays" in child)
"""
    printed = run(code, FIRST="first-word", EMPTY="", OTHER="first", FIRST_2="stays")
    assert printed.splitlines() == [str([False] * 4), str([False] * 4), "True first True True"]


def test_a_variable_that_is_in_the_block_twice() -> None:
    """execve passes on whatever list it gets, and Python knows the first only."""
    code = (
        BEGIN
        + """
erase_variables(["TWICE"])
print(b"word" in Path("/proc/self/environ").read_bytes())
"""
    )
    execve = f"""
import ctypes
argv = (ctypes.c_char_p * 4)({sys.executable.encode()!r}, b"-c", {code.encode()!r}, None)
envp = (ctypes.c_char_p * 4)(b"TWICE=word-1", b"TWICE=word-2", {f"PYTHONPATH={os.pathsep.join(sys.path)}".encode()!r})
ctypes.CDLL(None).execve({sys.executable.encode()!r}, argv, envp)
"""
    assert subprocess.run([sys.executable, "-c", execve], capture_output=True, check=True).stdout == b"False\n"


def test_a_hidden_process_belongs_to_root_in_proc_and_forks_are_hidden_too() -> None:
    code = """
import ctypes
forbid_inspection()
dumpable = lambda: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
print(dumpable(), flush=True)
if not os.fork():
    print(dumpable(), flush=True)
    os._exit(0)
os.wait()
"""
    assert run(code).split() == ["0", "0"]


def test_no_new_privileges_are_inherited() -> None:
    code = """
forbid_new_privileges()
print(subprocess.run(["grep", "NoNewPrivs", "/proc/self/status"], capture_output=True, text=True).stdout)
"""
    assert run(code).split() == ["NoNewPrivs:", "1"]
