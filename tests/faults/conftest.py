"""Services for the scenarios, which break them: none of the rest of the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import services
from tests.faults.stage import Services, own_services


@pytest.fixture(scope="package")
def own() -> Iterator[Services]:
    """Started for the first scenario, stopped after the last."""
    services.require("postgres", "rabbitmq")
    yield own_services()
    own_services().stop()
