"""The line transport of the server, its wiring and its ``twistd`` command.

What a request does is in :mod:`taskd.api`.
"""
