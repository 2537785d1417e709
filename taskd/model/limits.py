"""The limits of tasks and users, each in one place.

Limits of texts are in characters after normalisation, limits of payloads and results in bytes of their JSON text.
"""

from __future__ import annotations

DEFAULT_ATTEMPTS = 3

MAX_ATTEMPTS = 100

MAX_DELAY_SECONDS = 10 * 366 * 86400.0
"""How far ahead a task may be scheduled."""

MAX_TIMEOUT_SECONDS = 30 * 86400.0

MAX_NOTE_CHARS = 200
"""Of what a handler says beside its progress; the rest is cut."""

MAX_ERROR_CHARS = 1000
"""Of the line that says why an attempt failed."""

MAX_TRACE_CHARS = 16 * 1024
"""Of a traceback; the middle is cut, because the ends say what failed and where it came from."""

MAX_LINE_CHARS = 4096
"""Of one line of a task's log; the rest is cut."""

MAX_TASK_CHARS = 4096

MAX_KIND_CHARS = 64

MAX_KEY_CHARS = 128

MAX_USERNAME_CHARS = 64

MIN_PASSWORD_BYTES = 8

MAX_PASSWORD_BYTES = 72
"""bcrypt reads no further than 72 bytes; a longer password would be cut silently."""

MAX_RESULT_BYTES = 256 * 1024

LISTED_RESULT_BYTES = 4096
"""Lists and events leave out a result larger than this; get_task always has it."""

MAX_JSON_DEPTH = 100
"""How deeply payload and result may be nested: what one process can read, all others can."""
