"""Receives the event batches of other processes and passes them to the hub and the scheduling of this server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from twisted.logger import Logger

from taskd.events.records import TaskChange, batch_prefix, decode_batch
from taskd.events.watch_hub import Hub
from taskd.ports.broker import IBroker


class Subscriber:
    """``origin`` is the name of this process: it skips its own batches. ``on_changes`` gets the changes that others
    made, ``on_routes`` the routes in which others say that there may be something to do. ``on_workers`` is called when
    a worker has started, stopped, or serves other kinds than before, ``on_gap`` when batches may have been lost.
    ``on_rights`` gets the users whose rights have changed."""

    _log = Logger()

    def __init__(
        self,
        broker: IBroker,
        hub: Hub,
        origin: str,
        on_changes: Callable[[Sequence[TaskChange]], None],
        on_workers: Callable[[], None],
        on_routes: Callable[[Sequence[tuple[str, str]]], None],
        on_gap: Callable[[], None],
        on_rights: Callable[[Sequence[int]], None] = lambda _: None,
    ) -> None:
        self._broker = broker
        self._hub = hub
        self._origin = origin
        self._installation = ""
        self._own_prefix = b""
        self._on_changes = on_changes
        self._on_workers = on_workers
        self._on_routes = on_routes
        self._on_gap = on_gap
        self._on_rights = on_rights
        self._warned = False
        self._refused = False

    def start(self, installation: str) -> None:
        """Receive the batches of this installation from now on."""
        self._installation = installation
        self._own_prefix = batch_prefix(installation, self._origin)
        self._broker.subscribe(self._received, self._gap)

    def _gap(self) -> None:
        self._on_gap()
        self._hub.gap()

    def _received(self, body: bytes) -> None:
        if body.startswith(self._own_prefix):
            return
        try:
            batch = decode_batch(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            # sent by another version of taskd, or by another program; the store has the truth in any case
            if not self._warned:
                self._warned = True
                self._log.warn("an event batch cannot be decoded, live views may be late: {why}", why=str(e))
            return
        if batch.installation != self._installation:
            self._refuse(batch.installation)
            return
        if batch.workers:
            self._on_workers()
        if batch.routes:
            self._on_routes(batch.routes)
        if batch.rights:
            self._on_rights(batch.rights)
        if batch.outputs:
            self._hub.deliver_outputs(batch.outputs)
        if batch.changes:
            self._on_changes(batch.changes)
            self._hub.deliver(batch.changes)

    def _refuse(self, installation: str) -> None:
        # the broker's names keep installations apart, unless an operator binds their exchanges together: no user may
        # get events of another installation
        if not self._refused:
            self._refused = True
            text = "refused an event batch of installation {other}, others will be refused silently; this is {own}"
            self._log.warn(text, other=installation, own=self._installation)
