"""The interfaces between taskd and the world, and the values that cross them. No implementation lives here.

Servers and workers reach the database, the broker and handlers through these interfaces alone:

=================  ============================================================
module             what it declares
=================  ============================================================
``store``          ``IStore``: all themes below in one object
``accounts``       users, password hashes, sessions
``tasks``          tasks as their owners see them
``scheduling``     the backlog, and the turn that assigns it
``attempts``       look, begin, outcome, release, taking back
``logs``           progress and log lines
``workers``        the registry of workers, and who is alive
``broker``         ``IBroker``: hints to workers, events to all servers
``handler``        ``ITaskHandler`` and ``ITaskContext``: what users write
=================  ============================================================

A database method that touches two themes belongs to the theme that it changes. Every implementation passes the suite
of its port in ``tests/conformance``. Methods that return an Awaitable may be ``async def`` or return a Deferred; the
caller awaits them and never blocks.

A store raises :class:`taskd.model.errors.Unavailable` when it cannot be reached (then nothing was confirmed) and domain
errors for refusals. A broker raises nothing: it drops what it cannot send.
"""

from taskd.ports.handler import ITaskContext as ITaskContext
from taskd.ports.handler import ITaskHandler as ITaskHandler
