"""The line protocol: typed messages, codec, limits and the sessions of both ends. No I/O. See docs/protocol.md."""
