"""The two bare processes of the floor: ``python -m bench.bare create|work JOB`` with a JSON file of settings.

They use the libraries, statements and messages of taskd and nothing else: no protocol, accounts, checks or recovery.
Use them only for measuring.

    job.py           the settings, and what both processes need to run
    connections.py   PostgreSQL and RabbitMQ through the libraries, with as little code as possible
    create.py        creates tasks, in place of the server
    work.py          looks for tasks and finishes them, in place of the worker
"""
