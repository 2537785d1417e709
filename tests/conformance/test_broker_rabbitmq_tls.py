"""RabbitMQ over TLS: the suite, and what is refused."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from taskd.config import RabbitMQ
from tests.conformance import tls_services
from tests.conformance.broker import BrokerTests
from tests.conformance.rabbitmq_case import LoggedCase, RabbitMQCase


class TlsCase(RabbitMQCase):
    """Brokers on a node with TLS, whose certificate and host name are checked."""

    def node(self) -> tls_services.RabbitMQ:
        return tls_services.rabbitmq()

    def settings(self, **settings: Any) -> RabbitMQ:
        """How to reach the server."""
        tls = {"host": "localhost", "port": self.node().tls_port, "tls": True}
        return super().settings(**{**tls, "cafile": tls_services.folder() / "ca.pem", **settings})


class RabbitBrokerOverTls(TlsCase, BrokerTests):
    """The suite."""


class RefusedTests(TlsCase, LoggedCase):
    """One line says why RabbitMQ cannot be used."""

    async def outage(self, **settings: Any) -> str:
        broker = self.make(**settings)
        await broker.start()
        await self.until(lambda: broker.outage, "it says why")
        why = str(broker.outage)
        await Deferred.fromCoroutine(broker.stop())
        self.assertFalse(broker.ready)
        return why

    async def test_another_authority(self) -> None:
        why = await self.outage(cafile=tls_services.folder() / "other.pem")
        self.assertIn("its certificate is from an authority that is not trusted: CN=Services", why)

    async def test_another_host(self) -> None:
        why = await self.outage(host="127.0.0.1")
        self.assertIn("its certificate is for another host: localhost", why)

    async def test_the_port_without_tls(self) -> None:
        self.assertIn("RABBITMQ_TLS and RABBITMQ_PORT", await self.outage(port=self.node().port))

    async def test_a_plain_connection_to_the_port_with_tls(self) -> None:
        """RabbitMQ sends an alert or closes the connection."""
        self.assertTrue(await self.outage(tls=False, cafile=None))


del TlsCase, LoggedCase, RabbitMQCase, BrokerTests
