"""The simulation finds defects that are put in on purpose."""

from __future__ import annotations

import pytest

from tests.simulation.planted import DEFECTS
from tests.simulation.world import Failed, play


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(name: str) -> None:
    """By the invariant that names it, in one of the first games; others may see it first in others."""
    defect = DEFECTS[name]
    with defect.planted():
        for seed in range(defect.within):
            try:
                play(seed)
            except Failed as e:
                if e.invariant == defect.invariant:
                    assert f"seed {seed}," in str(e)
                    return
    pytest.fail(f"{defect.within} games, and nobody saw that {name}")
