"""Two servers behind nginx, two workers, PostgreSQL and RabbitMQ: the whole system as real processes."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import services
from tests.cluster import Cluster, user
from tests.daemons import LineClient, eventually, talk

USERS = 20
TASKS = 2000
BATCH = 20


@pytest.fixture
def cluster(
    tmp_path: Path, postgres: services.Postgres, database: str, rabbitmq: services.RabbitMQ
) -> Iterator[Cluster]:
    """A cluster without daemons."""
    made = Cluster(tmp_path, postgres, database, rabbitmq)
    yield made
    made.close()


def test_two_servers_two_workers_behind_a_balancer(cluster: Cluster) -> None:
    """2,000 tasks of 20 users on both servers: each task runs once, and only its owner sees it."""
    services.require("nginx")
    for _ in range(2):
        # both start at the same moment on an empty database, and both must become ready
        cluster.launch_server()
    for _ in range(2):
        cluster.launch_worker()
    for daemon in cluster.daemons:
        daemon.wait_for("is ready on port" if daemon in cluster.daemons[:2] else "worker takes tasks")
    # A daemon that connects to RabbitMQ late has dropped what it had to announce, and then all watchers get a gap.
    [(installation,)] = cluster.rows("SELECT id FROM installation")
    queues = f"taskd.{installation}."
    eventually(
        lambda: cluster.rabbitmq.ctl("list_queues", "name").count(queues) == 2 * len(cluster.daemons), 30, "all connect"
    )
    port = cluster.balancer()

    names = [f"user{n}" for n in range(USERS)]
    ids: dict[str, list[int]] = {}
    nodes: Counter[str] = Counter()
    failures: list[BaseException] = []

    def submit(name: str) -> None:
        try:
            with user(port, name) as client:
                nodes[client.request("hello")["node"]] += 1
                spec = {"task": f"of {name}", "payload": {"seconds": 0.01}}
                mine: list[int] = []
                for n in range(TASKS // USERS // BATCH):
                    if n % 2:
                        mine += client.request("new_tasks", tasks=[spec] * BATCH)["task_ids"]
                    else:
                        mine += [client.request("new_task", **spec)["task_id"] for _ in range(BATCH)]
                ids[name] = mine
                assert client.request("wait", task_ids=mine, timeout=60)["done"]
        except BaseException as e:
            failures.append(e)

    # a watcher on the first server sees the tasks that its user submits through the second one
    with user(cluster.ports[0], "watcher") as first, user(cluster.ports[1], "watcher") as second:
        first.request("watch")
        threads = [threading.Thread(target=submit, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        # so long that its begin is stored and announced
        task_id = second.request("new_task", task="seen", payload={"seconds": 1.5})["task_id"]
        seen = [first.event()["task"]]
        while seen[-1]["state"] != "completed":
            seen.append(first.event()["task"])
        # while the other users have a backlog, it waits for a turn
        if seen[0]["state"] == "waiting":
            del seen[0]
        assert [(t["id"], t["state"], t["status"]) for t in seen] == [
            (task_id, "queued", "Procesando"),
            (task_id, "running", "Procesando"),
            (task_id, "completed", "Completada"),
        ]
        for thread in threads:
            thread.join(90)
        assert not failures and not any(thread.is_alive() for thread in threads), failures
        assert not first.events, "events of other users' tasks"
    assert len(nodes) == 2 and min(nodes.values()) >= 5, f"the balancer spreads connections: {nodes}"

    everything = list(itertools.chain.from_iterable(ids.values()))
    assert len(everything) == len(set(everything)) == TASKS
    assert cluster.rows("SELECT state, status, attempt, count(*) FROM tasks GROUP BY 1, 2, 3") == [
        ("completed", "Completada", 1, TASKS + 1)
    ]
    assert len(cluster.rows("SELECT worker FROM tasks GROUP BY worker")) == 2, "both workers ran tasks"
    # a client that closes its sending direction, as nc does at the end of its input, still gets its replies
    assert [reply["status"] for reply in talk(port, ['{"action":"ping"}'] * 3)] == ["success"] * 3
    with user(port, names[0]) as client:
        page = client.request("get_tasks", limit=500)
        assert {t["id"] for t in page["tasks"]} == set(ids[names[0]])
        foreign = ids[names[1]][0]
        for request in ({"action": "get_task"}, {"action": "cancel_task"}):
            reply = client.request(request["action"], task_id=foreign)
            assert (reply["code"], reply["message"]) == ("not_found", f"you have no task {foreign}")
        assert client.request("wait", task_ids=[foreign])["code"] == "not_found"
    eventually(lambda: cluster.rows("SELECT count(*) FROM tasks WHERE held") == [(0,)], 10)
    for daemon in cluster.daemons:
        assert daemon.terminate(15) == 0
        assert "Traceback" not in daemon.output(), daemon.output()
    # nothing of taskd stays in RabbitMQ
    for what in ("queues", "exchanges"):
        eventually(lambda: "taskd" not in cluster.rabbitmq.ctl(f"list_{what}", "name"), 20)  # noqa: B023


def test_one_username_twice_at_the_same_moment(cluster: Cluster) -> None:
    """On two servers: exactly one reply is success, the other one in_use."""
    for _ in range(2):
        cluster.launch_server()
    for daemon in cluster.daemons:
        daemon.wait_for("is ready on port")
    for n in range(10):
        with LineClient(cluster.ports[0]) as one, LineClient(cluster.ports[1]) as two:
            line = f'{{"action":"register","id":1,"username":"Twin{n}","password":"correct horse"}}'.encode()
            one.send_line(line)
            two.send_line(line)
            assert sorted(json.loads(c.read_line())["status"] for c in (one, two)) == ["in_use", "success"]
    assert cluster.rows("SELECT count(*) FROM users") == [(10,)]


def test_a_worker_that_stops_gives_its_tasks_to_another_unspent(cluster: Cluster) -> None:
    """SIGTERM without grace time: the tasks run on another worker at once, still in their first attempt."""
    cluster.launch_server().wait_for("is ready on port")
    first = cluster.launch_worker("--grace", "0")
    first.wait_for("worker takes tasks")
    with user(cluster.ports[0], "ana") as client:
        spec = {"task": "t", "payload": {"seconds": 600}}
        client.request("new_tasks", tasks=[spec] * 50)
        eventually(lambda: len(client.request("get_tasks", state="running")["tasks"]) == 50, 15)
        [(before,)] = cluster.rows("SELECT DISTINCT worker FROM tasks")
        cluster.launch_worker().wait_for("worker takes tasks")
        assert first.terminate(10) == 0
        rows = "SELECT state, attempt, count(*) FROM tasks WHERE worker <> %r GROUP BY 1, 2"
        eventually(lambda: cluster.rows(rows % before) == [("running", 1, 50)], 15)
    assert "50 tasks given back" in first.output()


def test_daemons_that_name_another_installation_do_not_start(cluster: Cluster) -> None:
    """The first one has named it; one that names none takes what it finds."""
    cluster.launch_server(TASKD_INSTALLATION="Staging-2").wait_for("is ready on port")
    cluster.launch_worker().wait_for("worker takes tasks")
    refused = cluster.launch_worker("--installation", "production")
    assert refused.wait(20) == 1
    line = "taskworker: TASKD_INSTALLATION is production, but the database belongs to the installation Staging-2: "
    assert line in refused.output()
    assert cluster.rows("SELECT id FROM installation") == [("Staging-2",)]
    with user(cluster.ports[0], "ana") as client:
        task_id = client.request("new_task", task="t", payload={"seconds": 0})["task_id"]
        assert client.request("wait", task_ids=[task_id], timeout=10)["done"]


def test_queues_have_workers_of_their_own(cluster: Cluster) -> None:
    """A task goes to its queue, and only workers of that queue get it."""
    other = services.unique("other")
    cluster.launch_server(TASKD_QUEUES=other).wait_for("is ready on port")
    cluster.launch_worker("--queue", other).wait_for("worker takes tasks")
    with user(cluster.ports[0], "ana") as client:
        here = client.request("new_task", task="t", payload={"seconds": 0})["task_id"]
        there = client.request("new_task", task="t", payload={"seconds": 0}, queue=other)["task_id"]
        assert client.request("wait", task_ids=[there], timeout=10)["done"]
        assert client.request("get_task", task_id=here)["task"]["state"] == "waiting"
        assert client.request("new_task", task="t", queue="nowhere")["field"] == "queue"
        assert client.request("cancel_task", task_id=here)["task"]["status"] == "Cancelada"
        assert client.request("cancel_task", task_id=there)["code"] == "conflict"
