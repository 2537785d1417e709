"""The store of many servers, on PostgreSQL: connection, pool, and one module for each theme with its SQL. No other
room imports psycopg2 or txpostgres.
"""
