"""The implementations of :class:`taskd.ports.store.IStore`: ``postgres/`` and ``sqlite/``, and what they share. Nothing
here decides when a task is created, dispatched or taken back; the schema itself is in schema/.
"""
