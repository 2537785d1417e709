"""The store on PostgreSQL, for many servers and workers. One module a theme of :mod:`taskd.ports`, with its SQL beside
it. No other part of taskd imports psycopg2 or txpostgres.
"""
