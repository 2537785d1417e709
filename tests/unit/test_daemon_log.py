"""The log of the daemons and of the watchdog shows no control character, whoever wrote the text."""

from __future__ import annotations

import io
import os
import re
import warnings
from typing import Any

import pytest
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogBeginner,
    Logger,
    LogPublisher,
    formatEvent,
    textFileLogObserver,
)
from twisted.python.failure import Failure
from twisted.python.log import LogPublisher as LegacyLogPublisher
from twisted.python.log import textFromEventDict
from zope.interface.verify import verifyObject

from taskd.daemon_log import EscapingObserver, escape_log
from taskd.model.visible import visible, visible_lines
from taskd.watchdog.process import say

HOSTILE = "\x1b]0;owned\x07\x9b2J\x7f\u202e\u2066\r\x85\u2028\n2026-01-01T00:00:00+0000 [taskd#info] forged"
SHOWN = r"\x1b]0;owned\x07\x9b2J\x7f\u202e\u2066\r\x85\u2028"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Log:
    """A log that has begun with this observer, as twistd begins it."""

    def __init__(self, observer: Any) -> None:
        self.publisher = LogPublisher()
        stdio = type("Stdio", (), {"stdout": io.StringIO(), "stderr": io.StringIO()})()
        beginner = LogBeginner(self.publisher, io.StringIO(), stdio, warnings)
        self.logger = Logger(namespace="test", observer=self.publisher)
        self.logger.info("before it begins: {text}", text=HOSTILE)
        escape_log(beginner)
        beginner.beginLoggingTo([observer])
        self.stdio: Any = stdio

    def everything(self) -> None:
        """Log the hostile text in each way that there is."""
        self.logger.info("{text}", text=HOSTILE)
        self.logger.info(HOSTILE.replace("{", ""))
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            self.logger.failure("{text} failed", Failure(), text=HOSTILE)
        self.logger.info("{missing} " + HOSTILE)
        self.stdio.stdout.write(HOSTILE + "\n")
        legacy = LegacyLogPublisher(self.publisher, self.publisher)
        legacy.msg(HOSTILE)
        legacy.msg("x", system=HOSTILE)
        legacy.msg(isError=1, failure=Failure(ValueError(HOSTILE)), why=HOSTILE)


def test_a_file() -> None:
    """Each event begins with its time, and each further line of it with a tab."""
    file = io.StringIO()
    observer = textFileLogObserver(file)
    log = Log(observer)
    log.everything()
    written = file.getvalue()
    assert not CONTROL.search(written)
    assert written.count(SHOWN) >= 10
    assert not re.search("^2026-01-01", written, re.MULTILINE)
    assert all(re.match(r"\t|\d{4}-\d\d-\d\dT", line) for line in written.splitlines())
    assert re.search(r"^\t.*ValueError: ", written, re.MULTILINE)
    # twistd removes it by its identity
    log.publisher.removeObserver(observer)
    log.logger.info("afterwards")
    assert file.getvalue() == written


def test_any_other_observer() -> None:
    """Such as twistd's syslog, which is a function of the old kind: the text has the traceback, once."""
    texts: list[str] = []
    errors: list[Any] = []

    def old(event: dict[str, Any]) -> None:
        texts.append(textFromEventDict(event) or "")
        texts.append(str(event["system"]))
        errors.append(event.get("isError"))

    log = Log(LegacyLogObserverWrapper(old))  # type: ignore[arg-type]
    log.everything()
    assert not any(CONTROL.search(text) for text in texts)
    assert sum(SHOWN in text for text in texts) >= 8
    # a printed line is an event of its own, which gets the observer's prefix
    assert not any("\n2026-01-01" in text for text in texts)
    assert sum("Traceback" in text for text in texts) == 2
    assert 1 in errors


def test_an_observer_that_reads_fields_still_finds_them() -> None:
    """An observer of ``--logger`` that writes JSON."""
    seen: list[Any] = []
    observer = EscapingObserver(seen.append)  # type: ignore[arg-type]
    assert verifyObject(ILogObserver, observer)
    Logger(namespace="test", observer=observer).info("{a} and {b}", a=1, b="x")
    assert (seen[0]["a"], seen[0]["log_namespace"], formatEvent(seen[0])) == (1, "test", "1 and x")


def test_plain_text_stays_as_it_is() -> None:
    """Also that of other languages."""
    file = io.StringIO()
    observer = FileLogObserver(file, formatEvent)
    log = Log(observer)
    file.truncate(0)
    log.logger.info("{text}", text="ñandú\t日本 \\x1b {}")
    assert file.getvalue().endswith("ñandú\t日本 \\x1b {}")


def test_the_watchdog(capfd: pytest.CaptureFixture[str]) -> None:
    """It writes to standard error itself."""
    say("warn", HOSTILE)
    os.write(2, b"")
    written = capfd.readouterr().err
    first, second = written.splitlines()
    assert first.endswith(f"[taskd.watchdog#warn] {SHOWN}") and second.startswith("\t2026-01-01")
    assert not CONTROL.search(written)


def test_visible_text() -> None:
    """Of one line, and of several."""
    assert visible("a\tb\nc\x1b\u200d\ud800") == "a\\tb\\nc\\x1b\u200d\\ud800"
    assert visible_lines("a\tb\nc\x1b\u200d\ud800") == "a\tb\nc\\x1b\u200d\\ud800"
