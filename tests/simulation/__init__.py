"""A deterministic simulation: servers, workers and clients in one process, one clock, one seed, and many faults.

In the spirit of FoundationDB's simulator (Zhou et al., "FoundationDB: A Distributed Unbundled Transactional Key Value
Store", SIGMOD 2021, section 4) and TigerBeetle's: the real rooms of taskd run above a store, a broker and a network
that fail in every way that theirs may, and a referee looks at every change. No real time, no threads, no sockets: a
seed always plays the same game, so that one that fails can be played again.

    world.py       puts a game together, plays it step by step, and judges its end
    plan.py        what a seed draws before the game: sizes, rates, which faults
    clock.py       one clock, and a view of it for each process, which can be stopped
    processes.py   servers and workers as processes that start, stop, freeze and die
    store.py       the database that all share, and each process's fragile link to it
    broker.py      the broker that all share, and each process's fragile link to it
    network.py     connections between clients and servers
    clients.py     users, who submit, cancel, list, watch and wait, and check what they are told
    faults.py      what goes wrong, and when
    referee.py     the invariants
    planted.py     defects put in on purpose, to see them found
"""
