"""What taskd declares in RabbitMQ: durable quorum queues for work, a fan-out exchange for each topic of news."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from twisted.logger import Logger

from taskd.broker.rabbitmq.connection import Channel, Connection, ConnectionLost
from taskd.ports.broker import CHANGES, ORDERS

EXCHANGES = {topic: f"taskd.{topic}" for topic in (CHANGES, ORDERS)}
"""The exchanges for news."""

NEWS_QUEUE = {"x-max-length": 10_000, "x-overflow": "drop-head", "x-message-ttl": 60_000}
"""News are of no use to a subscriber that is this far behind. Time in milliseconds."""


class Declared(NamedTuple):
    """What RabbitMQ says of a queue: messages that are ready, and consumers."""

    messages: int
    consumers: int


class Topology:
    """Declares queues, however often. ``name`` of the server stands in the log."""

    log = Logger()

    def __init__(self, name: str) -> None:
        self._name = name
        self._taken_as_is: set[str] = set()

    async def declare(self, connection: Connection, queues: Sequence[str]) -> None:
        """Declare everything on a new connection. Raises Lost."""
        channel = await connection.open_channel()
        await declare_exchanges(channel)
        channel.close(ConnectionLost("done"))
        for queue in queues:
            await self.declare_queue(connection, queue)

    async def declare_queue(self, connection: Connection, queue: str) -> Declared:
        """Declare a work queue, on a channel of its own. Raises Lost.

        A queue that is there already but of another kind is taken as it is: the store keeps the tasks safe.
        """
        arguments: dict[str, Any] = {"x-queue-type": "quorum"}
        if connection.version >= (4,):
            # its default of 20 would throw away messages that were only near a crashing task; the store counts attempts
            arguments["x-delivery-limit"] = -1
        channel = await connection.open_channel()
        try:
            raw = channel.raw
            reply = await channel.call(raw.queue_declare, queue=queue, durable=True, arguments=arguments)
        except ConnectionLost as e:
            if e.code != 406:
                raise
            channel = await connection.open_channel()
            reply = await channel.call(channel.raw.queue_declare, queue=queue, passive=True)
            if queue not in self._taken_as_is:
                self._taken_as_is.add(queue)
                text = "{name}: queue {queue} was there before and is used as it is: {reason}"
                self.log.warn(text, name=self._name, queue=queue, reason=str(e))
        channel.close(ConnectionLost("done"))
        return Declared(reply.method.message_count, reply.method.consumer_count)

    async def revive_queue(self, connection: Connection, queue: str, declared: Declared) -> None:
        """Make a queue anew that looks empty and does not answer. Raises Lost.

        A quorum queue that was declared in the last seconds before RabbitMQ was killed comes back without a leader, and
        never gets one (rabbitmq-server issue 15725): only its being deleted helps.
        """
        if queue not in self._taken_as_is and declared == Declared(0, 0):
            text = "{name}: queue {queue} has lost its leader, perhaps in a crash: deleting it and making it anew"
            self.log.warn(text, name=self._name, queue=queue)
            channel = await connection.open_channel()
            await channel.call(channel.raw.queue_delete, queue=queue)
            channel.close(ConnectionLost("done"))
            await self.declare_queue(connection, queue)


async def declare_exchanges(channel: Channel) -> None:
    """Declare the exchanges for news. Raises Lost."""
    for exchange in EXCHANGES.values():
        await channel.call(channel.raw.exchange_declare, exchange=exchange, exchange_type="fanout", durable=True)
