"""The store of the embedded server, on SQLite: one connection, and one module for each theme with its SQL. Only one
process uses such a database.
"""
