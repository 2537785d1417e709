"""The worker: takes deliveries, claims their tasks, runs them and records how they ended."""
