"""Several installations at one RabbitMQ, what taskd leaves there, and what RabbitMQ refuses."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults

from taskd.broker.rabbitmq.connection import Connection, ConnectionLost
from taskd.broker.rabbitmq.names import BIND_ATTEMPTS, EVENTS, Names
from tests import services
from tests.conformance.broker_case import Inbox
from tests.conformance.rabbitmq_case import LoggedCase

ALL = (".*", ".*", ".*")
"""Permissions to configure, write and read."""


class InstallationCase(LoggedCase):
    """A virtual host, and brokers on it."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        self.vhost = services.unique("vhost")
        self.user = services.unique("user")
        await self.ctl("add_vhost", self.vhost)
        await self.ctl("add_user", self.user, "secret")

    async def permit(self, *permissions: str) -> None:
        """What the user may configure, write and read."""
        await self.ctl("set_permissions", "-p", self.vhost, self.user, *permissions)

    async def start(self, installation: str = "one", **settings: Any) -> Any:
        """A broker of the user that need not become ready."""
        account = {"user": self.user, "password": "secret", "vhost": self.vhost}
        broker = self.make(installation, **{**account, **settings})
        await broker.start()
        return broker

    async def ready(self, installation: str = "one") -> Any:
        """A broker that is ready."""
        broker = await self.start(installation)
        await self.until(lambda: broker.ready, "ready")
        return broker

    async def found(self, what: str) -> list[str]:
        """The names of all queues or exchanges of the virtual host, without those that RabbitMQ makes itself."""
        names = (await self.ctl(f"list_{what}", "-p", self.vhost, "name")).splitlines()
        return sorted(name for name in names if name and not name.startswith("amq."))


class InstallationTests(InstallationCase):
    """Brokers of several installations."""

    async def setUp(self) -> None:  # type: ignore[override]
        await super().setUp()
        await self.permit(*ALL)

    async def test_two_installations_hear_nothing_of_each_other(self) -> None:
        names = ("one", "two")
        brokers = [await self.ready(name) for name in names]
        inboxes = [await self.receive(broker=broker) for broker in brokers]
        heard: list[list[bytes]] = [[], []]
        for broker, list_ in zip(brokers, heard, strict=True):
            broker.subscribe(list_.append, lambda: None)
            await self.until(lambda broker=broker: broker.consuming, "the subscriptions")  # type: ignore[misc]
        brokers[0].hint([self.worker], orders=True)
        for name, broker in zip(names, brokers, strict=True):
            broker.announce(name.encode())
        await self.until(lambda: all(heard) and inboxes[0].got, "the events and the hint")
        # those of the other would have come before these
        for broker in brokers:
            broker.announce(b"last")
            broker.hint([self.worker])
        await self.until(lambda: all(list_[-1] == b"last" for list_ in heard) and inboxes[1].got, "the last ones")
        self.assertEqual(heard, [[b"one", b"last"], [b"two", b"last"]])
        self.assertEqual((True in inboxes[0].got, inboxes[1].got), (True, [False]))
        # to lose one means nothing to the other
        await brokers[0].stop()
        brokers[1].hint([self.worker], orders=True)
        await self.until(lambda: inboxes[1].got[-1], "a hint")
        self.assertEqual(self.lines, [])

    async def test_all_names_carry_the_installation(self) -> None:
        broker = await self.ready("Staging-2")
        await self.receive(broker=broker)
        broker.subscribe(lambda body: None, lambda: None)
        await self.until(lambda: broker.consuming, "consuming")
        names = await self.found("queues") + await self.found("exchanges")
        self.assertEqual([name for name in names if not name.startswith("taskd.Staging-2.")], [])
        self.assertEqual(len(names), 4, names)

    async def test_daemons_come_while_the_last_ones_go(self) -> None:
        async def live() -> None:
            broker = await self.start()
            broker.subscribe(lambda body: None, lambda: None)
            await self.until(lambda: broker.ready and broker.consuming, "ready", 30)
            await broker.stop()

        for _ in range(5):
            await gatherResults([Deferred.fromCoroutine(live()) for _ in range(8)], consumeErrors=True)
        self.assertEqual(self.lines, [])
        self.assertEqual(await self.found("exchanges"), [])


class RefusalTests(InstallationCase):
    """RabbitMQ's reason stands in one line, and the broker comes when the reason has gone."""

    async def refused(self, *parts: str, **settings: Any) -> Any:
        """A broker that uses all that RabbitMQ has, and is refused for some seconds with one line."""
        broker = await self.start(**settings)
        inbox = Inbox(self.worker)
        broker.receive_hints(self.worker, inbox.hint, inbox.lose)
        broker.subscribe(lambda body: None, lambda: None)
        attempts = self.seconds() + 2
        await self.until(lambda: self.lines and self.seconds() > attempts, "the refusal is logged")
        self.the_line(f"RabbitMQ at {self.node().host}:{self.node().port}: ", *parts, "; retrying")
        return broker

    async def comes(self, broker: Any) -> None:
        """Wait until everything works, without one more line."""
        await self.until(lambda: broker.ready and broker.consuming, "ready", 20)
        self.assertEqual((self.lines, broker.outage), ([], None))

    async def test_unknown_virtual_host(self) -> None:
        vhost = services.unique("vhost")
        broker = await self.refused(f"NOT_ALLOWED - vhost {vhost} not found", "(see RABBITMQ_VHOST)", vhost=vhost)
        await self.ctl("add_vhost", vhost)
        await self.ctl("set_permissions", "-p", vhost, self.user, *ALL)
        await self.comes(broker)

    async def test_virtual_host_of_others(self) -> None:
        reason = f"NOT_ALLOWED - access to vhost '{self.vhost}' refused for user '{self.user}'"
        broker = await self.refused(reason, "(see RABBITMQ_VHOST)")
        await self.permit(*ALL)
        await self.comes(broker)

    async def test_no_permissions(self) -> None:
        hint = "(see the permissions of RABBITMQ_USER)"
        for permissions in (("^$", "^$", "^$"), (".*", "^$", ".*"), (".*", ".*", "^$")):
            await self.permit(*permissions)
            broker = await self.refused("ACCESS_REFUSED - access to ", f"refused for user '{self.user}'", hint)
            await self.permit(*ALL)
            await self.comes(broker)
            await broker.stop()

    async def test_permissions_for_the_names_of_one_installation(self) -> None:
        await self.permit(r"^taskd\.one\.", r"^(taskd\.one\.|amq\.default$)", r"^taskd\.one\.")
        broker = await self.ready()
        inbox = await self.receive(broker=broker)
        received: list[bytes] = []
        broker.subscribe(received.append, lambda: None)
        await self.until(lambda: broker.announce(b"x") or received, "an event")
        await self.until(lambda: broker.hint([self.worker]) or inbox.got, "a hint")
        self.assertEqual(self.lines, [])
        await self.refused("ACCESS_REFUSED", installation="two")


class _Vanishing:
    """A connection and its channels. The exchange goes away before the queue is bound, so many times."""

    def __init__(self, times: int, code: int = 404) -> None:
        self.times = times
        self.code = code
        self.calls: list[str] = []

    async def call(self, method: str, **arguments: Any) -> None:
        self.calls.append(method)
        if method == "queue_bind" and self.times:
            self.times -= 1
            raise ConnectionLost("no exchange", self.code)


class BindTests(LoggedCase):
    """Binding a queue to an exchange that goes away."""

    async def bind(self, connection: _Vanishing) -> None:
        await Names(lambda: "one").bind(cast(Connection, connection), "q", EVENTS)

    async def test_it_is_declared_again(self) -> None:
        connection = _Vanishing(BIND_ATTEMPTS - 1)
        await self.bind(connection)
        self.assertEqual(connection.calls, ["exchange_declare", "queue_bind"] * BIND_ATTEMPTS)

    async def test_not_for_ever(self) -> None:
        connection = _Vanishing(99)
        with self.assertRaisesRegex(ConnectionLost, "no exchange"):
            await self.bind(connection)
        self.assertEqual(connection.calls, ["exchange_declare", "queue_bind"] * BIND_ATTEMPTS)

    async def test_an_exchange_that_nobody_may_use_does_not_stay(self) -> None:
        connection = _Vanishing(99, 403)
        with self.assertRaisesRegex(ConnectionLost, "no exchange"):
            await self.bind(connection)
        self.assertEqual(connection.calls, ["exchange_declare", "queue_bind", "exchange_delete"])


del InstallationCase, LoggedCase
