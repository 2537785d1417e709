"""The simulation finds deliberate defects."""

from __future__ import annotations

import pytest

from tests.simulation.planted import DEFECTS
from tests.simulation.world import Failed, play


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(name: str) -> None:
    """One of the first games violates the invariant of the defect. Other games may violate other invariants."""
    defect = DEFECTS[name]
    with defect.planted():
        for seed in range(defect.first, defect.first + defect.within):
            try:
                play(seed, kinds=defect.kinds, changes=defect.changes)
            except Failed as e:
                if e.invariant == defect.invariant:
                    assert f"seed {seed}," in str(e)
                    return
    pytest.fail(f"not found in {defect.within} games: {name}")
