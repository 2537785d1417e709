"""Child processes for handlers and programs: a reaper, a fork server below it, and children below that. Only ``client``
runs in the worker and uses Twisted; the other modules run in these processes.
"""
