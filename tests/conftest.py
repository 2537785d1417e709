"""Fixtures of the services, and the last lines of a run, which say what was skipped for want of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import programs, services


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own: trial's ``mktemp`` makes its files in the current one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def postgres() -> services.Postgres:
    """The PostgreSQL of this run."""
    services.require("postgres")
    return services.postgres()


@pytest.fixture
def rabbitmq() -> services.RabbitMQ:
    """The RabbitMQ of this run."""
    services.require("rabbitmq")
    return services.rabbitmq()


@pytest.fixture
def database(postgres: services.Postgres) -> Iterator[str]:
    """The name of an empty database that is dropped again."""
    name = postgres.create_database()
    yield name
    postgres.drop_database(name)


# The outermost wrapper writes last, below the list of skipped tests.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Say in the last lines which services were missing, and how to get them."""
    yield
    if services.skipped:
        names = sorted(services.skipped)
        terminalreporter.write_line("")
        terminalreporter.write_line(
            f"The tests that need {', '.join(names)} were skipped: not installed. To run them:", yellow=True
        )
        terminalreporter.write_line(f"    {programs.how_to_get(names)}", yellow=True)
