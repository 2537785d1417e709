"""What a seed draws before the game begins: sizes, rates, and which faults there are.

Each kind of fault is there in some games only ("swarm testing", Groce et al., ISSTA 2012): a game in which everything
goes wrong at once rarely gets far enough to find what needs a long row of steps.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Probabilities of what may befall one call or one message."""

    # the store
    refused: float
    """A call is refused before it is done."""
    ambiguous: float
    """A call is done, and the answer lost."""
    straggling: float
    """A call is reported lost, and done some seconds later."""
    slow_store: float
    """A call takes up to seconds."""
    # the broker
    dropped: float
    """A message is confirmed and gone."""
    doubled: float
    """A message comes twice."""
    reordered: float
    """A message comes late, behind others."""
    unconfirmed: float
    """Messages are delivered and the publisher is told that they were not."""
    lost_confirm: float
    """Messages are not delivered, and the publisher learns only after seconds."""
    late_confirm: float
    """A confirm takes seconds."""
    news_gap: float
    """News do not arrive, and the subscriber is told of a gap."""
    news_doubled: float
    """News arrive twice."""
    # clients
    slow_reader: float
    """A client does not read for some seconds."""


@dataclass(frozen=True)
class Plan:
    """Everything about a game but its course."""

    servers: int
    slots: tuple[int, ...]
    """One worker for each."""
    clients: tuple[int, ...]
    """The number of a user for each client."""
    tasks: int
    """How many the clients submit in all, about."""
    queues: tuple[str, ...]
    window: int
    lease: float
    longest: float
    """What a task takes at most, in seconds."""
    chaos: float
    """Seconds in which things go wrong."""
    store_seconds: float
    """What a call of the store takes, on average."""
    broker_seconds: float
    network_seconds: float
    lost_after: float
    """Seconds after which a queued task is missed; shorter than in life, so that more of it happens in a game."""
    relay_after: float
    """Seconds after which an outbox row counts as orphaned."""
    retry: float
    """Seconds for which the link to the store repeats what may have been done; 0: it gives up at once."""
    rates: Rates
    faults: tuple[str, ...]
    """Names of functions in :mod:`tests.simulation.faults`."""
    poison: bool
    """Whether some tasks kill their worker."""
    encore: bool
    """Whether the clients go on a little when nothing goes wrong any more."""
    calm: float
    """Seconds between faults, on average."""


FAULTS = (
    "kill_server",
    "kill_worker",
    "drain_server",
    "drain_worker",
    "freeze_server",
    "freeze_worker",
    "stop_database",
    "crash_database",
    "cut_from_database",
    "stop_broker",
    "cut_from_broker",
    "lose_channel",
    "purge_queue",
    "cut_connection",
)


def draw(random: random.Random) -> Plan:
    """A plan for a game."""

    def maybe(most: float) -> float:
        return random.choice((0.0, 0.0, most / 10, most / 3, most))

    users = random.randint(1, 3)
    return Plan(
        servers=random.choice((1, 2, 2, 3)),
        slots=tuple(random.randint(3, 20) for _ in range(random.choice((1, 2, 3)))),
        clients=tuple(n % users for n in range(random.randint(users, users + 2))),
        tasks=random.choice((15, 30, 50, 80)),
        queues=random.choice((("tasks",), ("tasks",), ("tasks", "urgent"))),
        window=random.choice((1, 3, 10, 50)),
        lease=random.choice((3.0, 5.0, 8.0)),
        longest=random.choice((0.5, 3.0, 6.0)),
        chaos=random.uniform(3.0, 15.0),
        store_seconds=random.choice((0.001, 0.005, 0.05)),
        broker_seconds=random.choice((0.001, 0.005, 0.05)),
        network_seconds=random.choice((0.001, 0.02)),
        lost_after=random.choice((1.0, 3.0, 10.0)),
        relay_after=random.choice((0.5, 2.0, 5.0)),
        retry=random.choice((0.0, 2.0, 10.0)),
        rates=Rates(
            refused=maybe(0.1),
            ambiguous=maybe(0.15),
            straggling=maybe(0.05),
            slow_store=maybe(0.1),
            dropped=maybe(0.2),
            doubled=maybe(0.3),
            reordered=maybe(0.3),
            unconfirmed=maybe(0.1),
            lost_confirm=maybe(0.1),
            late_confirm=maybe(0.2),
            news_gap=maybe(0.05),
            news_doubled=maybe(0.1),
            slow_reader=maybe(0.3),
        ),
        faults=tuple(f for f in FAULTS if random.random() < 0.5),
        poison=random.random() < 0.15,
        encore=random.random() < 0.4,
        calm=random.choice((0.3, 0.7, 2.0)),
    )
