"""Fault injection on real processes: kill them, stop them, cut their connections, and check that every promise holds.

    scenarios.py   the table SCENARIOS: each scenario with its quick and its full counts
    processes.py   scenarios in which daemons are killed, stopped or drained
    outages.py     scenarios in which PostgreSQL or RabbitMQ crash or cannot be used
    commits.py     the scenario in which connections break around a COMMIT
    liveness.py    scenarios in which something else fails, and workers that live must keep their tasks
    culprits.py    scenarios in which handlers block, kill or fork their worker
    clocks.py      scenarios in which the clock of one daemon is set
    stage.py       the services and daemons of a scenario, and the final checks
    load.py        clients that reconnect, and send requests without an answer again under the same key
    audit.py       triggers that record every change of state, and the check of all records
    worker.py      the real worker with two more handlers, and the record of its attempts
    handlers.py    handlers that block or fork the worker
    proxy.py       a proxy before PostgreSQL that cuts connections at chosen statements

``python -m tests.faults`` runs all scenarios with quick counts, ``--full`` (``make faults``) with full counts. It
prints one line of JSON for each scenario, and exits with 1 if a promise was broken. The tests use the quick counts.
"""
