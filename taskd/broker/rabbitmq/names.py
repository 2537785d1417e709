"""The names of what taskd declares in RabbitMQ. Nothing of it stays when the daemons are gone."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress

from taskd.broker.rabbitmq.connection import Channel, Connection, ConnectionLost

EVENTS = "events"
"""The routing key of event batches."""

NOTHING = "nothing"
"""A key that no message has: the binding of a process that only sends keeps the exchange."""

BIND_SECONDS = 10.0
"""How often a queue is bound again, in case somebody deleted its exchange: RabbitMQ does not tell."""

BIND_ATTEMPTS = 5
"""How often the exchange is declared again that went away before a queue was bound to it."""

_NOT_FOUND = 404
_QUEUE_BYTES = 200
"""AMQP allows 255 for a name; a part of it is random."""


def hint_key(worker: str) -> str:
    """The routing key of the hints for a worker."""
    return f"worker.{worker}"


class Names:
    """All names begin with ``taskd.`` and the id of the ``installation``, so that several installations share a
    RabbitMQ and hear nothing of each other. The id is asked for when a connection is set up."""

    def __init__(self, installation: Callable[[], str]) -> None:
        self._installation = installation

    @property
    def exchange(self) -> str:
        """The direct exchange of all messages. RabbitMQ deletes it with its last binding."""
        return f"taskd.{self._installation()}.messages"

    def queue(self, purpose: str) -> str:
        """A name for a new exclusive queue, for people who look at RabbitMQ. RabbitMQ keeps the queue of a connection
        that was cut until it misses heartbeats, so each queue has another name."""
        readable = f"taskd.{self._installation()}.{purpose}".encode()[:_QUEUE_BYTES].decode(errors="ignore")
        return f"{readable}.{secrets.token_hex(8)}"

    async def consume(
        self,
        channel: Channel,
        purpose: str,
        key: str,
        on_message: Callable[[int, bool, bytes], None],
        arguments: Mapping[str, object],
    ) -> str:
        """Consume from a new exclusive queue, which lives as long as its channel and gets the messages with this
        routing key. Returns its name. Raises ConnectionLost."""
        queue = self.queue(purpose)
        # a default queue type of the virtual host must not change it
        arguments = {"x-queue-type": "classic", **arguments}
        await channel.call("queue_declare", queue=queue, exclusive=True, auto_delete=True, arguments=arguments)
        await self.bind(channel.connection, queue, key)
        await channel.consume(queue, on_message, auto_ack=True)
        return queue

    async def bind(self, connection: Connection, queue: str, key: str) -> None:
        """Bind a queue of this connection to the exchange. Raises ConnectionLost."""
        for attempt in range(1, BIND_ATTEMPTS + 1):
            # on channels of their own, because a refusal closes the channel
            exchange = self.exchange
            await connection.call("exchange_declare", exchange=exchange, exchange_type="direct", auto_delete=True)
            try:
                await connection.call("queue_bind", queue=queue, exchange=exchange, routing_key=key)
            except ConnectionLost as e:
                if e.code != _NOT_FOUND:
                    # one that never had a binding would stay
                    with suppress(ConnectionLost):
                        await connection.call("exchange_delete", exchange=exchange, if_unused=True)
                    raise
                if attempt == BIND_ATTEMPTS:
                    raise
            else:
                return

    async def bind_again(self, connection: Connection, queue: str, key: str) -> bool:
        """The same for a queue that should be bound already. Returns whether the exchange was missing. Raises
        ConnectionLost."""
        missing = False
        try:
            await connection.call("exchange_declare", exchange=self.exchange, passive=True)
        except ConnectionLost as e:
            missing = e.code == _NOT_FOUND
        await self.bind(connection, queue, key)
        return missing
