"""User-defined kinds of tasks on both deployments: an embedded server, and a server and workers with PostgreSQL and
RabbitMQ. The handlers are in tests/integration/lab.py."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import services
from tests.cluster import Cluster, user
from tests.daemons import Daemon, LineClient, eventually, free_port

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = "tests.integration.lab"
EXECUTORS = ("async", "thread", "process")

PROGRAMS = f"""
[greet]
summary = "Greets somebody."
path = "/bin/echo"
args = ["hello", "--", "{{name}}", "{{times:int=1}}"]

[python]
path = "{sys.executable}"
args = ["-c", "{{code}}"]
max_output = "200M"
processes = 5
memory = "512M"
max_attempts = 1
"""


class Deployment:
    """A server, and the daemon that runs its tasks: itself or a worker."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.env = {
            "PYTHONPATH": str(ROOT),
            "TASKD_LEASE": "3",
            "TASKD_BCRYPT_ROUNDS": "4",
            "TASKD_REGISTRATIONS_PER_HOUR": "0",
        }
        self.programs = folder / "programs.toml"
        self.programs.write_text(PROGRAMS)
        self.options = ["--handlers", HANDLERS, "--programs", str(self.programs), "--processes", "2"]
        self.stack = contextlib.ExitStack()
        self.folder = folder
        self.cluster: Cluster | None = None

    def start(self) -> None:
        """Start all daemons."""
        if self.name == "embedded":
            self.port = free_port()
            listen = ["--listen", f"tcp:{self.port}:interface=127.0.0.1"]
            self.runner = self.stack.enter_context(
                Daemon.twistd("taskserver", [*listen, *self.options], self.env, cwd=self.folder)
            )
            self.runner.wait_for("is ready on port")
            return
        services.require("postgres", "rabbitmq")
        database = services.postgres().create_database()
        self.cluster = Cluster(self.folder, services.postgres(), database, services.rabbitmq(), **self.env)
        self.stack.callback(self.cluster.close)
        server = self.cluster.launch_server()
        self.port = self.cluster.ports[0]
        self.runner = self.cluster.launch_worker(*self.options)
        server.wait_for("is ready on port")
        self.runner.wait_for("worker takes tasks")

    def client(self, name: str = "ana") -> LineClient:
        """A connection of this user. It is closed with the deployment."""
        return self.stack.enter_context(user(self.port, name))

    def tree(self) -> list[psutil.Process]:
        """All descendants of the daemon that runs tasks."""
        return psutil.Process(self.runner.pid).children(recursive=True)


@pytest.fixture(scope="module", params=["embedded", "distributed"])
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment that all tests of this module share."""
    made = Deployment(request.param, tmp_path_factory.mktemp(request.param))
    try:
        made.start()
        yield made
        assert "Unhandled" not in made.runner.output(), made.runner.output()[-5000:]
    finally:
        made.stack.close()


@pytest.fixture
def ana(deployment: Deployment) -> LineClient:
    """A new connection for each test."""
    return deployment.client()


def submit(client: LineClient, kind: str, payload: dict[str, Any] | None = None, **fields: Any) -> int:
    """Submit a task. Returns its id."""
    reply = client.request("new_task", task=f"a {kind}", kind=kind, payload=payload or {}, **fields)
    assert reply["ok"], reply
    return int(reply["task_id"])


def wait_ended(client: LineClient, *ids: int, timeout: float = 20) -> list[dict[str, Any]]:
    """Wait until all these tasks have ended. Returns them."""
    reply = client.request("wait", task_ids=list(ids), timeout=timeout)
    assert reply["ok"] and reply["done"], reply
    return [client.request("get_task", task_id=task_id)["task"] for task_id in ids]


def wait_for_state(client: LineClient, task_id: int, state: str) -> dict[str, Any]:
    """Wait until a task is in this state. Returns it."""
    found: dict[str, Any] = {}

    def there() -> bool:
        found.update(client.request("get_task", task_id=task_id)["task"])
        return bool(found["state"] == state)

    eventually(there, 20, f"{state}: {found}")
    return found


def log_of(client: LineClient, task_id: int) -> list[str]:
    """All lines of a task's log."""
    lines: list[str] = []
    cursor = None
    while True:
        reply = client.request("get_log", task_id=task_id, cursor=cursor, limit=1000)
        lines += [line["text"] for line in reply["lines"]]
        cursor = reply["cursor"]
        if not reply["more"]:
            return lines


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_handler_gets_its_task_reports_progress_and_returns_a_result(
    deployment: Deployment, ana: LineClient, executor: str
) -> None:
    [task] = wait_ended(ana, submit(ana, f"{executor}.work"))
    assert (task["status"], task["result"]["task"], task["error"]) == ("Completada", f"a {executor}.work", None)
    assert (task["progress"], task["note"], task["max_attempts"]) == (0.25, "a quarter", 2)
    assert log_of(ana, task["id"]) == ["hello ana, this is attempt 1"]
    assert (task["result"]["pid"] != deployment.runner.pid) == (executor == "process")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_output_of_a_task_reaches_watchers(deployment: Deployment, executor: str) -> None:
    watcher = deployment.client(f"watcher of {executor}")
    watcher.request("watch")
    task_id = submit(watcher, f"{executor}.work", {"seconds": 0.5})
    events: list[dict[str, Any]] = []
    while not events or events[-1].get("task", {}).get("state") != "completed":
        events.append(watcher.event())
    outputs = [e for e in events if e["event"] != "task"]
    assert {e["task_id"] for e in outputs} == {task_id}
    # from a child process, the order of the two may differ
    assert sorted((e["event"], e.get("note"), e.get("lines")) for e in outputs) == [
        ("log", None, [f"hello watcher of {executor}, this is attempt 1"]),
        ("progress", "a quarter", None),
    ]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_failed_attempt_is_repeated(ana: LineClient, executor: str) -> None:
    flaky, failing = (submit(ana, f"{executor}.work", {"end": end}) for end in ("flaky", "raise"))
    retrying, rejected = (submit(ana, f"{executor}.work", {"end": end}) for end in ("retry", "reject"))
    well, bad, later, never = wait_ended(ana, flaky, failing, retrying, rejected)
    assert (well["status"], well["attempt"], [a["error"] for a in well["attempts"]]) == (
        "Completada",
        2,
        ["ValueError: no such colour"],
    )
    assert "in work" in well["attempts"][0]["traceback"] and "taskd/worker" not in well["attempts"][0]["traceback"]
    assert (bad["status"], bad["attempt"], bad["error"]) == ("Fallida", 2, "ValueError: no such colour")
    assert [a["attempt"] for a in bad["attempts"]] == [1, 2]
    assert (later["status"], later["attempts"][0]["error"]) == ("Completada", "out of paper")
    assert (never["status"], never["attempt"], never["error"]) == ("Fallida", 1, "there is no such folder")


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("what", "why"), [("object", "JSON"), ("nan", "NaN"), ("nul", "NUL"), ("large", "at most 262144 bytes")]
)
def test_a_result_that_cannot_be_stored_fails_the_attempt(ana: LineClient, executor: str, what: str, why: str) -> None:
    [task] = wait_ended(ana, submit(ana, f"{executor}.work", {"end": what}, max_attempts=1))
    assert task["status"] == "Fallida" and why in task["error"] and "result" in task["error"], task["error"]


@pytest.mark.parametrize("kind", ["async.hang", "thread.hang", "thread.deaf", "process.hang"])
def test_an_attempt_is_stopped_at_its_timeout(deployment: Deployment, ana: LineClient, kind: str) -> None:
    before = {process.pid for process in deployment.tree()}
    [task] = wait_ended(ana, submit(ana, kind, timeout=0.7))
    assert (task["status"], task["error"], task["timeout"]) == ("Fallida", "took longer than 0.7 s", 0.7)
    if kind == "thread.deaf":
        assert any("thread_deaf()" in line and "lab.py" in line for line in log_of(ana, task["id"]))
        eventually(lambda: "has ended now" in deployment.runner.output(), 10)
    if kind == "process.hang":
        left = [p for p in deployment.tree() if p.pid not in before and p.name() != "python"]
        assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE and p.cmdline()[:1] == ["sleep"]]


@pytest.mark.parametrize("kind", ["simulate", "async.hang", "thread.hang", "process.hang", "command:python"])
def test_cancelling_stops_a_running_task(deployment: Deployment, ana: LineClient, kind: str) -> None:
    payload: dict[str, Any] = {"seconds": 600} if kind == "simulate" else {}
    if kind == "command:python":
        payload = {"code": "import time; print('hanging', flush=True); time.sleep(600)"}
    task_id = submit(ana, kind, payload)
    wait_for_state(ana, task_id, "running")
    if kind != "simulate":
        eventually(lambda: "hanging" in log_of(ana, task_id), 10)
    reply = ana.request("cancel_task", task_id=task_id)
    assert (reply["task"]["status"], reply["task"]["state"]) == ("Cancelada", "cancelled")
    # its slot is free again: two more tasks find one
    if kind == "process.hang":
        wait_ended(ana, *[submit(ana, "process.work") for _ in range(2)], timeout=10)
    eventually(lambda: not sleeping(deployment), 10, "no process of the task is left")
    assert ana.request("get_task", task_id=task_id)["task"]["state"] == "cancelled"


def sleeping(deployment: Deployment) -> list[psutil.Process]:
    """Descendants of the worker that only sleep, like those of handlers that hang."""
    found = []
    for process in deployment.tree():
        with contextlib.suppress(psutil.Error):
            if any(word in " ".join(process.cmdline()) for word in ("time.sleep(600)", "taskd-left-behind")):
                found.append(process)
    return found


def test_processes_left_behind_by_a_task_are_ended(deployment: Deployment, ana: LineClient) -> None:
    [task] = wait_ended(ana, submit(ana, "process.leave"))
    assert (task["status"], task["result"]) == ("Completada", "done")
    eventually(lambda: not sleeping(deployment), 10)


def test_a_child_that_dies_does_not_affect_other_tasks(ana: LineClient) -> None:
    dying = [submit(ana, "process.die", {"signal": int(s)}) for s in (signal.SIGKILL, signal.SIGSEGV)]
    fine = [submit(ana, "process.work") for _ in range(4)]
    killed, crashed, *others = wait_ended(ana, *dying, *fine)
    assert (killed["status"], killed["error"]) == ("Fallida", "the child process ended: killed by SIGKILL")
    assert (crashed["status"], crashed["error"]) == ("Fallida", "the child process ended: killed by SIGSEGV")
    assert {t["status"] for t in others} == {"Completada"}


def test_programs_run_within_their_limits(ana: LineClient) -> None:
    code = "print('one'); print('two'); raise SystemExit(3)"
    ids = [
        submit(ana, "command:greet", {"name": "Ada", "times": 2}),
        submit(ana, "command:greet", {"name": "Ada", "times": "many"}),
        submit(ana, "command:greet", {"name": "Ada", "colour": "red"}),
        submit(ana, "command:python", {"code": code}),
        submit(ana, "command:python", {"code": "x = bytearray(10**9)"}),
        submit(ana, "command:python", {"code": "import os\nwhile True: os.fork()"}),
    ]
    greeted, wrong, unknown, failed, large, forked = wait_ended(ana, *ids)
    assert (greeted["status"], greeted["result"]["output"]) == ("Completada", "hello -- Ada 2")
    assert log_of(ana, greeted["id"]) == ["hello -- Ada 2"]
    assert wrong["status"] == unknown["status"] == "Fallida"
    assert "times" in wrong["error"] and "colour" in unknown["error"]
    assert (failed["status"], failed["error"]) == ("Fallida", "exited with status 3: two")
    assert failed["attempts"][0]["traceback"] == "one\ntwo"
    assert large["status"] == "Fallida" and "MemoryError" in large["error"]
    assert forked["status"] == "Fallida" and "more than 5 processes" in forked["error"]


def test_an_argument_that_a_program_would_read_as_an_option_is_refused(deployment: Deployment, ana: LineClient) -> None:
    [task] = wait_ended(ana, submit(ana, "command:python", {"code": "-m http.server"}))
    assert task["status"] == "Fallida" and "option" in task["error"], task["error"]
    [task] = wait_ended(ana, submit(ana, "command:greet", {"name": "-n"}))
    assert task["result"]["output"] == "hello -- -n 1", "behind --, it is not an option"


def test_a_task_of_a_kind_that_nobody_serves_waits_and_is_explained(
    deployment: Deployment, ana: LineClient, tmp_path: Path
) -> None:
    task_id = submit(ana, "late.kind")
    reply = ana.request("explain", task_id=task_id)
    assert (reply["state"], reply["code"]) == ("waiting", "no_worker"), reply
    assert "late.kind" in reply["message"] and "--handlers" in reply["message"]
    if deployment.cluster is None:
        return
    module = tmp_path / "late.py"
    module.write_text(
        "from taskd.worker import handler\n\n@handler('late.kind')\nasync def late(task):\n    return 'at last'\n"
    )
    worker = deployment.cluster.launch_worker("--handlers", "late", PYTHONPATH=f"{ROOT}:{tmp_path}")
    [task] = wait_ended(ana, task_id)
    assert task["result"] == "at last"
    assert "late.kind" in [kind["kind"] for kind in ana.request("kinds")["kinds"]]
    assert worker.terminate() == 0
    eventually(lambda: "late.kind" not in [kind["kind"] for kind in ana.request("kinds")["kinds"]], 10)


def test_the_served_kinds_are_listed(ana: LineClient) -> None:
    kinds = {kind["kind"]: kind for kind in ana.request("kinds")["kinds"]}
    assert {kind["isolation"] for kind in kinds.values()} == {"async", "thread", "process", "program"}
    work = kinds["process.work"]
    assert (work["summary"], work["max_attempts"]) == ("Do the work in a child process.", 2)
    assert kinds["command:greet"]["summary"] == "Greets somebody."
    assert "simulate" in kinds


def test_a_delayed_task_runs_when_it_is_due(ana: LineClient) -> None:
    began = time.time()
    task_id = submit(ana, "async.work", delay=1.5)
    reply = ana.request("explain", task_id=task_id)
    assert (reply["state"], reply["code"]) == ("scheduled", "scheduled")
    [task] = wait_ended(ana, task_id)
    assert task["status"] == "Completada" and time.time() - began >= 1.5


def test_failed_and_cancelled_tasks_can_be_retried(ana: LineClient) -> None:
    failed, hanging = submit(ana, "async.work", {"end": "reject"}), submit(ana, "async.hang")
    wait_ended(ana, failed)
    wait_for_state(ana, hanging, "running")
    ana.request("cancel_task", task_id=hanging)
    for task_id in (failed, hanging):
        reply = ana.request("retry_task", task_id=task_id)
        assert reply["ok"] and reply["task"]["status"] == "Procesando", reply
    [again] = wait_ended(ana, failed)
    assert (again["status"], len(again["attempts"])) == ("Fallida", 2)
    wait_for_state(ana, hanging, "running")
    assert ana.request("cancel_task", task_id=hanging)["ok"]
    [done] = wait_ended(ana, submit(ana, "async.work"))
    assert ana.request("retry_task", task_id=done["id"])["code"] == "conflict"


def test_a_log_can_be_followed_to_its_end(deployment: Deployment, ana: LineClient) -> None:
    code = "import time\nfor n in range(8): print('line', n, flush=True); time.sleep(0.2)"
    task_id = submit(ana, "command:python", {"code": code})
    reply = ana.request("get_log", task_id=task_id, follow=True)
    lines = [line["text"] for line in reply["lines"]]
    while (event := ana.event())["event"] != "log_end":
        lines += [line["text"] for line in event["lines"]]
    assert (lines, event["state"]) == ([f"line {n}" for n in range(8)], "completed")
    other = deployment.client("eva")
    assert other.request("get_log", task_id=task_id)["code"] == "not_found"


def test_the_log_of_a_task_that_prints_very_much_is_bounded(deployment: Deployment, ana: LineClient) -> None:
    before = memory(deployment)
    [printed] = wait_ended(ana, submit(ana, "process.print"), timeout=60)
    assert printed["status"] == "Completada"
    assert memory(deployment) - before < 60
    reply = ana.request("get_log", task_id=printed["id"], limit=1000)
    assert reply["cut"] or "left out" in reply["lines"][0]["text"]
    assert 100_000 < sum(len(line) for line in log_of(ana, printed["id"])) <= 1_100_000


def memory(deployment: Deployment) -> float:
    """The resident memory of the worker and its descendants in MiB."""
    found = 0
    for process in [psutil.Process(deployment.runner.pid), *deployment.tree()]:
        with contextlib.suppress(psutil.Error):
            found += process.memory_info().rss
    return found / 2**20


def test_two_hundred_good_and_bad_tasks_end_as_they_should(deployment: Deployment) -> None:
    """A third of them fail, hang, print, fork or return invalid results. No process is left over."""
    bob = deployment.client("bob")
    bad: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
        ("async.work", {"end": "raise"}, {}, "Fallida", "ValueError: no such colour"),
        ("thread.work", {"end": "raise"}, {}, "Fallida", "ValueError: no such colour"),
        ("process.work", {"end": "object"}, {}, "Fallida", "the result cannot be stored"),
        ("async.work", {"end": "large"}, {}, "Fallida", "the result cannot be stored"),
        ("async.hang", {}, {"timeout": 1.0}, "Fallida", "took longer than 1 s"),
        ("thread.hang", {}, {"timeout": 1.0}, "Fallida", "took longer than 1 s"),
        ("process.hang", {}, {"timeout": 1.0}, "Fallida", "took longer than 1 s"),
        ("process.leave", {}, {}, "Completada", ""),
        ("process.print", {"mib": 20}, {}, "Completada", ""),
        ("process.die", {"signal": 9}, {}, "Fallida", "the child process ended: killed by SIGKILL"),
        ("command:python", {"code": "print('x' * 10**7)"}, {}, "Completada", ""),
        ("command:python", {"code": "raise SystemExit(4)"}, {}, "Fallida", "exited with status 4"),
    ]
    good = ["simulate", "async.work", "thread.work", "process.work", "command:greet"]
    wanted: dict[int, tuple[str, str]] = {}
    for n in range(200):
        if n % 3 == 0:
            kind, payload, fields, status, error = bad[n // 3 % len(bad)]
        else:
            kind, fields, status, error = good[n % len(good)], {}, "Completada", ""
            payload = {"seconds": 0.05} if kind == "simulate" else {"name": "Ada"} if ":" in kind else {}
        wanted[submit(bob, kind, payload, **fields)] = (status, error)
    for task in wait_ended(bob, *wanted, timeout=120):
        status, error = wanted[task["id"]]
        assert (task["status"], (task["error"] or "").startswith(error)) == (status, True), task
    assert deployment.runner.returncode is None
    eventually(lambda: not sleeping(deployment), 10)
    eventually(
        lambda: len(deployment.tree()) <= 1 + 3 * 2 + 2, 10, f"only a few processes are left: {deployment.tree()}"
    )
    assert memory(deployment) < 600


def test_a_stopped_worker_releases_its_tasks_without_counting_the_attempt(tmp_path: Path) -> None:
    """With every executor. No process is left running."""
    own = Deployment("distributed", tmp_path)
    own.options += ["--grace", "0"]
    with own.stack:
        own.start()
        ana = own.client()
        kinds = ("simulate", "async.hang", "thread.hang", "process.hang")
        ids = [submit(ana, kind, {"seconds": 600} if kind == "simulate" else {}) for kind in kinds]
        for task_id in ids:
            wait_for_state(ana, task_id, "running")
        children = own.tree()
        assert own.runner.terminate(20) == 0
        tasks = [ana.request("get_task", task_id=task_id)["task"] for task_id in ids]
        assert [(t["attempt"], t["attempts"]) for t in tasks] == [(0, [])] * 4
        assert {t["state"] for t in tasks} <= {"waiting", "queued"}
        assert not [p for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_handlers_in_plugins_of_twisted_are_found(tmp_path: Path) -> None:
    """Decorated functions in a module of twisted.plugins anywhere on Python's path need no configuration."""
    folder = tmp_path / "site" / "twisted" / "plugins"
    folder.mkdir(parents=True)
    (folder / "lab_plugin.py").write_text(
        "import os\n"
        "from taskd.worker import handler\n\n\n"
        "@handler('plugged.async')\n"
        "async def one(task):\n    return os.getpid()\n\n\n"
        "@handler('plugged.process', isolation='process')\n"
        "def other(task):\n    return os.getpid()\n"
    )
    port = free_port()
    listen = ["--listen", f"tcp:{port}:interface=127.0.0.1"]
    env = {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "TASKD_BCRYPT_ROUNDS": "4", "TASKD_REGISTRATIONS_PER_HOUR": "0"}
    for _ in range(2):
        # the second time, Twisted has a cache of its plugins
        with Daemon.twistd("taskserver", listen, env, cwd=tmp_path) as daemon:
            daemon.wait_for("is ready on port")
            with user(port, "ana") as ana:
                one, other = wait_ended(ana, submit(ana, "plugged.async"), submit(ana, "plugged.process"))
                assert one["result"] == daemon.pid
                assert other["status"] == "Completada" and other["result"] != daemon.pid
