"""What taskd declares in RabbitMQ: a durable quorum queue for each work queue, a fan-out exchange for each topic."""

from __future__ import annotations

from typing import Any

from pika import spec
from twisted.logger import Logger

from taskd.broker.rabbitmq.connection import Channel, Connection, ConnectionLost
from taskd.ports.broker import CHANGES, ORDERS

EXCHANGES = {topic: f"taskd.{topic}" for topic in (CHANGES, ORDERS)}
"""The exchange of each topic."""

EVENT_QUEUE = {"x-max-length": 10_000, "x-overflow": "drop-head", "x-message-ttl": 60_000}
"""Arguments of a subscriber's queue: older events are useless to a subscriber that is so late. Time in milliseconds."""


class Topology:
    """Declares exchanges and queues; doing so again is harmless. ``name`` is the server's, for the log."""

    log = Logger()

    def __init__(self, name: str) -> None:
        self._name = name
        self._used_as_is: set[str] = set()

    async def declare_queue(self, connection: Connection, queue: str) -> spec.Queue.DeclareOk:
        """Declare a work queue. The reply counts its ready messages and its consumers. Raises ConnectionLost.

        An existing queue with other properties is used as it is: the store keeps the tasks safe.
        """
        arguments: dict[str, Any] = {"x-queue-type": "quorum"}
        if connection.major_version >= 4:
            # The default of 20 discards messages that were only prefetched together with a crashing task. The store
            # counts attempts, so RabbitMQ need not.
            arguments["x-delivery-limit"] = -1
        try:
            reply = await connection.call("queue_declare", queue=queue, durable=True, arguments=arguments)
        except ConnectionLost as e:
            if e.code != 406:
                raise
            reply = await connection.call("queue_declare", queue=queue, passive=True)
            if queue not in self._used_as_is:
                self._used_as_is.add(queue)
                text = "{name}: queue {queue} exists with other properties and is used as it is: {reason}"
                self.log.warn(text, name=self._name, queue=queue, reason=str(e))
        return reply.method

    async def replace_dead_queue(self, connection: Connection, queue: str, declared: spec.Queue.DeclareOk) -> None:
        """Delete and declare a queue that looks empty and does not answer. Raises ConnectionLost.

        A quorum queue that was declared in the last seconds before RabbitMQ was killed comes back without a leader and
        never gets one (rabbitmq-server issue 15725). Only deleting it helps.
        """
        if queue not in self._used_as_is and not declared.message_count and not declared.consumer_count:
            text = "{name}: queue {queue} has lost its leader, perhaps in a crash: deleting it and declaring it again"
            self.log.warn(text, name=self._name, queue=queue)
            await connection.call("queue_delete", queue=queue)
            await self.declare_queue(connection, queue)


async def declare_exchanges(channel: Channel) -> None:
    """Declare the exchange of each topic. Raises ConnectionLost."""
    for exchange in EXCHANGES.values():
        await channel.call("exchange_declare", exchange=exchange, exchange_type="fanout", durable=True)
