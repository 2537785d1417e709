"""The session file: its place, its permissions, and broken or unusable files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from taskd.client.errors import ClientError, NotLoggedIn
from taskd.client.sessions import Session, SessionFile, state_folder

SERVER = "127.0.0.1:5000"
SESSION = Session(SERVER, "ana", "secret")


class TestFolder:
    @pytest.mark.parametrize(
        ("env", "folder"),
        [
            ({"XDG_STATE_HOME": "/state", "HOME": "/home/ana"}, "/state/taskd"),
            ({"HOME": "/home/ana"}, "/home/ana/.local/state/taskd"),
            ({"XDG_STATE_HOME": "", "HOME": "/home/ana"}, "/home/ana/.local/state/taskd"),
            ({"XDG_STATE_HOME": "relative", "HOME": "/home/ana"}, "/home/ana/.local/state/taskd"),
        ],
    )
    def test_it_follows_the_xdg_specification(self, env: dict[str, str], folder: str) -> None:
        assert state_folder(env) == Path(folder)

    def test_without_the_variable_home(self) -> None:
        assert state_folder({}).is_absolute()


class TestFile:
    def test_a_round_trip(self, tmp_path: Path) -> None:
        file = SessionFile(tmp_path / "a" / "b", SERVER)
        assert file.load() is None
        file.save(SESSION)
        assert file.load() == SESSION
        file.remove()
        file.remove()
        assert file.load() is None

    def test_only_the_owner_can_read_it_whatever_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            file = SessionFile(tmp_path / "state", SERVER)
            file.save(SESSION)
        finally:
            os.umask(before)
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700

    def test_a_link_is_replaced_not_followed(self, tmp_path: Path) -> None:
        file = SessionFile(tmp_path, SERVER)
        target = tmp_path / "target"
        target.write_text("precious")
        file.path.symlink_to(target)
        (tmp_path / f".{file.path.name}.{os.getpid()}").write_text("left behind by a crash")
        file.save(SESSION)
        assert target.read_text() == "precious"
        assert not file.path.is_symlink()
        assert sorted(tmp_path.iterdir()) == sorted([target, file.path])

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b'{"server":"x"}', b'{"server":"x","username":"a","token":1}']
    )
    def test_a_broken_file(self, tmp_path: Path, content: bytes) -> None:
        file = SessionFile(tmp_path, SERVER)
        file.path.write_bytes(content)
        with pytest.raises(NotLoggedIn):
            file.load()

    def test_a_folder_in_place_of_the_file(self, tmp_path: Path) -> None:
        file = SessionFile(tmp_path, SERVER)
        file.path.mkdir()
        for attempt in (file.load, lambda: file.save(SESSION), file.remove):
            with pytest.raises(ClientError) as caught:
                attempt()
            assert caught.value.key in ("state_unreadable", "state_unwritable")
        assert list(tmp_path.iterdir()) == [file.path], "no draft is left"

    def test_a_file_in_place_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        file = SessionFile(tmp_path / "file", SERVER)
        assert file.load() is None
        file.remove()
        with pytest.raises(ClientError) as caught:
            file.save(SESSION)
        assert caught.value.key == "state_unwritable"

    def test_every_server_has_its_own_file(self, tmp_path: Path) -> None:
        servers = [
            SERVER,
            "[::1]:5000",
            "tls:example.org:5001",
            "tls:example.org:5001:trustRoots=/a",
            "tls:example.org:5001:trustRoots=/A",
            "unix:/run/taskd_x",
            "unix:/run/taskd-x",
            *(f"unix:/{'x' * 200}{n}" for n in range(2)),
        ]
        names = {SessionFile(tmp_path, server).path.name for server in servers}
        assert len(names) == len(servers)
        for name in names:
            assert len(name) < 255 and "/" not in name
