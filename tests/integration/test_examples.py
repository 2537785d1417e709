"""The examples in examples/ work, started as docs/handlers.md describes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.cluster import user
from tests.daemons import TWISTD, Daemon, LineClient, free_port
from tests.processes import clean_environment

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "thumbnails"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with twelve pictures, and one file that is not a picture."""
    folder = tmp_path / "pictures" / "holidays"
    folder.mkdir(parents=True)
    for n in range(12):
        Image.new("RGB", (800, 600 if n % 2 else 1200), (20 * n, 90, 200)).save(folder / f"{n:02}.png")
    (folder / "broken.jpg").write_bytes(b"this is no picture")
    return folder


@pytest.fixture
def server(pictures: Path, tmp_path: Path) -> Iterator[LineClient]:
    """A connection to an embedded server with the handler of the example, started in the folder of the example."""
    port = free_port()
    env = {
        "PICTURES": str(pictures.parent),
        "TASKD_HANDLERS": "thumbnails",
        "TASKD_DATA": str(tmp_path / "data"),
        "TASKD_BCRYPT_ROUNDS": "4",
        "TASKD_REGISTRATIONS_PER_HOUR": "0",
    }
    script = str(Path(sys.executable).with_name(TWISTD[0]))
    command = [script, *TWISTD[1:], "taskserver", "--listen", f"tcp:{port}:interface=127.0.0.1"]
    environment = clean_environment(PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1", **env)
    # its output goes elsewhere, so that the folder of the example does not change
    with Daemon(command, tmp_path / "output.log", env=environment, cwd=FOLDER) as daemon:
        daemon.wait_for("is ready on port")
        with user(port, "ana") as client:
            yield client


def test_the_thumbnail_example_makes_a_thumbnail_of_each_picture(server: LineClient, pictures: Path) -> None:
    """It reports progress, names the broken file, and makes nothing twice."""
    server.request("watch")
    spec = {"task": "the holidays", "kind": "thumbnails", "payload": {"folder": "holidays", "size": 100}}
    task_id = server.request("new_task", **spec)["task_id"]
    reply = server.request("wait", task_ids=[task_id])
    assert reply["tasks"][0]["result"] == {"made": 12, "there": 0, "skipped": ["broken.jpg"]}
    for n in range(12):
        with Image.open(pictures / "thumbnails" / f"{n:02}.jpg") as small:
            assert max(small.size) == 100
    assert [e["note"] for e in server.events if e["event"] == "progress"][-1] == "done"
    lines = server.request("get_log", task_id=task_id)["lines"]
    assert [line["text"].partition(":")[0] for line in lines] == ["broken.jpg"]
    again = server.request("new_task", **spec)["task_id"]
    assert server.request("wait", task_ids=[again])["tasks"][0]["result"]["there"] == 12


@pytest.mark.parametrize("folder", ["..", "nowhere", "/etc", 5])
def test_the_thumbnail_example_refuses_other_folders(server: LineClient, folder: object) -> None:
    """The first attempt fails the task."""
    task_id = server.request("new_task", task="t", kind="thumbnails", payload={"folder": folder})["task_id"]
    [task] = server.request("wait", task_ids=[task_id])["tasks"]
    assert (task["status"], task["attempt"]) == ("Fallida", 1)
    assert "folder" in task["error"]
