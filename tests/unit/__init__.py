"""Tests in memory: no sockets, no sleeping."""
