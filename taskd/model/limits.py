"""The limits of tasks and users, each in one place.

Limits of texts are in characters after normalisation, limits of payloads and results in bytes of their JSON text.
"""

from __future__ import annotations

DEFAULT_ATTEMPTS = 3

MAX_ATTEMPTS = 100

MAX_DELAY_SECONDS = 10 * 366 * 86400.0
"""The longest time until a delayed task may run."""

MAX_TIMEOUT_SECONDS = 30 * 86400.0

MAX_NOTE_CHARS = 200
"""The longest note beside a task's progress; longer ones are cut."""

MAX_ERROR_CHARS = 1000
"""Of the line that says why an attempt failed."""

MAX_TRACE_CHARS = 16 * 1024
"""The longest traceback; of a longer one the middle is cut, because both ends show what failed and where."""

MAX_LINE_CHARS = 4096
"""The longest line of a task's log; longer ones are cut."""

MAX_TASK_CHARS = 4096

MAX_KIND_CHARS = 64

MAX_KEY_CHARS = 128

MAX_USERNAME_CHARS = 64

MIN_PASSWORD_BYTES = 8

MAX_TOKEN_NAME_CHARS = 64

MAX_TOKEN_DAYS = 365

MAX_TOKEN_SCOPES = 100

MAX_INVITATION_DAYS = 365

MAX_INVITATION_USES = 10_000

MAX_PASSWORD_BYTES = 72
"""bcrypt uses only the first 72 bytes; it would cut a longer password silently."""

MIN_WEIGHT = 0.001

MAX_WEIGHT = 1000.0
"""The bounds of a user's weight. What is in flight is divided by it, so nearly 0 would be beyond all numbers."""

MAX_RESULT_BYTES = 256 * 1024

LISTED_RESULT_BYTES = 4096
"""Lists and events leave out a larger result; get_task always has it."""

MAX_JSON_DEPTH = 100
"""How deeply payload and result may be nested, so that every process can decode them."""
