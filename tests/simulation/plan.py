"""What a seed draws before the game begins: sizes, rates, and kinds of faults.

Each kind of fault occurs in some games only ("swarm testing", Groce et al., ISSTA 2012). A game with all faults at once
rarely gets far enough to find a defect that needs many steps.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rates:
    """Probabilities of faults, for one call or one message each."""

    # the store
    refused: float
    """A call fails before it is executed."""
    ambiguous: float
    """A call is executed, and its answer is lost."""
    straggling: float
    """A call is reported as lost, and executed some seconds later."""
    slow_store: float
    """A call takes up to some seconds."""
    stale: float
    """A poll, or another picture of the store, arrives up to ten seconds late."""
    # the broker
    dropped: float
    """A hint is lost."""
    duplicated: float
    """A hint comes twice."""
    reordered: float
    """A hint or an event batch comes late, behind later ones."""
    event_gap: float
    """An event batch is lost, and its subscriber gets a gap."""
    event_duplicated: float
    """An event batch arrives twice."""
    # clients
    slow_reader: float
    """A client does not read for some seconds."""


@dataclass(frozen=True)
class Plan:
    """The settings of a game."""

    servers: int
    slots: tuple[int, ...]
    """The slots of each worker."""
    clients: tuple[int, ...]
    """The index of the user of each client."""
    tasks: int
    """About how many tasks the clients submit in total."""
    queues: tuple[str, ...]
    lease: float
    stall: float
    """Seconds for which a handler may block its worker."""
    pooler: bool
    """Whether a pooler hides the workers' connections from the database: then all seem to be connected."""
    longest_task: float
    """Most seconds that a task takes."""
    chaos: float
    """Seconds during which faults occur."""
    eager: float
    """Which share of the clients' requests submit tasks, until all are submitted."""
    pace: float
    """Mean requests in a second of a client."""
    store_seconds: float
    """Mean seconds of a call of the store."""
    broker_seconds: float
    network_seconds: float
    retry_seconds: float
    """Seconds for which the link to the store repeats a call that may have been executed. With 0, it never does."""
    rates: Rates
    faults: tuple[str, ...]
    """Names of functions in :mod:`tests.simulation.faults`."""
    poison: bool
    """Whether some tasks kill their worker."""
    extra_tasks: bool
    """Whether the clients submit some more tasks after the faults have ended."""
    fault_interval: float
    """Mean seconds between faults."""

    @property
    def only_broker_fails(self) -> bool:
        """Whether nothing keeps servers and workers from their work in this game."""
        r = self.rates
        failing = r.refused + r.ambiguous + r.straggling + r.slow_store + r.stale
        return not (failing or self.poison or set(self.faults) - BROKER_FAULTS)


FAULTS = (
    "kill_server",
    "kill_worker",
    "drain_server",
    "drain_worker",
    "freeze_server",
    "freeze_worker",
    "stall_worker",
    "kill_watchdog",
    "close_connections",
    "lock_tasks",
    "refuse_changes",
    "stop_database",
    "crash_database",
    "cut_from_database",
    "stop_broker",
    "cut_from_broker",
    "lose_queues",
    "eat_messages",
    "cut_connection",
)


BROKER_FAULTS = frozenset({"stop_broker", "cut_from_broker", "lose_queues", "eat_messages", "cut_connection"})
"""Faults of the broker and of clients only: work goes on."""


def draw(random: random.Random) -> Plan:
    """A plan for a game."""

    def maybe(most: float) -> float:
        return random.choice((0.0, 0.0, most / 10, most / 3, most))

    # a store that answers every call, as long as it is up, lets the bounds of the servers show
    calm = random.random() < 0.3

    def rarely(most: float) -> float:
        return 0.0 if calm else maybe(most)

    users = random.randint(1, 3)
    plan = Plan(
        servers=random.choice((1, 2, 2, 3)),
        slots=tuple(random.randint(3, 20) for _ in range(random.choice((1, 2, 3)))),
        clients=tuple(n % users for n in range(random.randint(users, users + 2))),
        tasks=random.choice((15, 30, 60, 120)),
        queues=random.choice((("tasks",), ("tasks",), ("tasks", "urgent"))),
        lease=random.choice((6.0, 8.0, 12.0)),
        stall=random.choice((5.0, 12.0, 20.0)),
        pooler=random.random() < 0.15,
        longest_task=random.choice((0.5, 3.0, 6.0, 20.0, 40.0)),
        chaos=random.choice((random.uniform(3.0, 15.0), random.uniform(15.0, 40.0), random.uniform(20.0, 60.0))),
        eager=random.choice((0.55, 0.2, 0.08)),
        pace=random.choice((8.0, 8.0, 2.0)),
        store_seconds=random.choice((0.001, 0.005, 0.05)),
        broker_seconds=random.choice((0.001, 0.005, 0.05)),
        network_seconds=random.choice((0.001, 0.02)),
        retry_seconds=random.choice((0.0, 2.0, 10.0)),
        rates=Rates(
            refused=rarely(0.1),
            ambiguous=rarely(0.15),
            straggling=rarely(0.05),
            slow_store=rarely(0.1),
            stale=rarely(0.3),
            dropped=maybe(0.9),
            duplicated=maybe(0.3),
            reordered=maybe(0.3),
            event_gap=maybe(0.05),
            event_duplicated=maybe(0.1),
            slow_reader=maybe(0.3),
        ),
        faults=tuple(f for f in FAULTS if random.random() < 0.5),
        poison=random.random() < 0.15,
        extra_tasks=random.random() < 0.4,
        fault_interval=random.choice((0.3, 0.7, 2.0)),
    )
    if random.random() < 0.1:
        # then the bounds of a healthy system hold all the time
        rates = replace(plan.rates, refused=0.0, ambiguous=0.0, straggling=0.0, slow_store=0.0, stale=0.0)
        faults = tuple(f for f in FAULTS if f in BROKER_FAULTS and random.random() < 0.7)
        plan = replace(plan, rates=rates, faults=faults, poison=False)
    return plan
