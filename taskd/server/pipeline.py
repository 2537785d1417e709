"""The requests of one connection, without I/O: lines in, calls out, replies in their order.

A request with an ``id`` starts at once and may be answered out of order. A request without one, or one that changes
who the client is, is *exclusive*: it starts when everything before it has been answered, and everything after it
waits. So lines piped through ``nc`` run one after another like commands in a shell, login included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import UNSET, Struct

from taskd.model.errors import TaskdError, TooLarge
from taskd.protocol.actions import Action
from taskd.protocol.codec import InvalidRequest, decode_request, encode_error, encode_reply
from taskd.protocol.limits import MAX_PIPELINE, MAX_PIPELINE_BYTES, MAX_REPLY_BYTES
from taskd.protocol.messages import RequestId


class Call:
    """One request under way. Exactly one of :meth:`succeed` and :meth:`fail` must be called, once.

    ``size`` is the length of its line in bytes.
    """

    __slots__ = ("_pipeline", "action", "answered", "request", "request_id", "size")

    def __init__(
        self, pipeline: RequestPipeline, action: Action, request: Struct, request_id: RequestId, size: int = 0
    ) -> None:
        self._pipeline = pipeline
        self.action = action
        self.request = request
        self.request_id = request_id
        self.size = size
        self.answered = False

    def succeed(self, fields: Mapping[str, Any]) -> None:
        """Answer with these fields."""
        line = encode_reply(fields, self.request_id)
        if len(line) > MAX_REPLY_BYTES:
            text = f"the reply would be longer than {MAX_REPLY_BYTES} bytes; ask for fewer tasks at a time"
            line = encode_error(TooLarge(text), self.request_id)
        self._pipeline._answer(self, line)

    def fail(self, error: TaskdError) -> None:
        """Answer with an error."""
        self._pipeline._answer(self, encode_error(error, self.request_id))


class RequestPipeline:
    """Orders the calls of one connection.

    It calls ``start`` with each call that may begin, ``write`` with each encoded line to send, and ``congested`` with
    True when no more lines should be read, with False when they may be read again.
    """

    def __init__(
        self,
        start: Callable[[Call], None],
        write: Callable[[bytes], None],
        congested: Callable[[bool], None],
        max_requests: int = MAX_PIPELINE,
        max_bytes: int = MAX_PIPELINE_BYTES,
    ) -> None:
        self._start = start
        self._write = write
        self._congested = congested
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._queue: deque[Call | bytes] = deque()
        self._under_way = 0
        self._bytes = 0
        self._exclusive = False
        self._starting = False
        self._full = False
        self._done: Callable[[], None] | None = None
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether any request waits for its answer."""
        return bool(self._queue) or self._under_way > 0

    def receive(self, line: bytes) -> None:
        """Take one line, without its line end."""
        if self._closed:
            return
        try:
            action, request, request_id = decode_request(line)
        except InvalidRequest as invalid:
            error = encode_error(invalid.error, invalid.request_id)
            if invalid.request_id is UNSET:
                self._write_in_order(error)
            else:
                self._write(error)
            return
        call = Call(self, action, request, request_id, len(line))
        self._bytes += call.size
        if self._queue or self._exclusive or (self._under_way and _is_exclusive(call)):
            self._queue.append(call)
        else:
            self._begin(call)
        self._check_congestion()

    def refuse(self, error: TaskdError) -> None:
        """Answer something that is not a line, such as an overlong one, in its order."""
        if not self._closed:
            self._write_in_order(encode_error(error, UNSET))

    def close(self, done: Callable[[], None]) -> None:
        """Call ``done`` once all requests have been answered; after that take no more lines."""
        self._done = done
        self._check_done()

    def abandon(self) -> None:
        """The connection is lost: begin nothing more, and send no more answers."""
        self._closed = True
        self._done = None
        self._queue.clear()

    def _write_in_order(self, line: bytes) -> None:
        if self.busy:
            self._queue.append(line)
            self._bytes += len(line)
            self._check_congestion()
        else:
            self._write(line)

    def _begin(self, call: Call) -> None:
        self._under_way += 1
        self._exclusive = _is_exclusive(call)
        self._start(call)

    def _answer(self, call: Call, line: bytes) -> None:
        if call.answered:
            raise RuntimeError(f"a {call.action.name} is answered twice")
        call.answered = True
        self._under_way -= 1
        self._bytes -= call.size
        self._exclusive = False
        if self._closed:
            return
        self._write(line)
        if self._queue:
            self._begin_next()
        if self._full:
            self._check_congestion()
        if self._done is not None:
            self._check_done()

    def _begin_next(self) -> None:
        """Begin what may begin now. A call may be answered at once; that must not recurse, as the queue may be long."""
        if self._starting:
            return
        self._starting = True
        queue = self._queue
        try:
            while queue and not self._exclusive:
                first = queue[0]
                if self._under_way and (isinstance(first, bytes) or _is_exclusive(first)):
                    break
                queue.popleft()
                if isinstance(first, bytes):
                    self._bytes -= len(first)
                    self._write(first)
                else:
                    self._begin(first)
        finally:
            self._starting = False

    def _check_congestion(self) -> None:
        count, size = len(self._queue) + self._under_way, self._bytes
        if not self._full and (count >= self._max_requests or size >= self._max_bytes):
            self._full = True
            self._congested(True)
        elif self._full and count <= self._max_requests // 2 and size <= self._max_bytes // 2:
            self._full = False
            self._congested(False)

    def _check_done(self) -> None:
        if self._done is not None and not self.busy:
            done, self._done = self._done, None
            self._closed = True
            done()


def _is_exclusive(call: Call) -> bool:
    return call.action.exclusive or call.request_id is UNSET
