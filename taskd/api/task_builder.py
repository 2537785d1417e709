"""From the request for a task to a task that can be stored: checks and defaults."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from taskd.model.errors import BadRequest, quote
from taskd.model.json_text import check_depth
from taskd.model.limits import DEFAULT_ATTEMPTS, MAX_DELAY_SECONDS, MAX_JSON_DEPTH
from taskd.model.quotas import text_bytes
from taskd.model.task_checks import check_key, check_kind, check_task_text
from taskd.model.tasks import DEFAULT_KIND, NewTask, Route
from taskd.ports.store import IStore
from taskd.protocol.messages import TaskSpec, fingerprint
from taskd.scheduling.pools import Pools


class TaskBuilder:
    """``pools`` knows the queues, and how many attempts the living workers give to a kind."""

    def __init__(self, store: IStore, pools: Pools) -> None:
        self._store = store
        self._pools = pools

    def build(self, user_id: int, spec: TaskSpec) -> NewTask:
        """The task that this user asks for. Raises BadRequest, TooLarge."""
        queue = spec.queue
        if queue is None:
            queue = self._pools.queues[0]
        elif queue not in self._pools.queues:
            known = ", ".join(self._pools.queues)
            raise BadRequest(f"there is no queue {quote(queue)} here; known are: {known}", field="queue")
        if spec.delay is not None and spec.run_at is not None:
            raise BadRequest("delay and run_at exclude each other: give one of them", field="delay")
        key = asked_for = None
        if spec.key is not None:
            key, asked_for = check_key(spec.key), fingerprint(spec, queue)
        task = check_task_text(spec.task)
        kind = spec.kind if spec.kind == DEFAULT_KIND else check_kind(spec.kind)
        payload = bytes(spec.payload)
        return NewTask(
            user_id,
            task=task,
            kind=kind,
            payload=payload_text(payload),
            queue=queue,
            max_attempts=spec.max_attempts or self._attempts(queue, kind),
            timeout=spec.timeout,
            run_at=None if spec.run_at is None else self._run_at(spec.run_at),
            delay=spec.delay or None,
            key=key,
            fingerprint=asked_for,
            size=text_bytes(task) + len(payload),
        )

    def _attempts(self, queue: str, kind: str) -> int:
        if kind == DEFAULT_KIND:
            return DEFAULT_ATTEMPTS
        serving = self._pools.serving(Route(queue, kind))
        return 0 if serving is None else serving.max_attempts

    def _run_at(self, run_at: datetime) -> datetime:
        if run_at > self._store.now() + timedelta(seconds=MAX_DELAY_SECONDS):
            raise BadRequest("run_at must be within the next ten years", field="run_at")
        try:
            return run_at.astimezone(timezone.utc)
        except OverflowError:  # in the year 1, east of Greenwich
            return datetime.min.replace(tzinfo=timezone.utc)


def payload_text(raw: bytes) -> str:
    """The payload byte for byte as it came, except that a carriage return between two tokens becomes a space: no line
    of the protocol contains one. Raises BadRequest for a payload that is nested too deeply."""
    if len(raw) > 2 * MAX_JSON_DEPTH:
        check_depth(raw, "payload")
    return raw.replace(b"\r", b" ").decode()
