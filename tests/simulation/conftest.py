"""The games of a module are destroyed at its end."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def end_of_games() -> Iterator[None]:
    """Collect what is left of the games. Their coroutines that still wait log errors when they are destroyed, and
    trial counts every logged error as one of the test that runs then."""
    yield
    gc.collect()
