"""What faulthandler writes, as the watchdog reads it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import twisted.internet.defer

import taskd.worker
from taskd.watchdog.dumps import Dump, Frame, Stack, crash_reason, parse, place

# A thread sleeps, and the main thread crashes: dumps of real processes with shorter paths. That of 3.14 is put together
# from its description.
CRASHES = {
    "3.10": """\
Fatal Python error: Segmentation fault

Thread 0x00007fdb99a3d6c0 (most recent call first):
  File "/srv/lab.py", line 5 in work
  File "/usr/lib/python3.10/threading.py", line 953 in run
  File "/usr/lib/python3.10/threading.py", line 1016 in _bootstrap_inner
  File "/usr/lib/python3.10/threading.py", line 973 in _bootstrap

Current thread 0x00007fdb9a44ab80 (most recent call first):
  File "/srv/lab.py", line 12 in <module>
""",
    "3.11": """\
Fatal Python error: Segmentation fault

Thread 0x00007fc0d27356c0 (most recent call first):
  File "/srv/lab.py", line 5 in work
  File "/usr/lib/python3.11/threading.py", line 982 in run
  File "/usr/lib/python3.11/threading.py", line 1045 in _bootstrap_inner
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007fc0d3498b80 (most recent call first):
  File "/srv/lab.py", line 12 in <module>
""",
    "3.12": """\
Fatal Python error: Segmentation fault

Thread 0x00007f7f64cf86c0 (most recent call first):
  File "/srv/lab.py", line 5 in work
  File "/usr/lib/python3.12/threading.py", line 1010 in run
  File "/usr/lib/python3.12/threading.py", line 1073 in _bootstrap_inner
  File "/usr/lib/python3.12/threading.py", line 1030 in _bootstrap

Current thread 0x00007f7f6592db80 (most recent call first):
  File "/srv/lab.py", line 12 in <module>
""",
    "3.13": """\
Fatal Python error: Segmentation fault

Thread 0x00007fe7f1ad86c0 (most recent call first):
  File "/srv/lab.py", line 5 in work
  File "/usr/lib/python3.13/threading.py", line 992 in run
  File "/usr/lib/python3.13/threading.py", line 1041 in _bootstrap_inner
  File "/usr/lib/python3.13/threading.py", line 1012 in _bootstrap

Current thread 0x00007fe7f265ac40 (most recent call first):
  File "/srv/lab.py", line 12 in <module>
""",
    "3.14": """\
Fatal Python error: Segmentation fault

Thread 0x00007fe7f1ad86c0 [worker [1] ñ] (most recent call first):
  File "/srv/lab.py", line 5 in work
  File "/usr/lib/python3.14/threading.py", line 1024 in run
  File "/usr/lib/python3.14/threading.py", line 1081 in _bootstrap_inner
  File "/usr/lib/python3.14/threading.py", line 1044 in _bootstrap

Current thread 0x00007fe7f265ac40 [python] (most recent call first):
  File "/srv/lab.py", line 12 in <module>

Current thread's C stack trace (most recent call first):
  Binary file "/usr/bin/python3.14", at _Py_DumpStack+0x3f [0x5b6e7f]
  Binary file "/lib/x86_64-linux-gnu/libc.so.6", at +0x3c050 [0x7f1e2c63c050]
  <truncated rest of calls>

Extension modules: lab._fast, numpy.core (total: 2)
""",
}
WORK = Frame("/srv/lab.py", 5, "work")
STACK = """\
Stack (most recent call first):
  Garbage-collecting
  File "/srv/lab.py", line 5 in work
  File "/srv/lab.py", line 7 in <lambda>
"""


@pytest.mark.parametrize("version", CRASHES)
def test_a_crash(version: str) -> None:
    dump = parse(CRASHES[version])
    assert dump.fatal == "Segmentation fault"
    first, second = dump.stacks
    assert not first.current
    assert [frame.function for frame in first.frames] == ["work", "run", "_bootstrap_inner", "_bootstrap"]
    assert first.frames[0] == WORK
    assert dump.current == second
    assert second.frames == [("/srv/lab.py", 12, "<module>")]
    assert (second.thread is not None and second.thread >> 32 == 0x7FE7) or version != "3.14"


def test_the_stack_of_one_thread() -> None:
    assert parse(STACK) == Dump(None, [Stack(None, True, [WORK, Frame("/srv/lab.py", 7, "<lambda>")])])


def test_what_this_python_writes() -> None:
    code = "import faulthandler\ndef crash():\n    faulthandler._sigsegv()\nfaulthandler.enable()\ncrash()"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    dump = parse(done.stderr)
    assert dump.fatal == "Segmentation fault"
    assert dump.current is not None
    assert dump.current.frames == [("<string>", 3, "crash"), ("<string>", 5, "<module>")]


def test_names_that_cannot_be_read() -> None:
    text = (
        'Thread 0x1 (most recent call first):\n  File ???, line ??? in ???\n  File "a "b", line 1 in \\xf1\n'
        '  <no Python frame>\n  File "/c.py", line ??? in <genexpr>\n  ...\n...\n'
    )
    [stack] = parse(text).stacks
    assert stack.frames == [("???", 0, "???"), ('a "b', 1, "\\xf1"), ("/c.py", 0, "<genexpr>")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0\0\0",
        "Fatal Python error: ",
        "Thread 0x (most recent call first):\n",
        '  File "/a.py", line 1 in f\n',
        "Current thread 0xzz (most recent call first):\n  File",
        "Fatal Python error\nThread",
    ],
)
def test_broken_text(text: str) -> None:
    assert parse(text) == Dump(None, [])


def test_text_that_was_cut_or_damaged() -> None:
    """Nothing that a dying process writes makes the watchdog fail."""
    dice = random.Random(1)
    whole = CRASHES["3.14"]
    for end in range(len(whole)):
        parse(whole[:end])
    for _ in range(500):
        raw = bytearray(whole.encode())
        for _ in range(20):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        parse(raw.decode(errors="replace"))


def test_the_place_for_people() -> None:
    standard = Frame(os.path.join(os.path.dirname(os.__file__), "threading.py"), 1, "wait")
    frozen = Frame("<frozen importlib._bootstrap>", 1, "f")
    twisted = Frame(twisted_file, 1, "_inlineCallbacks")
    installed = Frame("/opt/venv/lib/python3.11/site-packages/lab/fast.py", 1, "crunch")
    ours = Frame(str(Path(taskd.worker.__file__).parent / "attempt.py"), 1, "begin")
    assert place([standard, frozen, installed, WORK, ours, twisted]) == WORK
    assert place([standard, installed, ours, twisted, standard]) == installed
    assert place([standard, ours]) == standard
    assert place([]) is None


twisted_file = twisted.internet.defer.__file__


def test_texts() -> None:
    assert str(WORK) == "/srv/lab.py:5 in work()"
    assert str(Frame("/srv/lab.py", 0, "<lambda>")) == "/srv/lab.py:? in <lambda>"
    assert crash_reason("Segmentation fault") == "crashed with a segmentation fault"
    assert crash_reason("Stack overflow") == "crashed with Stack overflow"
