"""Tests with real processes and real, private services."""
