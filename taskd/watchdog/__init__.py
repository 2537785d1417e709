"""The watchdog of a worker: a process of its own that beats while the reactor is blocked, names the handler that blocks
it, gives back what a blocked worker has not begun, ends a worker that is blocked for too long, and tells the store at
once when the worker dies. It runs no tasks.
"""
