"""Rules: create, cancel, retry, read, watch and wait for tasks."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from taskd.model.states import State
from tests.stateful.base import Base, Conn, names, picks
from tests.stateful.model import Task

SPECS: tuple[dict[str, Any], ...] = (
    {"task": "one"},
    {"task": "three", "payload": {"a": 1, "b": 2}},
    {"task": "two", "kind": "count", "payload": {"to": 3}},
    {"task": "later", "delay": 20},
)
specs = st.builds(
    lambda spec, key: {**spec} if key is None else {**spec, "key": key},
    st.sampled_from(SPECS),
    st.sampled_from([None, None, "k1", "k2"]),
)
# A newer task is more interesting than an older one.
tasks = st.integers(0, 11)


class TaskRules(Base):
    """What users do with tasks, and a worker."""

    def begin_tasks(self, count: int) -> None:
        """The first users have so many tasks each."""
        for pick in (1, 2):
            for spec in SPECS[:count]:
                keyed = {**spec, "key": spec["task"] + "s"}
                self.create(self.user(pick), [keyed], "new_task", **keyed)

    def _any(self, conn: Conn, which: int) -> int:
        """The number of a task, mostly an own one; else one of anybody, also of a deleted account; one that nobody has
        if there is none."""
        own = [] if conn.login is None else sorted(conn.login[0].tasks, reverse=True)
        if own and which % 3:
            return own[which % len(own)]
        numbers = sorted([*(task.number for _, task in self.model.tasks()), *self.model.ghosts], reverse=True)
        return numbers[which % len(numbers)] if numbers else 999

    @rule(pick=picks, spec=specs)
    def new_task(self, pick: int, spec: dict[str, Any]) -> None:
        """Submit one task."""
        self.create(self.user(pick), [spec], "new_task", **spec)

    @rule(pick=picks, some=st.lists(specs, min_size=1, max_size=3))
    def new_tasks(self, pick: int, some: list[dict[str, Any]]) -> None:
        """Submit some tasks, all or none."""
        self.create(self.user(pick), some, "new_tasks", tasks=some)

    @rule(pick=picks, which=st.integers(0, 2), change=st.sampled_from(["no", "order", "payload"]))
    def repeat(self, pick: int, which: int, change: str) -> None:
        """Send a request with a key again, the same or another one."""
        conn = self.user(pick)
        keyed = [task for _, task in self.model.tasks() if "key" in task.spec]
        keyed.sort(key=lambda task: task.state != "cancelled")
        if conn.login is not None:
            keyed = [task for task in keyed if task.number in conn.login[0].tasks] or keyed
        if keyed:
            spec = dict(keyed[which % len(keyed)].spec)
            payload = spec.get("payload", {})
            if change == "order":
                spec["payload"] = dict(reversed(payload.items()))
            elif change == "payload":
                spec["payload"] = {**payload, "more": True}
            self.create(conn, [spec], "new_task", **spec)

    def create(self, conn: Conn, some: list[dict[str, Any]], action: str, **fields: Any) -> None:
        at = self.now
        reply = self.ask(conn, action, tuple(spec.get("kind", "simulate") for spec in some), **fields)
        if reply is None:
            return
        assert conn.login is not None
        account = conn.login[0]
        expected: list[int | None] = []  # None: a new task
        firsts: dict[str, dict[str, Any]] = {}
        conflict = False
        for spec in some:
            key = spec.get("key")
            before = None if key is None else account.keys.get(key)
            first = account.tasks[before].spec if before is not None else firsts.get(key or "")
            conflict = conflict or (first is not None and not _is_same(first, spec))
            expected.append(before)
            if key is not None:
                firsts.setdefault(key, spec)
        if conflict:
            self.judge(reply, "conflict")
            return
        fresh = len({spec.get("key", n) for n, spec in enumerate(some) if expected[n] is None})
        may_exceed = bool(fresh) and account.may_exceed(at)
        if fresh and account.exceeds(fresh, at):
            if not self.judge(reply, "quota_exceeded", *(["ok"] if may_exceed else [])):
                return
        else:
            self.judge(reply)
        assert reply["status"] == "task_created"
        numbers = reply["task_ids"] if action == "new_tasks" else [reply["task_id"]]
        assert len(numbers) == len(some)
        repeated = []
        taken = {task.number for _, task in self.model.tasks()} | self.model.ghosts.keys()
        for number, spec, before in zip(numbers, some, expected, strict=True):
            known = before if before is not None else account.keys.get(spec.get("key", ""))
            if known is not None:
                assert number == known, (reply, known)
                repeated.append(number)
                continue
            assert number not in taken and number not in account.tasks
            task = account.tasks[number] = Task(number, spec, at + spec.get("delay", 0))
            if "key" in spec:
                account.keys[spec["key"]] = number
            account.created.append(at)
            account.size += len(task.spec["task"]) + len(json.dumps(spec.get("payload", {}), separators=(",", ":")))
        shown = reply.get("duplicates", []) if action == "new_tasks" else [reply["task_id"]] * reply.get("duplicate", 0)
        assert shown == repeated, (reply, repeated)

    # -- own tasks

    @rule(pick=picks, which=tasks, again=st.booleans())
    def cancel_task(self, pick: int, which: int, again: bool) -> None:
        """Cancel any task, and perhaps send the request that made it again."""
        conn = self.user(pick)
        number = self._any(conn, which)
        reply = self.ask(conn, "cancel_task", task_id=number)
        if reply is None:
            return
        assert conn.login is not None
        task = conn.login[0].tasks.get(number)
        if task is None:
            self.judge(reply, "not_found")
        elif self.judge(reply, *([] if task.is_open or task.state == "cancelled" else ["conflict"])):
            task.state = "cancelled"
            assert reply["task"]["state"] == "cancelled"
            if again and "key" in task.spec:
                self.create(conn, [task.spec], "new_task", **task.spec)

    @rule(pick=picks, which=tasks)
    def retry_task(self, pick: int, which: int) -> None:
        """Retry any task."""
        conn, at = self.user(pick), self.now
        number = self._any(conn, which)
        reply = self.ask(conn, "retry_task", task_id=number)
        if reply is None:
            return
        assert conn.login is not None
        account = conn.login[0]
        task = account.tasks.get(number)
        codes = []
        if task is None:
            codes = ["not_found"]
        elif task.state not in ("failed", "cancelled"):
            codes = ["conflict"]
        may_exceed = account.may_exceed(at)
        open_limit = account.limits.get("open")
        if open_limit and account.open_tasks() + 1 > open_limit:
            # one of two errors
            codes += ["quota_exceeded", *(["ok"] if may_exceed and not codes else [])]
        if self.judge(reply, *codes):
            assert task is not None
            task.state, task.run_at = "waiting", at
            assert reply["task"]["state"] == "waiting"

    # -- reading

    @rule(pick=picks, which=tasks, action=st.sampled_from(["get_task", "explain", "get_log"]))
    def read_task(self, pick: int, which: int, action: str) -> None:
        """Read any task."""
        conn = self.user(pick)
        number = self._any(conn, which)
        reply = self.ask(conn, action, task_id=number)
        if reply is None:
            return
        assert conn.login is not None
        account = conn.login[0]
        if number in self.model.ghosts:
            # taskd deletes it soon; until then operators see it
            self.judge(reply, "not_found", *(["ok"] if account.is_operator else []))
            return
        task = account.tasks.get(number)
        if task is None and account.is_operator:
            task = next((each for _, each in self.model.tasks() if each.number == number), None)
        if task is None:
            self.judge(reply, "not_found")
            return
        self.judge(reply)
        if action == "get_task":
            view = reply["task"]
            assert (view["id"], view["state"]) == (number, task.shown(self.now)), view
            assert view["payload"] == task.spec.get("payload", {}), view
        elif action == "explain":
            assert reply["state"] == task.shown(self.now), reply
        else:
            assert [line["text"] for line in reply["lines"]] == task.log

    @rule(pick=picks, name=names)
    def get_tasks_of(self, pick: int, name: str) -> None:
        """List the tasks of a user."""
        conn = self.user(pick)
        reply = self.ask(conn, "get_tasks", username=name)
        if reply is None:
            return
        assert conn.login is not None
        account = self.model.accounts.get(name.lower())
        if not conn.login[0].is_operator:
            self.judge(reply, "forbidden")
        elif account is None:
            self.judge(reply, "not_found/no_user")
        else:
            self.judge(reply)
            self.is_list_of(reply, account)

    @rule(pick=picks)
    def overview(self, pick: int) -> None:
        """Count the tasks that have not ended."""
        conn = self.user(pick)
        reply = self.ask(conn, "overview")
        if reply is None:
            return
        assert conn.login is not None
        account = conn.login[0]
        assert reply["scope"] == ("all" if account.is_operator else "own")
        counted = [task for owner, task in self.model.tasks() if account.is_operator or owner is account]
        found = sum(
            route["waiting"] + route["delayed"] + route["queued"] + route["running"] for route in reply["routes"]
        )
        expected = sum(task.is_open for task in counted)
        assert found == expected or (account.is_operator and self.model.ghosts), (reply, expected)

    # -- events

    @rule(pick=picks)
    def watch(self, pick: int) -> None:
        """Begin to watch."""
        conn = self.user(pick)
        reply = self.ask(conn, "watch", limit=500)
        if reply is None:
            return
        self.judge(reply)
        assert conn.login is not None
        self.is_list_of({**reply, "status": "success" if reply["tasks"] else "no_tasks"}, conn.login[0])
        shown = {"scheduled": "waiting"}
        conn.watched = {t["id"]: (t["version"], shown.get(t["state"], t["state"])) for t in reply["tasks"]}

    @rule(pick=picks)
    def unwatch(self, pick: int) -> None:
        """Watch no more."""
        conn = self.user(pick)
        if self.ask(conn, "unwatch") is not None:
            conn.watched = None

    @rule(pick=picks, which=st.lists(tasks, min_size=1, max_size=2), timeout=st.sampled_from([0, 3, 100]))
    def wait(self, pick: int, which: list[int], timeout: int) -> None:
        """Wait for tasks of anybody."""
        conn = self.user(pick)
        numbers = [self._any(conn, each) for each in which]
        refused = self.model.refusal(conn.login, "wait")
        until = self.now + timeout
        conn.had_line = True
        request_id = conn.client.start("wait", task_ids=numbers, timeout=timeout)
        conn.read()
        if conn.login is not None and refused is None:
            conn.login[1].used = self.now
            if all(number in conn.login[0].tasks for number in numbers):
                conn.waits[request_id] = numbers, until
                return
        assert request_id in conn.replies, "it has nothing to wait for"
        self.judge(conn.replies.pop(request_id), refused or "not_found")

    # -- the worker

    @precondition(lambda self: any(task.state in ("waiting", "running") for _, task in self.model.tasks()))
    @rule(which=tasks, what=st.sampled_from(["begin", "complete", "fail", "log"]))
    def work(self, which: int, what: str) -> None:
        """A worker begins, ends or reports about a task."""
        at = self.now
        able = [
            t for _, t in self.model.tasks() if t.state == "running" or (t.state == "waiting" and t.run_at < at - 2)
        ]
        if not able:
            return
        task = able[which % len(able)]
        if task.state == "waiting":
            self.stage.begin(task.number)
            task.state = "running"
        if what == "complete":
            self.stage.finish(task.number)
            task.state = "completed"
        elif what == "fail":
            self.stage.finish(task.number, state=State.FAILED, result=None, error="it broke")
            task.state = "failed"
        elif what == "log":
            line = f"line {len(task.log) + 1}"
            self.stage.report(task.number, line, first_line=len(task.log) + 1)
            task.log.append(line)


def _is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two requests with a key ask for the same task: a field that is left out equals its default."""
    defaults: dict[str, Any] = {"kind": "simulate", "payload": {}, "delay": None}
    return all(one.get(name, value) == other.get(name, value) for name, value in {"task": None, **defaults}.items())
