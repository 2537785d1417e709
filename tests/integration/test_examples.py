"""What stands under examples/ works, as docs/handlers.md says it is started."""

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
    """Twelve of them, and one that is none."""
    folder = tmp_path / "pictures" / "holidays"
    folder.mkdir(parents=True)
    for n in range(12):
        Image.new("RGB", (800, 600 if n % 2 else 1200), (20 * n, 90, 200)).save(folder / f"{n:02}.png")
    (folder / "broken.jpg").write_bytes(b"this is no picture")
    return folder


@pytest.fixture
def server(pictures: Path, tmp_path: Path) -> Iterator[LineClient]:
    """An embedded server with the example's handler, started in its folder; a user's connection to it."""
    port = free_port()
    env = {
        "PICTURES": str(pictures.parent),
        "TASKD_HANDLERS": "thumbnails",
        "TASKD_DATA": str(tmp_path / "data"),
        "TASKD_BCRYPT_ROUNDS": "4",
    }
    script = str(Path(sys.executable).with_name(TWISTD[0]))
    command = [script, *TWISTD[1:], "taskserver", "--listen", f"tcp:{port}:interface=127.0.0.1"]
    environment = clean_environment(PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1", **env)
    # with its output elsewhere: the example's folder stays as it is
    with Daemon(command, tmp_path / "output.log", env=environment, cwd=FOLDER) as daemon:
        daemon.wait_for("is ready on port")
        with user(port, "ana") as client:
            yield client


def test_thumbnails_of_a_folder(server: LineClient, pictures: Path) -> None:
    """Each picture gets one, with progress on the way; what is broken is told of; twice is as good as once."""
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
def test_folders_that_are_not_among_the_pictures(server: LineClient, folder: object) -> None:
    """Refused at once, whoever asks."""
    task_id = server.request("new_task", task="t", kind="thumbnails", payload={"folder": folder})["task_id"]
    [task] = server.request("wait", task_ids=[task_id])["tasks"]
    assert (task["status"], task["attempt"]) == ("Fallida", 1)
    assert "folder" in task["error"]
