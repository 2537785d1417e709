"""Actions about tasks: new_task, new_tasks, get_tasks, get_task, cancel_task, retry_task, explain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taskd.api.cursors import before_of, tasks_cursor
from taskd.api.own_tasks import own_listed, own_task, that_fit
from taskd.api.owners import Owners
from taskd.api.principal import Principal
from taskd.api.reply import Reply
from taskd.api.shared_checks import check_choice, check_count
from taskd.api.subscriptions import Subscriptions
from taskd.api.task_builder import TaskBuilder
from taskd.events.publisher import Publisher
from taskd.model.errors import BadRequest, TooLarge
from taskd.model.states import SHOWN_STATES, STATUSES
from taskd.model.task_checks import check_kind
from taskd.model.tasks import Task, shown_state
from taskd.ports.broker import IBroker
from taskd.ports.store import IStore
from taskd.ports.tasks import TaskQuery
from taskd.protocol import messages as m
from taskd.protocol.views import TaskView, view
from taskd.scheduling.explain import Explainer
from taskd.scheduling.scheduler import Scheduler


class TaskActions:
    """A user sees and changes only the user's own tasks: somebody else's task is not found. Operators and admins see
    those of all users, and change only their own."""

    def __init__(
        self,
        store: IStore,
        broker: IBroker,
        publisher: Publisher,
        scheduler: Scheduler,
        explainer: Explainer,
        owners: Owners,
    ) -> None:
        self._store = store
        self._owners = owners
        self._broker = broker
        self._publisher = publisher
        self._submitter = scheduler.submitter
        self._dispatcher = scheduler.dispatcher
        self._quotas = scheduler.quotas
        self._explainer = explainer
        self._task_builder = TaskBuilder(store, scheduler.pools)

    async def new_task(self, principal: Principal, subscriptions: Subscriptions, request: m.TaskSpec) -> Reply:
        (created,) = await self._submitter.submit((self._task_builder.build(principal.user_id, request),))
        if created.duplicate:
            return Reply({"status": "task_created", "task_id": created.task_id, "duplicate": True})
        return Reply({"status": "task_created", "task_id": created.task_id})

    async def new_tasks(self, principal: Principal, subscriptions: Subscriptions, request: m.NewTasks) -> Reply:
        check_count(request.tasks, "tasks")
        user_id, tasks = principal.user_id, []
        for n, spec in enumerate(request.tasks):
            try:
                tasks.append(self._task_builder.build(user_id, spec))
            except (BadRequest, TooLarge) as e:
                where = f"tasks[{n}]"
                raise type(e)(f"{where}: {e.message}", field=f"{where}.{e.field}") from None
        created = await self._submitter.submit(tasks)
        fields: dict[str, Any] = {"status": "task_created", "task_ids": [c.task_id for c in created]}
        if duplicates := [c.task_id for c in created if c.duplicate]:
            fields["duplicates"] = duplicates
        return Reply(fields)

    async def get_tasks(self, principal: Principal, subscriptions: Subscriptions, request: m.GetTasks) -> Reply:
        check_choice(request.status, STATUSES, "status")
        check_choice(request.state, SHOWN_STATES, "state")
        kind = None if request.kind is None else check_kind(request.kind)
        before = None if request.cursor is None else before_of(request.cursor)
        user_id = principal.user_id
        if request.username is not None:
            user_id = await self._owners.of_username(principal, request.username)
        query = TaskQuery(request.limit, before, request.status, request.state, kind)
        async with subscriptions.large_reply:
            page = await self._store.list_tasks(user_id, query)
            tasks, before = that_fit(page.tasks), page.before
            if len(tasks) < len(page.tasks):
                before = tasks[-1].id
            cursor = None if before is None else tasks_cursor(before)
            status = "success" if tasks or cursor else "no_tasks"
            return Reply({"status": status, "tasks": self._views(tasks), "cursor": cursor})

    async def get_task(self, principal: Principal, subscriptions: Subscriptions, request: m.OneTask) -> Reply:
        async with subscriptions.large_reply:
            owner = await self._owners.of_task(principal, request.task_id)
            task = await own_task(self._store, owner, request.task_id)
            failed = await self._store.failed_attempts(task.id)
            return Reply({"status": "success", "task": view(task, self._store.now(), failed)})

    async def cancel_task(self, principal: Principal, subscriptions: Subscriptions, request: m.OneTask) -> Reply:
        task = await self._store.cancel(principal.user_id, request.task_id)
        self._publisher.publish([task])
        if task.worker is not None:
            self._broker.hint([task.worker], orders=True)
        self._dispatcher.changed([task])
        return Reply({"status": "success", "task": view(task, self._store.now())})

    async def retry_task(self, principal: Principal, subscriptions: Subscriptions, request: m.OneTask) -> Reply:
        user_id, task_id = principal.user_id, request.task_id
        task = await self._quotas.reopen(user_id, lambda: self._store.retry(user_id, task_id))
        self._publisher.publish([task])
        self._dispatcher.changed([task])
        return Reply({"status": "success", "task": view(task, self._store.now())})

    async def explain(self, principal: Principal, subscriptions: Subscriptions, request: m.OneTask) -> Reply:
        # it may count ten thousand tasks: not for all requests of a connection at the same time
        async with subscriptions.large_reply:
            owner = await self._owners.of_task(principal, request.task_id)
            [task] = [task async for task in own_listed(self._store, owner, [request.task_id], "task_id")]
            now = self._store.now()
            why = await self._explainer.explain(task, now)
            return Reply({"status": "success", "task_id": task.id, "state": shown_state(task, now), **why})

    def _views(self, tasks: Iterable[Task]) -> list[TaskView]:
        now = self._store.now()
        return [view(task, now) for task in tasks]
