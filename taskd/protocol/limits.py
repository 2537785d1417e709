"""Limits of the protocol, announced by ``hello``."""

MAX_LINE_BYTES = 64 * 1024
"""The longest request line, without its line end."""

MAX_REPLY_BYTES = 16 * 1024 * 1024
"""The longest line that a client must be able to read."""

MAX_BATCH = 1000
"""Tasks in one ``new_tasks``, ids in one ``wait``."""

MAX_PAGE = 500
DEFAULT_PAGE = 100
MAX_WAIT_SECONDS = 3600.0
DEFAULT_WAIT_SECONDS = 60.0

MAX_LOG_LINES = 1000
DEFAULT_LOG_LINES = 200

MAX_LOG_EVENT_CHARS = 16 * 1024
"""The most characters of new log lines in one ``log`` event of a watch; the stored log has all lines."""

MAX_FOLLOWS = 100
"""Logs that one connection may follow at a time."""

MAX_PIPELINE = 1024
"""Requests of one connection under way or pending; beyond it the server stops reading until some are answered."""

MAX_PIPELINE_BYTES = 1024 * 1024
"""The same for the bytes of those requests: a decoded request takes many times its length."""

MAX_PAGE_CHARS = 1024 * 1024
"""A page ends early, with a cursor, once the texts and results of its tasks reach this length together."""

MAX_WAITED = 10_000
"""The most tasks that all ``wait`` requests under way on one connection may name together."""

PROTOCOL_VERSION = 1
"""It grows when an old client would misunderstand a new server."""
