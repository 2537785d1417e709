"""The broker that all processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.broker_link import BrokerLink
    from tests.simulation.world import World


class SimBroker:
    """All links. While the broker is down, no link is up. It keeps nothing."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.up = True
        self.links: list[BrokerLink] = []
        self.eats_until = 0.0
        """Until then a policy of the operator removes every message."""

    @property
    def eats(self) -> bool:
        """Whether it loses what it gets, without telling anybody."""
        return self._world.clock.seconds() < self.eats_until

    def stop(self) -> None:
        """Stop the broker."""
        self.up = False
        for link in self.links:
            link.lose()

    def start(self) -> None:
        """Start the broker again."""
        self.up = True
