"""What each action does. One method an action, bound to the registry of :mod:`taskd.protocol.actions` by its name."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from twisted.internet.interfaces import IReactorTime

from taskd import __version__
from taskd.api.accounts import Accounts
from taskd.api.log_follow import Follow
from taskd.api.log_pages import log_cursor, place_of, read_lines, read_tail, view_lines
from taskd.api.peer import SUCCESS, Answer, Peer, Then
from taskd.events.hub import Hub, Wait
from taskd.events.publisher import Publisher
from taskd.model.errors import AuthRequired, BadRequest, NotFound, RateLimited, TooLarge, quote
from taskd.model.json_text import encode_json
from taskd.model.limits import DEFAULT_ATTEMPTS, MAX_DELAY_SECONDS
from taskd.model.states import SHOWN_STATES, STATUSES, TERMINAL
from taskd.model.tasks import DEFAULT_KIND, NewTask, Route, Task, check_key, check_kind, check_task_text, shown_state
from taskd.model.users import User
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.ports.tasks import TaskQuery
from taskd.protocol import limits
from taskd.protocol import messages as m
from taskd.protocol.actions import ACTIONS, Access, Action
from taskd.protocol.views import TaskView, view
from taskd.scheduling.explain import explain
from taskd.scheduling.routes import Routes
from taskd.scheduling.submission import Submitter
from taskd.scheduling.window import Windows

RECHECK = 10.0
"""Seconds after which a wait looks into the store by itself: news are not promised to arrive."""

LOOK = 50
"""Tasks that a wait reads at a time: each may bring a result of 256 KiB."""


class Actions:
    """The handlers. Each gets the peer and the typed request, and answers or raises a TaskdError."""

    def __init__(
        self,
        clock: IReactorTime,
        store: IStore,
        broker: IBroker,
        accounts: Accounts,
        submitter: Submitter,
        hub: Hub,
        publisher: Publisher,
        windows: Windows,
        routes: Routes,
        node: str,
    ) -> None:
        self._clock = clock
        self._store = store
        self._broker = broker
        self._accounts = accounts
        self._submitter = submitter
        self._hub = hub
        self._publisher = publisher
        self._windows = windows
        self._routes = routes
        self._node = node
        self._handlers: dict[str, Callable[[Peer, Any], Awaitable[Answer]]] = {
            name: getattr(self, name) for name in ACTIONS
        }

    def perform(self, peer: Peer, action: Action, request: Any) -> Awaitable[Answer]:
        """Check who may, then do it. Raises TaskdError."""
        if action.access is Access.USER and peer.user is None:
            raise AuthRequired(f"log in first: {action.name} is for a logged-in user")
        return self._handlers[action.name](peer, request)

    # who and what is there

    async def hello(self, peer: Peer, request: m.Nothing) -> Answer:
        return {
            "status": "success",
            "server": "taskd",
            "version": __version__,
            "protocol": limits.PROTOCOL_VERSION,
            "node": self._node,
            "queues": self._routes.queues,
            "actions": list(ACTIONS),
            "limits": {
                "line_bytes": limits.MAX_LINE_BYTES,
                "reply_bytes": limits.MAX_REPLY_BYTES,
                "batch": limits.MAX_BATCH,
                "page": limits.MAX_PAGE,
                "log_lines": limits.MAX_LOG_LINES,
                "wait_seconds": limits.MAX_WAIT_SECONDS,
                "pipeline": limits.MAX_PIPELINE,
            },
        }

    async def ping(self, peer: Peer, request: m.Nothing) -> Answer:
        return SUCCESS

    async def kinds(self, peer: Peer, request: m.Nothing) -> Answer:
        return {"status": "success", "kinds": [kind._asdict() for kind in self._routes.kinds()]}

    # accounts

    async def register(self, peer: Peer, request: m.Register) -> Answer:
        user = await self._accounts.register(request.username, request.password)
        return {"status": "success", "user_id": user.id, "username": user.username}

    async def login(self, peer: Peer, request: m.Login) -> Answer:
        expires: dict[str, int] = {}
        if request.token is not None:
            user, token = await self._accounts.resume(request.token), request.token
        elif request.username is not None and request.password is not None:
            user, token = await self._accounts.login(request.username, request.password)
            expires = {"expires_in": self._accounts.session_seconds}
        else:
            missing = "username" if request.username is None else "password"
            raise BadRequest(f"{missing} is missing: log in with username and password, or with a token", field=missing)
        peer.cancel_subscriptions()
        peer.user, peer.token = user, token
        return {"status": "logged_in", "token": token, "user_id": user.id, "username": user.username, **expires}

    async def logout(self, peer: Peer, request: m.Nothing) -> Answer:
        if peer.token is not None:
            await self._accounts.forget(peer.token)
        peer.cancel_subscriptions()
        peer.user = peer.token = None
        return SUCCESS

    async def whoami(self, peer: Peer, request: m.Nothing) -> Answer:
        user = _user(peer)
        return {"status": "success", "user_id": user.id, "username": user.username}

    # tasks

    async def new_task(self, peer: Peer, request: m.TaskSpec) -> Answer:
        (created,) = await self._submitter.submit((self._new_task(_user(peer).id, request),))
        if created.duplicate:
            return {"status": "task_created", "task_id": created.task_id, "duplicate": True}
        return {"status": "task_created", "task_id": created.task_id}

    async def new_tasks(self, peer: Peer, request: m.NewTasks) -> Answer:
        _check_count(request.tasks, "tasks")
        user_id, tasks = _user(peer).id, []
        for n, spec in enumerate(request.tasks):
            try:
                tasks.append(self._new_task(user_id, spec))
            except (BadRequest, TooLarge) as e:
                where = f"tasks[{n}]"
                raise type(e)(f"{where}: {e.message}", field=f"{where}.{e.field}") from None
        created = await self._submitter.submit(tasks)
        reply: dict[str, Any] = {"status": "task_created", "task_ids": [c.task_id for c in created]}
        if duplicates := [c.task_id for c in created if c.duplicate]:
            reply["duplicates"] = duplicates
        return reply

    async def get_tasks(self, peer: Peer, request: m.GetTasks) -> Answer:
        _check_choice(request.status, STATUSES, "status")
        _check_choice(request.state, SHOWN_STATES, "state")
        kind = None if request.kind is None else check_kind(request.kind)
        query = TaskQuery(request.limit, _before(request.cursor), request.status, request.state, kind)
        async with peer.reading:
            page = await self._store.list_tasks(_user(peer).id, query)
            tasks, before = _that_fit(page.tasks), page.before
            if len(tasks) < len(page.tasks):
                before = tasks[-1].id
            cursor = None if before is None else _cursor(before)
            status = "success" if tasks or cursor else "no_tasks"
            return {"status": status, "tasks": self._views(tasks), "cursor": cursor}

    async def get_task(self, peer: Peer, request: m.OneTask) -> Answer:
        async with peer.reading:
            (task,) = await self._mine(peer, [request.task_id], "task_id")
            failed = await self._store.failed_attempts(task.id)
            return {"status": "success", "task": view(task, self._publisher.now(), failed)}

    async def cancel_task(self, peer: Peer, request: m.OneTask) -> Answer:
        task = await self._store.cancel(_user(peer).id, request.task_id)
        self._publisher.announce([task])
        if task.started_at is not None:
            self._publisher.publish_cancel_order([task.id])
        return {"status": "success", "task": view(task, self._publisher.now())}

    async def retry_task(self, peer: Peer, request: m.OneTask) -> Answer:
        task = await self._store.retry(_user(peer).id, request.task_id)
        self._publisher.announce([task])
        self._windows.mark_backlogged(task.route, task.user_id)
        self._routes.wake(task.route)
        return {"status": "success", "task": view(task, self._publisher.now())}

    async def explain(self, peer: Peer, request: m.OneTask) -> Answer:
        (task,) = await self._mine(peer, [request.task_id], "task_id")
        now = self._publisher.now()
        why = explain(task, now, self._routes, self._windows, self._broker.ready)
        return {"status": "success", "task_id": task.id, "state": shown_state(task, now), **why}

    async def get_log(self, peer: Peer, request: m.GetLog) -> Answer:
        after = None if request.cursor is None else place_of(request.cursor)
        follow = self._new_follow(peer, request.task_id) if request.follow else None
        try:
            async with peer.reading:
                await self._mine(peer, [request.task_id], "task_id")
                read = read_tail if request.tail else read_lines
                found = await read(self._store, request.task_id, after, request.limit, limits.MAX_PAGE_CHARS)
        except BaseException:
            if follow is not None:
                follow.close()
            raise
        last = found.lines[-1].place if found.lines else after
        reply: m.Reply = {
            "status": "success",
            "lines": view_lines(found.lines),
            "cursor": None if last is None else log_cursor(last),
            "more": found.more,
            "cut": found.cut,
        }
        if follow is None:
            return reply

        def begin() -> None:
            if not follow.closed:
                for other in tuple(peer.follows):
                    if other is not follow and other.task_id == follow.task_id:
                        other.close()
                follow.begin(last)

        return Then(reply, begin)

    # live

    async def watch(self, peer: Peer, request: m.Watch) -> Answer:
        user = _user(peer)
        peer.unwatch()
        watch = peer.watch = self._hub.watch(user.id, peer.send)

        def opened() -> None:
            now, peer.told_watching = peer.watch, True
            if watch.closed and now is not None and now is not watch and now.closed:
                # a later one, asked for in the same go, has failed before: nothing is watched, whatever this reply says
                peer.notify_watch_lost()
            watch.open(tasks)

        try:
            async with peer.reading:
                page = await self._store.list_tasks(user.id, TaskQuery(request.limit))
                tasks = _that_fit(page.tasks)
                return Then({"status": "success", "tasks": self._views(tasks)}, opened)
        except BaseException:
            watch.close()
            if peer.watch is watch:
                peer.notify_watch_lost()  # the watch before this one is over, too
            raise

    async def unwatch(self, peer: Peer, request: m.Nothing) -> Answer:
        peer.cancel_subscriptions()
        return SUCCESS

    async def wait(self, peer: Peer, request: m.Wait) -> Answer:
        _check_count(request.task_ids, "task_ids")
        ids = list(dict.fromkeys(request.task_ids))
        if len(ids) + sum(other.size for other in peer.waits) > limits.MAX_WAITED:
            text = f"this connection waits for {limits.MAX_WAITED} tasks already; watch tells of all changes at once"
            raise RateLimited(text, retry_after=1)
        deadline = self._clock.seconds() + request.timeout
        wait = self._hub.wait(ids)
        peer.waits.add(wait)
        try:
            await self._see_ended(peer, wait, ids)
            while wait.remaining and deadline > self._clock.seconds() and not peer.leaving:
                timer = self._clock.callLater(min(deadline - self._clock.seconds(), RECHECK), wait.wake)
                await wait.changed
                if timer.active():
                    timer.cancel()
                wait.rearm()
                await self._see_ended(peer, wait, tuple(wait.remaining))
            async with peer.reading:
                views, done = [], True
                for some in _pieces(ids):
                    tasks = await self._mine(peer, some, "task_ids")
                    views += self._views(tasks)
                    done = done and all(task.state in TERMINAL for task in tasks)
                return {"status": "success", "done": done, "tasks": views}
        finally:
            peer.waits.discard(wait)
            wait.close()

    async def _see_ended(self, peer: Peer, wait: Wait, ids: Sequence[int]) -> None:
        """Look which of these have ended: what happened before the wait began, and what no news came of."""
        for some in _pieces(ids):
            wait.ended([task.id for task in await self._mine(peer, some, "task_ids") if task.state in TERMINAL])

    # what they share

    def _new_task(self, user_id: int, spec: m.TaskSpec) -> NewTask:
        queue = spec.queue
        if queue is None:
            queue = self._routes.queues[0]
        elif queue not in self._routes.queues:
            known = ", ".join(self._routes.queues)
            raise BadRequest(f"there is no queue {quote(queue)} here; known are: {known}", field="queue")
        payload = encode_json(spec.payload, limits.MAX_LINE_BYTES, "payload") if spec.payload else "{}"
        key = fingerprint = None
        if spec.key is not None:
            key, fingerprint = check_key(spec.key), m.fingerprint(spec, queue)
        task, kind = check_task_text(spec.task), check_kind(spec.kind)
        return NewTask(
            user_id,
            task=task,
            kind=kind,
            payload=payload,
            queue=queue,
            max_attempts=spec.max_attempts or self._attempts(Route(queue, kind)),
            timeout=spec.timeout,
            run_at=self._run_at(spec),
            key=key,
            fingerprint=fingerprint,
        )

    def _attempts(self, route: Route) -> int:
        if route.kind == DEFAULT_KIND:
            return DEFAULT_ATTEMPTS
        serving = self._routes.serving(route)
        return 0 if serving is None else serving.max_attempts

    def _run_at(self, spec: m.TaskSpec) -> datetime | None:
        """When a task is to run at the earliest, None for now."""
        now = self._publisher.now()
        if spec.delay is not None:
            if spec.run_at is not None:
                raise BadRequest("delay and run_at exclude each other: give one of them", field="delay")
            return now + timedelta(seconds=spec.delay) if spec.delay else None
        if spec.run_at is None or spec.run_at <= now:
            return None
        if spec.run_at > now + timedelta(seconds=MAX_DELAY_SECONDS):
            raise BadRequest("run_at must be within the next ten years", field="run_at")
        return spec.run_at.astimezone(timezone.utc)

    def _new_follow(self, peer: Peer, task_id: int) -> Follow:
        """A follow that has not begun. It counts from now on, and ends with what ends those that have."""
        if len({task_id, *(follow.task_id for follow in peer.follows)}) > limits.MAX_FOLLOWS:
            text = f"this connection follows {limits.MAX_FOLLOWS} logs already; end some with unwatch, or use another"
            raise RateLimited(text, retry_after=1)
        follow = Follow(
            *(self._clock, self._store, self._hub, _user(peer).id, task_id),
            *(peer.send, peer.reading, peer.follows.discard),
        )
        peer.follows.add(follow)
        return follow

    async def _mine(self, peer: Peer, ids: Sequence[int], name: str) -> Sequence[Task]:
        found = {task.id: task for task in await self._store.get_tasks(_user(peer).id, ids)}
        for task_id in ids:
            if task_id not in found:
                raise NotFound(f"you have no task {task_id}", field=name)
        return [found[task_id] for task_id in ids]

    def _views(self, tasks: Iterable[Task]) -> list[TaskView]:
        now = self._publisher.now()
        return [view(task, now) for task in tasks]


def _user(peer: Peer) -> User:
    if peer.user is None:
        raise AuthRequired("log in first")
    return peer.user


def _check_count(items: Sequence[Any], name: str) -> None:
    if not items:
        raise BadRequest(f"{name} must not be empty", field=name)
    if len(items) > limits.MAX_BATCH:
        raise TooLarge(f"{name} must have at most {limits.MAX_BATCH} entries, not {len(items)}", field=name)


def _pieces(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    return (ids[start : start + LOOK] for start in range(0, len(ids), LOOK))


def _that_fit(tasks: Sequence[Task]) -> Sequence[Task]:
    """The first of them, as many as one reply should hold; at least one if there is one."""
    chars = 0
    for n, task in enumerate(tasks):
        chars += len(task.task) + len(task.result or "") + len(task.error or "")
        if chars > limits.MAX_PAGE_CHARS and n:
            return tasks[:n]
    return tasks


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
        if raw[:1] == b"b" and raw[1:].isdigit() and len(raw) < 21 and int(raw[1:]) < 2**63:
            return int(raw[1:])
    except (ValueError, binascii.Error):
        pass
    raise BadRequest("cursor is not one of ours; leave it out to begin at the newest", field="cursor")
