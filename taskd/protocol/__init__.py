"""The line protocol without I/O: messages, codec, framing, and the registry of actions. What an action does is in
:mod:`taskd.api`; what carries the lines is in :mod:`taskd.server` and :mod:`taskd.client`.
"""
