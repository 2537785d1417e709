"""The implementations of :class:`taskd.ports.store.IStore` in ``postgres/`` and ``sqlite/``, and what they share. They
carry out changes of tasks; they do not decide when a change happens. The schema is in schema/.
"""
