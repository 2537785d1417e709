"""A deterministic simulation of servers, workers and clients in one process, with injected faults.

The method is that of FoundationDB (Zhou et al., "FoundationDB: A Distributed Unbundled Transactional Key Value Store",
SIGMOD 2021, section 4) and of TigerBeetle. The real servers and workers of taskd run on a simulated store, broker and
network, which fail in every way that real ones can, and a referee checks every change. There is no real time, thread or
socket: a seed always plays the same game, so a failed game can be repeated.

    world.py         sets up a game, plays it step by step, and checks its end
    plan.py          what a seed draws before the game: sizes, rates, kinds of faults
    clock.py         one clock, and a view of it for each process
    processes.py     servers and workers as processes that start, drain, freeze and die
    database.py      the database that all processes share
    store.py         the unreliable link of each process to the database
    broker.py        the broker that all processes share
    broker_link.py   the unreliable link of each process to the broker
    network.py       connections between clients and servers
    clients.py       clients that submit, cancel, list, watch and wait, and check every reply and event
    faults.py        the injected faults
    watchdog.py      the watchdogs of the workers
    referee.py       the invariants
    bounds.py        the bounds of a healthy system
    fairness.py      whose task is next, in games without faults
    holders.py       the invariants of who holds tasks, who loses them, and whose attempts are spent
    planted.py       deliberate defects, which the simulation must find

Random numbers come from named streams (World.stream). A stream's name is part of its seed: renaming one changes the
games of all seeds.
"""
