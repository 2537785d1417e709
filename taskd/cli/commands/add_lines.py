"""``add -``: how the lines of the input become batches of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.python.failure import Failure

from taskd.cli.context import Context
from taskd.cli.errors import EndOfInput
from taskd.cli.fields import task_text
from taskd.client.errors import ClientError
from taskd.client.retry import Resender
from taskd.protocol.limits import MAX_BATCH, MAX_LINE_BYTES

IN_FLIGHT = 4
"""Batches sent but not confirmed: enough to keep the server busy, and few enough to know what was created."""

_ENVELOPE_BYTES = 100
"""More than ``{"action":"new_tasks","id":...,"tasks":[]}`` takes."""


class LineSubmitter:
    """Creates a task for each line. It counts and prints each reply when it comes, however long the input takes.

    The first failure stops the reading at once; batches that are in flight then are still confirmed and counted.
    """

    def __init__(self, ctx: Context, resender: Resender, key: str, fields: dict[str, Any]) -> None:
        self._ctx = ctx
        self._resender = resender
        self._key = key
        self._fields = fields
        self._number = 0
        self._slots = DeferredSemaphore(IN_FLIGHT)
        self._in_flight: set[Deferred[None]] = set()
        self._reading: Deferred[list[str]] | None = None
        self._failure: BaseException | None = None
        self.begun = False
        self.ids: list[int] = []
        self.known: set[int] = set()
        """Those of ``ids`` that an earlier command with the same key has created."""

    async def run(self) -> None:
        """Return when every line is confirmed. Raises the first failure."""
        try:
            try:
                await self._send_all()
            except ClientError as e:
                self._fail(Failure(e))
            await DeferredList(tuple(self._in_flight))
            self._raise_failure()
        finally:
            # Nothing is left here unless the command was interrupted
            for sending in tuple(self._in_flight):
                sending.cancel()

    async def _send_all(self) -> None:
        while True:
            try:
                lines = await self._read()
            except EndOfInput:
                return
            for batch in batches(self._tasks(lines)):
                await self._slots.acquire()
                self._raise_failure()
                self.begun = True
                sending = Deferred.fromCoroutine(self._send(batch))
                self._in_flight.add(sending)
                sending.addErrback(self._fail).addBoth(self._confirmed, sending)

    async def _read(self) -> list[str]:
        self._raise_failure()
        self._reading = Deferred.fromCoroutine(self._ctx.source.lines())
        try:
            return await self._reading
        except CancelledError:
            self._raise_failure()
            raise
        finally:
            self._reading = None

    def _tasks(self, lines: Iterable[str]) -> list[bytes]:
        tasks = []
        for line in lines:
            self._number += 1
            if line.strip():
                text = task_text(line, self._ctx.texts("line", n=self._number))
                task = {"task": text, "key": f"{self._key}:{self._number}", **self._fields}
                tasks.append(msgspec.json.encode(task))
        return tasks

    async def _send(self, tasks: list[bytes]) -> None:
        reply, resent = await self._resender.send("new_tasks", self._key, tasks=[msgspec.Raw(task) for task in tasks])
        self.ids += reply.body.task_ids
        if not resent:
            self.known.update(reply.body.duplicates)
        if self._ctx.json:
            self._ctx.out.raw(reply.line)

    def _fail(self, failure: Failure) -> None:
        if self._failure is None:
            self._failure = failure.value
        if self._reading is not None:
            self._reading.cancel()

    def _confirmed(self, _: None, sending: Deferred[None]) -> None:
        self._in_flight.discard(sending)
        self._slots.release()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def batches(tasks: list[bytes]) -> Iterator[list[bytes]]:
    """Encoded tasks in groups that fit into one request. Raises ClientError for a task that never fits."""
    batch: list[bytes] = []
    size = _ENVELOPE_BYTES
    for task in tasks:
        if _ENVELOPE_BYTES + len(task) > MAX_LINE_BYTES:
            raise ClientError("line_too_large", code="too_large", limit=MAX_LINE_BYTES)
        if batch and (len(batch) == MAX_BATCH or size + len(task) + 1 > MAX_LINE_BYTES):
            yield batch
            batch, size = [], _ENVELOPE_BYTES
        batch.append(task)
        size += len(task) + 1
    if batch:
        yield batch
