"""Benchmarks. README.md here describes them."""
