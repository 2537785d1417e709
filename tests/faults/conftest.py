"""Services for the scenarios only, because the scenarios break them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import services
from tests.faults.stage import Services, own_services


@pytest.fixture(scope="package")
def own() -> Iterator[Services]:
    """Services that start before the first scenario and stop after the last one."""
    services.require("postgres", "rabbitmq")
    yield own_services()
    own_services().stop()
