"""The machines, and how they are played."""

from __future__ import annotations

from typing import Any
from unittest import mock

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.stateful import rule, run_state_machine_as_test

from tests.stateful.accounts import AccountRules
from tests.stateful.admins import AdminRules
from tests.stateful.base import picks
from tests.stateful.connections import ConnectionRules
from tests.stateful.tasks import TaskRules

SEEDS = (0, 1)
GAMES = 25
STEPS = 40
"""What the tests play: so many games a seed, of so many steps."""


class Machine(AccountRules, AdminRules, TaskRules, ConnectionRules):
    """Everybody can register."""

    def begin_more(self, count: int) -> None:
        self.begin_tasks(count)
        if self.registration == "invitation":
            self.make_invitation(self.conns[0], 1 + count % 2, 6)

    @rule(pick=picks, room=st.integers(0, 1))
    def fill_up(self, pick: int, room: int) -> None:
        """An admin gives a user little room, and the user takes more."""
        conn = self.user(pick)
        if conn.login is None:
            return
        account = conn.login[0]
        self.limit(self.admin(pick), account.name, "open", max(1, account.open_tasks() + room))
        self.pass_time(10.0)  # then a lower limit counts
        if self.is_valid(conn):
            some = [{"task": "one more"}, {"task": "and another"}]
            self.create(conn, some, "new_tasks", tasks=some)


class InvitationMachine(Machine):
    """Whoever has an invitation can register."""

    registration = "invitation"


class ClosedMachine(Machine):
    """Nobody can register."""

    registration = "closed"


MACHINES: dict[str, type[Machine]] = {each.registration: each for each in (Machine, InvitationMachine, ClosedMachine)}


def play(registration: str, seed: int, games: int, steps: int, shorten: bool = True, verbose: bool = False) -> None:
    """Play so many games of so many steps. A seed always plays the same games. Raises what the first game raises that
    fails, shortened if asked for."""
    phases = [Phase.generate, *([Phase.shrink] if shorten else [])]
    profile = settings(
        max_examples=games,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.verbose if verbose else Verbosity.normal,
        print_blob=False,
    )
    # Hypothesis also draws numbers that it finds in the code of all loaded modules: so a seed would play other games
    # when other tests are loaded
    plain = mock.patch.object(HypothesisProvider, "_maybe_draw_constant", _no_constant, create=True)
    seeded = type(MACHINES[registration].__name__, (MACHINES[registration],), {})
    with plain:
        run_state_machine_as_test(hypothesis.seed(seed)(seeded), settings=profile)


def _no_constant(*_: Any, **__: Any) -> None:
    return None
