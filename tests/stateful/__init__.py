"""Random sequences of requests of three users and two admins against a whole server in memory, and a model that says
what each reply must be.

The method is that of QuickCheck's state machines (Hughes et al., "Testing the Hard Stuff and Staying Sane", 2014), with
Hypothesis, which shortens a sequence that fails. Requests go through the real lines, codec, api and SQLite store, on a
clock that only the machine turns. The model knows docs/protocol.md and nothing of taskd's code.

    model.py        accounts, sessions, invitations, tasks and what the protocol says of them: plain data
    base.py         connections, requests, what must hold after each step
    connections.py  rules: connect, disconnect, wrong lines, pipelines, time
    accounts.py     rules: register, log in and out, passwords, sessions, API tokens
    admins.py       rules: roles, disabled users, invitations, weights, quotas, the audit
    tasks.py        rules: create, cancel, retry, read, watch and wait for tasks
    machine.py      the machines, one for each way to register, and how they are played
    planted.py      deliberate defects, which the machines must find

``python -m tests.stateful --minutes 10`` plays long games from ever new seeds.
"""
