"""Whatever a client sends, it gets its answers, and nobody else notices."""

from __future__ import annotations

import pytest
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from zope.interface import implementer

from tests.badinput.corpus import CASES, Case
from tests.unit.stage import Stage

TABLES = ("users", "sessions", "tasks", "invitations", "devices", "audit", "task_attempts", "task_log")


@implementer(ILogObserver)
class Errors:
    """The errors in the log."""

    def __init__(self) -> None:
        self.found: list[object] = []

    def __call__(self, event: dict[str, object]) -> None:
        if event["log_level"] in (LogLevel.error, LogLevel.critical):
            self.found.append(event)


def rows(stage: Stage) -> dict[str, object]:
    """All rows of the tables that requests change."""
    return {table: stage.sql(f"SELECT * FROM {table}") for table in TABLES}


def test_there_are_enough() -> None:
    assert len(CASES) >= 100
    assert len({case.name + str(case.known) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}{', later' if case.known else ''}")
def test_bad_input(case: Case) -> None:
    stage, errors = Stage(), Errors()
    globalLogPublisher.addObserver(errors)
    try:
        ana, other = stage.client("ana"), stage.client("eva")
        client = ana if case.known else stage.connect()
        before = rows(stage)
        for piece in case.pieces:
            if client.closed:
                break
            client.connection.dataReceived(piece)
        stage.run_pending()
        found = ["ok" if line["ok"] else line["code"] for line in client.lines()]
        assert (found, client.closed) == (case.replies, case.closed)
        assert other.ask("whoami")["ok"]
        after = rows(stage)
        if case.name == "logout twice":
            del before["sessions"], after["sessions"]
        assert after == before
        assert errors.found == []
    finally:
        globalLogPublisher.removeObserver(errors)
        stage.close()
