"""The nursery: the process below a worker that forks, watches and ends the processes of tasks.

It imports neither Twisted nor the rest of the worker: what forks must be small, single-threaded and know no reactor.
docs/processes.md says how the parts work together.
"""
