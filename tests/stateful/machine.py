"""The machines, and how they are played."""

from __future__ import annotations

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.stateful.accounts import AccountRules
from tests.stateful.admins import AdminRules
from tests.stateful.connections import ConnectionRules
from tests.stateful.tasks import TaskRules


class Machine(AccountRules, AdminRules, TaskRules, ConnectionRules):
    """Everybody can register."""

    def begin_more(self, count: int) -> None:
        self.begin_tasks(count)
        if self.registration == "invitation":
            self.make_invitation(self.conns[0], 1 + count % 2, 6)


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
    seeded = type(MACHINES[registration].__name__, (MACHINES[registration],), {})
    run_state_machine_as_test(hypothesis.seed(seed)(seeded), settings=profile)
