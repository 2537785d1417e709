"""What a task and a user are: states and legal moves, limits, checks, errors. No I/O, and nothing of the protocol."""
