"""The server's end of one connection, without I/O: lines in, calls out, replies in their order.

A request with an ``id`` starts at once and may be answered out of order. A request without one, or one that changes
who the connection is, is *exclusive*: it starts when everything before it has been answered, and everything behind it
waits. So lines piped through ``nc`` work one after another like commands in a shell, login included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from msgspec import UNSET, Struct, UnsetType

from taskd.errors import TaskdError
from taskd.wire.actions import Action
from taskd.wire.codec import Refused, decode_request, encode_error, encode_reply
from taskd.wire.limits import MAX_PIPELINE
from taskd.wire.messages import Reply, Scalar


class Call:
    """One request under way. Exactly one of :meth:`succeed` and :meth:`fail` must be called, once."""

    __slots__ = ("_session", "action", "request", "request_id")

    def __init__(self, session: ServerSession, action: Action, request: Struct, request_id: Scalar | UnsetType) -> None:
        self._session = session
        self.action = action
        self.request = request
        self.request_id = request_id

    def succeed(self, reply: Reply) -> None:
        """Answer with these fields."""
        self._session._answer(self, encode_reply(reply, self.request_id))

    def fail(self, error: TaskdError) -> None:
        """Answer with an error."""
        self._session._answer(self, encode_error(error, self.request_id))


class ServerSession:
    """Orders the calls of one connection.

    ``start`` is called with each call when its turn has come, ``write`` with each encoded line to send, and
    ``congested`` with True when no more lines should be read, with False when they may be again.
    """

    def __init__(
        self,
        start: Callable[[Call], None],
        write: Callable[[bytes], None],
        congested: Callable[[bool], None],
        pipeline: int = MAX_PIPELINE,
    ) -> None:
        self._start = start
        self._write = write
        self._congested = congested
        self._pipeline = pipeline
        self._queue: deque[Call | bytes] = deque()
        self._under_way = 0
        self._exclusive = False
        self._full = False
        self._closing: Callable[[], None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a request still waits for its answer."""
        return bool(self._queue) or self._under_way > 0

    def receive(self, line: bytes) -> None:
        """Take one line, without its line end."""
        if self._closing is not None:
            return
        try:
            action, request, request_id = decode_request(line)
        except Refused as refusal:
            refused = encode_error(refusal.error, refusal.request_id)
            if refusal.request_id is UNSET and self.busy:
                self._queue.append(refused)
            else:
                self._write(refused)
            return
        call = Call(self, action, request, request_id)
        if self._queue or self._exclusive or (self._under_way and _is_exclusive(call)):
            self._queue.append(call)
        else:
            self._begin(call)
        if not self._full and len(self._queue) + self._under_way >= self._pipeline:
            self._full = True
            self._congested(True)

    def refuse(self, error: TaskdError) -> None:
        """Answer to something that was no line, such as an overlong one, in its turn."""
        line = encode_error(error, UNSET)
        if self.busy:
            self._queue.append(line)
        else:
            self._write(line)

    def close(self, done: Callable[[], None]) -> None:
        """Take no more lines; call ``done`` once everything taken has been answered."""
        self._closing = done
        if not self.busy:
            done()

    def _begin(self, call: Call) -> None:
        self._under_way += 1
        self._exclusive = _is_exclusive(call)
        self._start(call)

    def _answer(self, call: Call, line: bytes) -> None:
        self._write(line)
        self._under_way -= 1
        self._exclusive = False
        if self._queue:
            self._go_on()
        if self._full and len(self._queue) + self._under_way <= self._pipeline // 2:
            self._full = False
            self._congested(False)
        if self._closing is not None and not self.busy:
            self._closing()

    def _go_on(self) -> None:
        queue = self._queue
        while queue and not self._exclusive:
            first = queue[0]
            if isinstance(first, bytes):
                if self._under_way:
                    return
                queue.popleft()
                self._write(first)
                continue
            if self._under_way and _is_exclusive(first):
                return
            queue.popleft()
            self._begin(first)


def _is_exclusive(call: Call) -> bool:
    return call.action.exclusive or call.request_id is UNSET
