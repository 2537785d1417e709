"""PostgreSQL and RabbitMQ through their libraries, with as little code as possible."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import pika
from pika.adapters.twisted_connection import TwistedProtocolConnection
from psycopg2 import extensions
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.python.failure import Failure
from txpostgres import txpostgres

from bench.bare.job import Job, fail, reactor
from taskd.broker.rabbitmq.frames import MAX_FRAME, FrameReader, Handler, PublishFrames
from taskd.store.postgres.connection import SESSION
from taskd.store.postgres.store import PREPARED

EVENT_BYTES = 350
"""About the size of the event of one changed task, in bytes."""

CONNECTIONS = 4
FANOUT = "floor-events"
HINTS = "floor-hints"

_PLAIN = extensions.new_type((114, 1184), "PLAIN", extensions.UNICODE)


class Database:
    """Connections to PostgreSQL with the prepared statements of taskd."""

    def __init__(self) -> None:
        self._idle: DeferredQueue[Any] = DeferredQueue()

    async def open(self, job: Job) -> None:
        """Connect and prepare the statements."""
        options = " ".join(f"-c {name}={value}" for name, value in SESSION.items())
        for _ in range(CONNECTIONS):
            connection = txpostgres.Connection(reactor)
            await connection.connect(options=options, client_encoding="UTF8", **job.dsn)
            extensions.register_type(_PLAIN, connection.pollable())
            await connection.cursor().execute(";".join(f"PREPARE {n} AS {text}" for n, text in PREPARED.items()))
            self._idle.put(connection)

    async def call(self, name: str, *args: object) -> Rows:
        """Execute a prepared statement in its own transaction."""
        connection = await self._idle.get()
        values = ", ".join(["%s"] * len(args))
        cursor = await connection.cursor().execute(f"EXECUTE {name} ({values})", args)
        columns = [column.name for column in cursor.description or ()]
        rows = Rows(columns, cursor.fetchall() if columns else [])
        self._idle.put(connection)
        return rows


class Rows(NamedTuple):
    """The result of a statement. Columns are found by name, as a statement may return more than is needed here."""

    names: list[str]
    rows: list[tuple[Any, ...]]

    def columns(self, *wanted: str) -> list[Any]:
        """The values of one column, or tuples of several, row by row."""
        return list(map(itemgetter(*[self.names.index(name) for name in wanted]), self.rows))


class Amqp(TwistedProtocolConnection):
    """A connection that handles frequent frames without pika, as taskd does: pika takes several times as long."""

    def __init__(self, job: Job) -> None:
        credentials = pika.PlainCredentials(job.amqp["user"], job.amqp["password"])
        super().__init__(pika.ConnectionParameters(credentials=credentials, frame_max=MAX_FRAME))
        self._reader = FrameReader(super().dataReceived)

    async def open(self, job: Job) -> None:
        """Connect."""
        await connectProtocol(TCP4ClientEndpoint(reactor, job.amqp["host"], job.amqp["port"]), self)
        await self.ready
        # A call on a lost connection or channel gets no reply: without this the process would wait for ever.
        self._impl.add_on_close_callback(_fail)

    def dataReceived(self, data: bytes) -> None:
        """Pass deliveries to their handler, and all else to pika."""
        self._impl.bytes_received += 1
        self._reader.feed(data)

    async def channel(self) -> Any:
        """Open a channel of pika."""
        opened: Deferred[Any] = Deferred()
        self._impl.channel(on_open_callback=opened.callback)
        channel = await opened
        channel.add_on_close_callback(_fail)
        return channel

    async def consume(self, channel: Any, queue: str, handler: Handler, auto_ack: bool = False) -> None:
        """Consume a queue: ``handler`` gets every delivery."""

        def deliver(_: Any, method: Any, properties: Any, body: bytes) -> None:
            handler(method.delivery_tag, method.redelivered, body)

        self._reader.handlers[channel.channel_number] = handler
        await called(channel.basic_consume, queue=queue, on_message_callback=deliver, auto_ack=auto_ack)


def _fail(lost: object, reason: BaseException) -> None:
    fail(Failure(reason))


def called(method: Callable[..., Any], **arguments: Any) -> Deferred[Any]:
    """Call a method of a pika channel. Fires with the reply."""
    done: Deferred[Any] = Deferred()
    method(callback=done.callback, **arguments)
    return done


class Hints:
    """One hint for the only worker, on a queue of its own."""

    def __init__(self, amqp: Amqp, channel: Any) -> None:
        self._amqp = amqp
        self._channel = channel
        self._frames = PublishFrames(channel.channel_number, "", HINTS).of(b"look")

    def send(self) -> None:
        """Tell the worker to look."""
        self._amqp.transport.write(self._frames)

    async def receive(self, on_hint: Callable[[], None]) -> None:
        """Call ``on_hint`` with each hint."""
        await called(self._channel.queue_declare, queue=HINTS, exclusive=True, auto_delete=True)
        await self._amqp.consume(self._channel, HINTS, lambda tag, redelivered, body: on_hint(), auto_ack=True)


class EventExchange:
    """Publishes events on a fan-out exchange: one transient message a batch, of the same size as in taskd."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    async def open(self) -> None:
        """Declare the exchange."""
        await called(self._channel.exchange_declare, exchange=FANOUT, exchange_type="fanout")

    def publish(self, what: str, tasks: int) -> None:
        """Publish the events of a batch of tasks."""
        self._channel.basic_publish(FANOUT, "", f"{what} {tasks} ".encode() + b"." * (EVENT_BYTES * tasks))

    async def subscribe(self, amqp: Amqp, on_events: Callable[[str, int], None]) -> None:
        """Call ``on_events`` with the events of all processes."""
        channel = await amqp.channel()
        declared = await called(channel.queue_declare, queue="", exclusive=True, auto_delete=True)
        name = declared.method.queue
        await called(channel.queue_bind, queue=name, exchange=FANOUT)

        def take(tag: int, redelivered: bool, body: bytes) -> None:
            what, tasks, _ = body.split(b" ", 2)
            on_events(what.decode(), int(tasks))

        await amqp.consume(channel, name, take, auto_ack=True)
