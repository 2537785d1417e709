"""What each action does. One method an action, bound to the registry of :mod:`taskd.wire.actions` by its name."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from twisted.internet.interfaces import IReactorTime

from taskd import __version__
from taskd.errors import AuthRequired, BadRequest, NotFound, TooLarge
from taskd.model import (
    SHOWN_STATES,
    STATUSES,
    TERMINAL,
    NewTask,
    Task,
    User,
    check_kind,
    check_task_text,
    encode_json,
)
from taskd.ports import ITaskStore, TaskQuery
from taskd.server.accounts import Accounts
from taskd.server.announcer import Announcer
from taskd.server.hub import Hub, Watch
from taskd.server.submission import Submitter
from taskd.wire import limits
from taskd.wire import messages as m
from taskd.wire.actions import ACTIONS, Access, Action

RECHECK = 10.0
"""Seconds after which a wait looks into the store by itself: news are not promised to arrive."""


@dataclass
class Peer:
    """Who is at the other end of a connection. ``send`` takes event lines."""

    send: Callable[[bytes], None]
    user: User | None = None
    token: str | None = None
    watch: Watch | None = None
    waits: set[Any] = field(default_factory=set)
    leaving: bool = False

    def unwatch(self) -> None:
        """Send no more events."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None

    def gone(self) -> None:
        """The connection is lost or about to close: nobody waits any more."""
        self.leaving = True
        self.unwatch()
        for wait in tuple(self.waits):
            wait.wake()


class Then(NamedTuple):
    """A reply, and what is to be done once it has been sent."""

    reply: m.Reply
    after: Callable[[], None]


Answer = m.Reply | Then
SUCCESS: m.Reply = {"status": "success"}


class Actions:
    """The handlers. Each gets the peer and the typed request, and answers or raises a TaskdError."""

    def __init__(
        self,
        clock: IReactorTime,
        store: ITaskStore,
        accounts: Accounts,
        submitter: Submitter,
        hub: Hub,
        announcer: Announcer,
        queues: Sequence[str],
        node: str,
    ) -> None:
        self._clock = clock
        self._store = store
        self._accounts = accounts
        self._submitter = submitter
        self._hub = hub
        self._announcer = announcer
        self._queues = tuple(queues)
        self._node = node
        self._handlers: dict[str, Callable[[Peer, Any], Awaitable[Answer]]] = {
            name: getattr(self, name) for name in ACTIONS
        }

    async def perform(self, peer: Peer, action: Action, request: Any) -> Answer:
        """Check who may, then do it. Raises TaskdError."""
        if action.access is Access.USER and peer.user is None:
            raise AuthRequired(f"log in first: {action.name} is for a logged-in user")
        return await self._handlers[action.name](peer, request)

    # who and what is there

    async def hello(self, peer: Peer, request: m.Nothing) -> Answer:
        return {
            "status": "success",
            "server": "taskd",
            "version": __version__,
            "protocol": limits.PROTOCOL_VERSION,
            "node": self._node,
            "queues": self._queues,
            "actions": list(ACTIONS),
            "limits": {
                "line_bytes": limits.MAX_LINE_BYTES,
                "reply_bytes": limits.MAX_REPLY_BYTES,
                "batch": limits.MAX_BATCH,
                "page": limits.MAX_PAGE,
                "wait_seconds": limits.MAX_WAIT_SECONDS,
                "pipeline": limits.MAX_PIPELINE,
            },
        }

    async def ping(self, peer: Peer, request: m.Nothing) -> Answer:
        return SUCCESS

    # accounts

    async def register(self, peer: Peer, request: m.Register) -> Answer:
        user = await self._accounts.register(request.username, request.password)
        return {"status": "success", "user_id": user.id, "username": user.username}

    async def login(self, peer: Peer, request: m.Login) -> Answer:
        if request.token is not None:
            user, token = await self._accounts.resume(request.token), request.token
        elif request.username is not None and request.password is not None:
            user, token = await self._accounts.login(request.username, request.password)
        else:
            missing = "username" if request.username is None else "password"
            raise BadRequest(f"{missing} is missing: log in with username and password, or with a token", field=missing)
        peer.unwatch()
        peer.user, peer.token = user, token
        return {
            "status": "logged_in",
            "token": token,
            "user_id": user.id,
            "username": user.username,
            "expires_in": self._accounts.session_seconds,
        }

    async def logout(self, peer: Peer, request: m.Nothing) -> Answer:
        if peer.token is not None:
            await self._accounts.forget(peer.token)
        peer.unwatch()
        peer.user = peer.token = None
        return SUCCESS

    async def whoami(self, peer: Peer, request: m.Nothing) -> Answer:
        user = _user(peer)
        return {"status": "success", "user_id": user.id, "username": user.username}

    # tasks

    async def new_task(self, peer: Peer, request: m.TaskSpec) -> Answer:
        (task,) = await self._submitter.submit(_user(peer).id, (self._spec(request),))
        return {"status": "task_created", "task_id": task.id}

    async def new_tasks(self, peer: Peer, request: m.NewTasks) -> Answer:
        _check_count(request.tasks, "tasks")
        specs = []
        for n, spec in enumerate(request.tasks):
            try:
                specs.append(self._spec(spec))
            except (BadRequest, TooLarge) as e:
                where = f"tasks[{n}]"
                raise type(e)(f"{where}: {e.message}", field=f"{where}.{e.field}") from None
        tasks = await self._submitter.submit(_user(peer).id, specs)
        return {"status": "task_created", "task_ids": [task.id for task in tasks]}

    async def get_tasks(self, peer: Peer, request: m.GetTasks) -> Answer:
        _check_choice(request.status, STATUSES, "status")
        _check_choice(request.state, SHOWN_STATES, "state")
        query = TaskQuery(request.limit, _before(request.cursor), request.status, request.state, request.kind)
        page = await self._store.list_tasks(_user(peer).id, query)
        cursor = None if page.before is None else _cursor(page.before)
        status = "success" if page.tasks or cursor else "no_tasks"
        return {"status": status, "tasks": self._views(page.tasks), "cursor": cursor}

    async def get_task(self, peer: Peer, request: m.OneTask) -> Answer:
        (task,) = await self._mine(peer, [request.task_id])
        return {"status": "success", "task": m.view(task, self._announcer.now(), full=True)}

    async def cancel_task(self, peer: Peer, request: m.OneTask) -> Answer:
        task = await self._store.cancel(_user(peer).id, request.task_id)
        self._announcer.announce([task])
        return {"status": "success", "task": m.view(task, self._announcer.now())}

    # live

    async def watch(self, peer: Peer, request: m.Watch) -> Answer:
        peer.unwatch()
        user = _user(peer)
        watch = peer.watch = self._hub.watch(user.id, peer.send)
        try:
            page = await self._store.list_tasks(user.id, TaskQuery(request.limit))
        except BaseException:
            watch.close()
            raise
        return Then({"status": "success", "tasks": self._views(page.tasks)}, lambda: watch.open(page.tasks))

    async def unwatch(self, peer: Peer, request: m.Nothing) -> Answer:
        peer.unwatch()
        return SUCCESS

    async def wait(self, peer: Peer, request: m.Wait) -> Answer:
        _check_count(request.task_ids, "task_ids")
        ids = list(dict.fromkeys(request.task_ids))
        deadline = self._clock.seconds() + request.timeout
        wait = self._hub.wait(ids)
        peer.waits.add(wait)
        try:
            while True:
                tasks = await self._mine(peer, ids)
                done = all(task.state in TERMINAL for task in tasks)
                left = deadline - self._clock.seconds()
                if done or left <= 0 or peer.leaving:
                    return {"status": "success", "done": done, "tasks": self._views(tasks)}
                wait.ended([task.id for task in tasks if task.state in TERMINAL])
                timer = self._clock.callLater(min(left, RECHECK), wait.wake)
                await wait.changed
                if timer.active():
                    timer.cancel()
                wait.rearm()
        finally:
            peer.waits.discard(wait)
            wait.close()

    # what they share

    def _spec(self, spec: m.TaskSpec) -> NewTask:
        queue = spec.queue
        if queue is None:
            queue = self._queues[0]
        elif queue not in self._queues:
            raise BadRequest(f"there is no queue {queue!r} here; known are: {', '.join(self._queues)}", field="queue")
        payload = encode_json(spec.payload, limits.MAX_LINE_BYTES, "payload") if spec.payload else "{}"
        return NewTask(check_task_text(spec.task), check_kind(spec.kind), payload, queue, spec.max_attempts)

    async def _mine(self, peer: Peer, ids: Sequence[int]) -> Sequence[Task]:
        found = {task.id: task for task in await self._store.get_tasks(_user(peer).id, ids)}
        for task_id in ids:
            if task_id not in found:
                raise NotFound(f"you have no task {task_id}", field="task_id")
        return [found[task_id] for task_id in ids]

    def _views(self, tasks: Sequence[Task]) -> list[m.TaskView]:
        now = self._announcer.now()
        return [m.view(task, now) for task in tasks]


def _user(peer: Peer) -> User:
    if peer.user is None:
        raise AuthRequired("log in first")
    return peer.user


def _check_count(items: Sequence[Any], name: str) -> None:
    if not items:
        raise BadRequest(f"{name} must not be empty", field=name)
    if len(items) > limits.MAX_BATCH:
        raise TooLarge(f"{name} must have at most {limits.MAX_BATCH} entries, not {len(items)}", field=name)


def _check_choice(value: str | None, choices: Sequence[str], name: str) -> None:
    if value is not None and value not in choices:
        raise BadRequest(f"{name} must be one of: {', '.join(choices)}", field=name)


def _cursor(before: int) -> str:
    return base64.urlsafe_b64encode(b"b%d" % before).decode().rstrip("=")


def _before(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        if raw[:1] == b"b" and raw[1:].isdigit() and len(raw) < 21:
            return int(raw[1:])
    except (ValueError, binascii.Error):
        pass
    raise BadRequest("cursor is not one of ours; leave it out to begin at the newest", field="cursor")
