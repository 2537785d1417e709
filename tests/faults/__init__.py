"""Faults on real processes: kill, stop, cut, fill up, and see that no promise is broken.

    scenarios.py   what goes wrong, one function a scenario with its counts as parameters; SCENARIOS has them all
    stage.py       services of its own that may be broken, daemons, the end of a scenario
    load.py        clients that reconnect, and send again by key what had no answer
    audit.py       a trigger records every change of state; what it and the handlers wrote is judged
    worker.py      the worker as it is delivered, with two more handlers
    proxy.py       a proxy before PostgreSQL that cuts at chosen statements

``python -m tests.faults`` plays all of them, in small; ``--full`` (``make faults``) with the full counts. One line of
JSON a scenario; its exit status is 1 when a promise was broken. The tests here are the same scenarios in small.
"""
