"""Fixtures for the services, and a summary of the tests that were skipped because a service is missing."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import programs, services


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in its own folder, because trial's ``mktemp`` writes to the current folder."""
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
    """The name of an empty database, which is dropped after the test."""
    name = postgres.create_database()
    yield name
    postgres.drop_database(name)


# the outermost wrapper writes last, below the list of skipped tests
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Print in the last lines which services were missing, and how to install them."""
    yield
    if services.skipped:
        names = sorted(services.skipped)
        terminalreporter.write_line("")
        terminalreporter.write_line(
            f"The tests that need {', '.join(names)} were skipped, because these are not installed. To run them:",
            yellow=True,
        )
        terminalreporter.write_line(f"    {programs.how_to_get(names)}", yellow=True)
