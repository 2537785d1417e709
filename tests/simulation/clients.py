"""Clients that submit, cancel, list, watch and wait, and check every reply and event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tests.simulation.network import Connection
from tests.simulation.referee import (
    CONFIRMED_EXIST,
    NO_ERROR,
    ONE_REPLY,
    WAIT_ENDED,
    WATCH_ORDER,
    WATCH_STATE,
)

if TYPE_CHECKING:
    from tests.simulation.processes import ServerProcess
    from tests.simulation.world import World

_ENDED = frozenset({"completed", "failed", "cancelled"})
_EXPECTED_ERRORS = frozenset({"unavailable", "draining", "auth_required"})
_TOO_LATE = frozenset({("conflict", "cancel_task"), ("conflict", "retry_task")})
PATIENCE = 20.0
"""Seconds that a client waits for a reply before it tries another server."""


class User(NamedTuple):
    """An account, with a session token."""

    name: str
    id: int
    token: str


class _Request:
    """A request that is not answered yet."""

    __slots__ = ("action", "asked", "done", "fields")

    def __init__(self, action: str, fields: dict[str, Any], asked: float) -> None:
        self.action = action
        self.fields = fields
        self.asked = asked
        self.done: Deferred[dict[str, Any] | None] = Deferred()


class CheckedConnection:
    """One connection of a client. It checks every line that it reads."""

    def __init__(self, client: Client, server: ServerProcess, number: int) -> None:
        self._client = client
        self._referee = client.world.referee
        self._rest = b""
        self._sent = 0
        self._watching = False
        self._draining = False
        self._latest = 0
        self._watched_at = 0.0
        self._seen: dict[int, int] = {}
        self.requests: dict[int, _Request] = {}
        self.over = False
        self.transport = Connection(client.world, server, self, f"{client.name} {number}")

    def request(self, action: str, **fields: Any) -> Deferred[dict[str, Any] | None]:
        """Send a request. Fires with the reply, or with None if the connection ends before the reply."""
        self._sent += 1
        request = _Request(action, fields, self._client.world.clock.seconds())
        if self.over:
            request.done.callback(None)
            return request.done
        self.requests[self._sent] = request
        self._client.note("asks", action, fields)
        self.transport.send(msgspec.json.encode({"action": action, "id": self._sent, **fields}) + b"\n")
        return request.done

    def missing_events(self, since: float) -> list[str]:
        """Changes since this time that this connection should have got and did not get."""
        if not self._watching or self.over:
            return []
        changed = [known for known in self._referee.tasks.values() if known.told > since]
        mine = [known for known in changed if known.text.startswith(f"{self._client.user.name} ")]
        # a task that ended before this watch began may be too old for its snapshot
        mine = [known for known in mine if known.told > self._watched_at or known.task_id in self._seen]
        return [f"task {k.task_id} version {k.version}" for k in mine if self._seen.get(k.task_id) != k.version]

    def close(self) -> None:
        """Close the connection, also with open requests."""
        self.transport.cut()

    # -- Reader

    def data(self, data: bytes) -> None:
        """Bytes from the server."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = msgspec.json.decode(line)
            if "event" in message:
                self._event(message)
            else:
                self._reply(message)
        read_all = not (self._rest or self.requests) and self.transport.all_received
        if read_all and self._watching and not self.transport.is_watched:
            self._referee.fail(WATCH_STATE, f"{self._client.name} watches, and the server sends it no events")

    def lost(self) -> None:
        """The connection is over."""
        if not self.over:
            self.over = True
            self._client.note("loses", "the connection")
            requests, self.requests = self.requests, {}
            for request in requests.values():
                request.done.callback(None)

    # -- received lines

    def _event(self, message: dict[str, Any]) -> None:
        kind, client = message["event"], self._client
        if kind in ("progress", "log", "returned"):
            client.note("receives", f"{kind} of task {message['task_id']}")
            if not self._watching:
                self._referee.fail(WATCH_STATE, f"{client.name} does not watch, and gets {message}")
            return
        if kind != "task":
            client.note("receives", kind)
            self._watching = False
            self._draining = self._draining or kind == "draining"
            return
        view = message["task"]
        client.note("receives", f"task {view['id']} is {view['state']}, version {view['version']}")
        self._referee.saw(client.user.name, view)
        if not self._watching:
            self._referee.fail(WATCH_STATE, f"{client.name} does not watch, and gets an event of task {view['id']}")
        before = self._seen.get(view["id"], 0)
        if view["version"] <= before:
            what = f"task {view['id']} version {view['version']} after {before}"
            self._referee.fail(WATCH_ORDER, f"{client.name} gets {what}")
        self._seen[view["id"]] = view["version"]

    def _reply(self, message: dict[str, Any]) -> None:
        request, client = self.requests.pop(message.get("id", 0), None), self._client
        if request is None:
            self._referee.fail(ONE_REPLY, f"{client.name} reads {message}, which answers nothing")
            return
        client.note("reads", f"{request.action}: {message['status']}", message.get("code", ""))
        for view in [*message.get("tasks", ()), *([message["task"]] if "task" in message else ())]:
            self._referee.saw(client.user.name, view)
        if message.get("code") == "draining":
            self._draining, self._watching = True, False
        if message["ok"]:
            self._check(message.get("id", 0), request, message)
        elif message["code"] == "not_found":
            self._referee.fail(CONFIRMED_EXIST, f"{client.name} asks {request.action} {request.fields}: not found")
        elif message["code"] not in _EXPECTED_ERRORS and (message["code"], request.action) not in _TOO_LATE:
            self._referee.fail(NO_ERROR, f"{client.name} asks {request.action} {request.fields}: {message}")
        request.done.callback(message)

    def _check(self, number: int, request: _Request, message: dict[str, Any]) -> None:
        action = request.action
        if action == "new_task":
            self._client.created([message["task_id"]], [request.fields])
        elif action == "new_tasks":
            self._client.created(message["task_ids"], request.fields["tasks"])
        elif action == "watch":
            # of two requests, the later one counts
            if number > self._latest:
                self._latest, self._watching = number, not self._draining
                self._seen = {view["id"]: view["version"] for view in message["tasks"]}
                self._watched_at = self._client.world.clock.seconds()
        elif action == "unwatch":
            if number > self._latest:
                self._latest, self._watching = number, False
        elif action == "explain":
            self._client.world.holders.bounds.explained(message, request.asked)
        elif action == "wait" and message["done"]:
            left = [view["id"] for view in message["tasks"] if view["state"] not in _ENDED]
            if left or len(message["tasks"]) != len(request.fields["task_ids"]):
                self._referee.fail(WAIT_ENDED, f"{self._client.name} reads {message}")


class Client:
    """A program of a user. It connects to one server after another."""

    def __init__(self, world: World, name: str, user: User, tasks: int) -> None:
        self.world = world
        self.name = name
        self.user = user
        self.mine: list[int] = []
        """Tasks whose creation was confirmed to it."""
        self.finished = False
        """Whether a reply has shown it that all of them have ended."""
        self._left = tasks
        self._unconfirmed: list[tuple[str, dict[str, Any]]] = []
        """Requests with keys that may have been stored: it can repeat them."""
        self._texts = 0
        self._extra_tasks = 3
        self._connections = 0
        self._stream = world.stream(name)
        self.connection: CheckedConnection | None = None

    def start(self) -> None:
        """Start the client."""
        Deferred.fromCoroutine(self._run()).addErrback(self._broken)

    def note(self, what: str, *detail: Any) -> None:
        """Write a line to the log of the game."""
        self.world.note(self.name, what, *detail)

    def created(self, task_ids: list[int], specs: list[dict[str, Any]]) -> None:
        """The server has confirmed these tasks."""
        for task_id, spec in zip(task_ids, specs, strict=True):
            if task_id not in self.mine:
                self.mine.append(task_id)
            self.world.referee.was_confirmed(task_id, spec["task"])

    def _broken(self, failure: Failure) -> None:
        self.world.referee.fail(NO_ERROR, f"{self.name}: {failure.getTraceback()}")

    async def _sleep(self, seconds: float) -> None:
        await deferLater(self.world.clock, seconds)

    async def _run(self) -> None:
        await self._sleep(self._stream.random())
        while not self.world.closing:
            server = self.world.random_server(self._stream)
            if server is not None:
                self._connections += 1
                connection = self.connection = CheckedConnection(self, server, self._connections)
                login = connection.request("login", token=self.user.token)
                if self._stream.random() < 0.3:
                    # it does not wait for the login: the server begins later requests after it
                    connection.request("watch")
                    await self._close_early(connection)
                reply = await self._reply_in_time(login)
                if reply is not None and reply["ok"]:
                    await (self._play(connection) if self.world.rates else self._finish(connection))
                if not self.world.closing:
                    connection.close()
            await self._sleep(self._stream.uniform(0.05, 1.0))

    async def _close_early(self, connection: CheckedConnection) -> None:
        if self._stream.random() < 0.2:
            await self._sleep(self._stream.expovariate(50))
            connection.close()

    async def _reply_in_time(self, reply: Deferred[Any]) -> Any:
        """The reply, or None if it does not arrive in time."""
        done: Deferred[Any] = Deferred()
        timer = self.world.clock.callLater(PATIENCE, done.callback, None)

        def answered(message: Any) -> None:
            if timer.active():
                timer.cancel()
                done.callback(message)

        reply.addCallback(answered)
        return await done

    # -- while faults occur

    async def _play(self, connection: CheckedConnection) -> None:
        stream = self._stream
        for _ in range(stream.randint(5, 40)):
            if connection.over or not self.world.rates:
                return
            reply = self._act(connection)
            if stream.random() < 0.3:
                await self._reply_in_time(reply)
            if stream.random() < self.world.plan.rates.slow_reader * 0.1:
                connection.transport.read(False)
                self.world.clock.callLater(stream.uniform(0.5, 5.0), connection.transport.read, True)
            await self._sleep(stream.expovariate(self.world.plan.pace))
        if stream.random() < 0.3:
            connection.transport.half_close()
            await self._sleep(stream.uniform(0, 3.0))

    def _act(self, connection: CheckedConnection) -> Deferred[Any]:
        stream = self._stream
        if self._unconfirmed and stream.random() < 0.4:
            return self._submit(connection, *self._unconfirmed.pop(stream.randrange(len(self._unconfirmed))))
        if self._left > 0 and stream.random() < self.world.plan.eager:
            keyed = stream.random() < 0.5
            action, fields = "new_task", self._spec(keyed)
            if stream.random() < 0.4:
                more = [self._spec(keyed) for _ in range(stream.randint(0, 9))]
                action, fields = "new_tasks", {"tasks": [fields, *more]}
            if keyed and stream.random() < 0.1:
                self._submit(connection, action, fields)
            return self._submit(connection, action, fields)
        kind = stream.random()
        if kind < 0.2:
            if stream.random() < 0.2:
                self._watch(connection)
            return self._watch(connection)
        if kind < 0.4 or not self.mine:
            return connection.request("get_tasks", limit=stream.choice((3, 10, 100)))
        if kind < 0.5:
            action = stream.choice(("get_task", "get_task", "explain", "get_log"))
            return connection.request(action, task_id=stream.choice(self.mine))
        if kind < 0.58:
            return connection.request("retry_task", task_id=stream.choice(self.mine))
        if kind < 0.7:
            return connection.request("cancel_task", task_id=stream.choice(self.mine))
        some = sorted(set(stream.choices(self.mine, k=5)))
        return connection.request("wait", task_ids=some, timeout=stream.choice((0, 3, 30)))

    def _watch(self, connection: CheckedConnection) -> Deferred[Any]:
        if self._stream.random() < 0.25:
            return connection.request("unwatch")
        return connection.request("watch", limit=self._stream.choice((3, 10, 100)))

    def _submit(self, connection: CheckedConnection, action: str, fields: dict[str, Any]) -> Deferred[Any]:
        """Submit tasks, or repeat a request with keys."""

        def answered(message: dict[str, Any] | None) -> dict[str, Any] | None:
            keyed = all("key" in spec for spec in fields.get("tasks", [fields]))
            if keyed and (message is None or not message["ok"]):
                self._unconfirmed.append((action, fields))
            return message

        return connection.request(action, **fields).addCallback(answered)

    def _spec(self, keyed: bool) -> dict[str, Any]:
        stream = self._stream
        self._left -= 1
        self._texts += 1
        longest = stream.uniform(0, self.world.plan.longest_task)
        payload: dict[str, Any] = {"seconds": stream.choice((0, stream.uniform(0, 0.3), longest, longest))}
        for what, share in (("fails", 0.1), ("unstorable", 0.05), ("stubborn", 0.2), ("talks", 0.3)):
            if stream.random() < share:
                payload[what] = True
        if self.world.plan.poison and stream.random() < 0.05:
            payload["kills"] = True
        spec: dict[str, Any] = {
            "task": f"{self.user.name} {self.name} {self._texts}",
            "payload": payload,
            "queue": stream.choice(self.world.plan.queues),
            "max_attempts": stream.choice((None, 1, 2, 3, 5)),
        }
        if stream.random() < 0.2:
            spec["kind"] = "rare"
        if stream.random() < 0.1:
            spec["delay"] = stream.uniform(0, 5.0)
        if stream.random() < 0.1:
            spec["timeout"] = stream.uniform(0.1, 2.0)
        return {**spec, "key": f"{self.name} {self._texts}"} if keyed else spec

    # -- after the last fault

    async def _finish(self, connection: CheckedConnection) -> None:
        connection.request("watch")
        while self._unconfirmed:
            reply = await self._reply_in_time(self._submit(connection, *self._unconfirmed.pop()))
            if reply is None or not reply["ok"]:
                return
        while self._extra_tasks and self.world.plan.extra_tasks:
            await self._sleep(max(self.world.last_effects - self.world.clock.seconds(), self._stream.random()))
            reply = await self._reply_in_time(self._submit(connection, "new_task", self._spec(True)))
            if reply is None or not reply["ok"]:
                return
            self._extra_tasks -= 1
        for start in range(0, len(self.mine), 30):
            connection.request("explain", task_id=self._stream.choice(self.mine))
            reply = await self._reply_in_time(
                connection.request("wait", task_ids=self.mine[start : start + 30], timeout=15)
            )
            if reply is None or not reply["ok"] or not reply["done"]:
                return
        self.finished = True
        while not (connection.over or self.world.closing):
            await self._sleep(0.5)
