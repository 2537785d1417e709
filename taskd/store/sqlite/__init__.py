"""The store on SQLite, for the embedded server: only one process uses the database. One module a theme of
:mod:`taskd.ports`, with its SQL beside it.
"""
