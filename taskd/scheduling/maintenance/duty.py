"""What the rounds of maintenance ask of a duty."""

from __future__ import annotations

from typing import Protocol


class Duty(Protocol):
    """One kind of repair or continuation, done once in each round."""

    name: str
    """For the log."""

    async def run(self) -> None:
        """Do what there is to do now, bounded in rows. Raises Unavailable."""
