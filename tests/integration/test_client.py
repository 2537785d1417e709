"""``taskclient`` as a user runs it: real processes, in pipes and on a terminal, against a real embedded server."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from taskd.cli.ui.text import width
from taskd.client.sessions import Session, SessionFile, state_folder
from tests.certificates import Certificate, authority
from tests.daemons import Daemon, LineClient, free_port
from tests.integration.terminal import Terminal
from tests.processes import clean_environment

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "bin" / "taskclient"
PASSWORD = "correct horse"
READY = "is ready on port"

_numbers = itertools.count(1)
_names = (f"user{n}" for n in itertools.count(1))


class Server:
    """An embedded server with a plain and a TLS port. It runs ``slots`` tasks at a time.

    What it works on besides ``options`` say; modules of handlers are looked for in its folder.
    """

    def __init__(self, folder: Path, slots: int = 100, options: Sequence[str] = ()) -> None:
        self.folder = folder
        self.port, self.tls_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._options = ["--slots", str(slots), *options]
        self.trusted = make_certificate(folder)
        self.daemon = self.start()

    def start(self) -> Daemon:
        """Start or restart it, and wait until it is ready."""
        key, cert = self.folder / "key.pem", self.trusted / "cert.pem"
        listen = [
            f"tcp:{self.port}:interface=127.0.0.1",
            f"ssl:{self.tls_port}:interface=127.0.0.1:privateKey={key}:certKey={cert}",
        ]
        arguments = [*self._options, *(word for where in listen for word in ("--listen", where))]
        env = {
            "TASKD_BCRYPT_ROUNDS": "4",
            "TASKD_REGISTRATIONS_PER_HOUR": "0",
            "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}",
        }
        self.daemon = Daemon.twistd("taskserver", arguments, env, cwd=self.folder)
        self.daemon.wait_for(READY)
        return self.daemon


class Client:
    """The client's processes of one user at one server, with a state folder of their own."""

    def __init__(self, folder: Path, server: str) -> None:
        self.folder = folder
        self.server = server
        self.env = clean_environment(
            XDG_STATE_HOME=str(folder / "state"), LC_ALL="C.UTF-8", TERM="xterm", TZ="UTC", TASKD_SERVER=server
        )
        for name in ("NO_COLOR", "COLUMNS", "LINES", "PYTHONIOENCODING", "PYTHONUNBUFFERED"):
            self.env.pop(name, None)
        self.sessions = SessionFile(state_folder(self.env), server)
        self.token = ""

    @property
    def port(self) -> int:
        """The server's port, for direct connections."""
        return int(self.server.rpartition(":")[2])

    def command(self, *argv: str) -> list[str]:
        """The command line of a process."""
        return [sys.executable, str(CLIENT), *argv]

    def run(self, *argv: str, input: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            self.command(*argv),
            input=input,
            env=self.env | env,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=30,
        )
        assert "Traceback" not in done.stderr
        return done

    def ok(self, *argv: str, input: str = "", **env: str) -> str:
        """The output of a command that succeeds."""
        done = self.run(*argv, input=input, **env)
        assert (done.returncode, done.stderr) == (0, ""), (done.stdout, done.stderr)
        return done.stdout

    def fails(self, status: int, *argv: str, input: str = "", **env: str) -> str:
        """The one line of a command that fails."""
        done = self.run(*argv, input=input, **env)
        assert (done.returncode, done.stdout) == (status, ""), (done.returncode, done.stdout, done.stderr)
        assert done.stderr.startswith("taskclient: ") and len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr.strip()

    def start(self, *argv: str) -> Daemon:
        """Start a command in the background."""
        log = self.folder / f"client-{next(_numbers)}.log"
        return Daemon(self.command(*argv), log, env=self.env, cwd=self.folder)

    def terminal(self, *argv: str, columns: int = 80, **env: str) -> Terminal:
        """Run a command on a terminal."""
        return Terminal(self.command(*argv), env=self.env | env, cwd=self.folder, columns=columns)

    def log_in(self) -> Client:
        """Register a new user, and store the session as ``login`` does."""
        name = next(_names)
        with LineClient(self.port) as line:
            assert line.request("register", username=name, password=PASSWORD)["ok"]
            self.token = line.request("login", username=name, password=PASSWORD)["token"]
        self.sessions.save(Session(self.server, name, self.token))
        return self

    def has_task(self, text: str, wait: bool = False, **payload: Any) -> str:
        """Create a task of the user, or one that has ended; returns its number."""
        task_id = json.loads(self.asks("new_task", task=text, payload=payload))["task_id"]
        if wait:
            assert json.loads(self.asks("wait", task_ids=[task_id], timeout=10))["done"]
        return str(task_id)

    def asks(self, action: str, **fields: Any) -> bytes:
        """The server's reply to the same request on a direct connection."""
        with LineClient(self.port) as line:
            line.request("login", token=self.token)
            line.send_line(json.dumps({"action": action, "id": 2, **fields}).encode())
            return line.read_line()


def make_certificate(folder: Path) -> Path:
    """Write ``key.pem`` and a self-signed certificate for ``localhost``; returns the certificate's folder."""
    trusted = folder / "trusted"
    trusted.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (trusted / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return trusted


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that all tests share; each test has its own user."""
    server = Server(tmp_path_factory.mktemp("server"))
    with server.daemon:
        yield server


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Client:
    """A client without a session."""
    return Client(tmp_path, server.address)


@pytest.fixture
def ana(client: Client) -> Client:
    """A client with the session of a new user."""
    return client.log_in()


class TestAccounts:
    def test_from_register_to_logout(self, client: Client) -> None:
        name = next(_names)
        assert f"Next: taskclient login {name}" in client.ok("register", name, input=f"{PASSWORD}\n")
        assert "wrong password" in client.fails(1, "login", name, input="wrong horse")
        time.sleep(1)  # the server makes whoever was wrong wait
        assert client.fails(4, "whoami").endswith("log in: taskclient login")

        assert client.ok("login", name, TASKD_PASSWORD=PASSWORD) == f"Logged in as {name}.\n"
        path = client.sessions.path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert PASSWORD not in path.read_text()
        assert client.ok("whoami") == f"{name}\n"

        assert client.ok("logout") == "Logged out.\n"
        assert list(path.parent.iterdir()) == []
        client.fails(4, "list")

    def test_a_session_that_the_server_has_ended(self, ana: Client) -> None:
        ana.asks("logout")
        assert "log in again: taskclient login" in ana.fails(4, "whoami")
        assert not ana.sessions.path.exists()

    def test_a_session_file_that_is_broken(self, ana: Client) -> None:
        ana.sessions.path.write_bytes(b"\xff\x00")
        assert "is not a session file; log in again" in ana.fails(4, "list")

    def test_a_state_folder_that_is_not_writable(self, ana: Client) -> None:
        file = ana.folder / "file"
        file.touch()
        name = json.loads(ana.asks("whoami"))["username"]
        says = ana.fails(1, "login", name, input=PASSWORD, XDG_STATE_HOME=str(file))
        assert "cannot store the session in" in says and "set XDG_STATE_HOME" in says


class TestTasks:
    def test_add_list_show(self, ana: Client) -> None:
        added = ana.run("add", "render", "scene", "7", "--field", "seconds=0", "--wait")
        assert added.returncode == 0
        lines = added.stdout.splitlines()
        task_id = lines[0].removeprefix("Task ").removesuffix(" created.")
        assert lines[-1].endswith('completed      render scene 7: {"seconds":0}')

        (heading, row) = ana.ok("list", "--status", "Completada").splitlines()
        assert heading.split() == ["ID", "STATUS", "STATE", "KIND", "AGE", "TASK"]
        assert row.split()[:4] == [task_id, "Completada", "completed", "simulate"]
        assert ana.ok("list", "--status", "Cancelada") == "No tasks.\n"

        details = dict(line.split(":", 1) for line in ana.ok("show", task_id).splitlines())
        assert details["Status"].strip() == "Completada (completed)"
        assert details["Payload"].strip() == '{"seconds":0}'
        assert "you have no task 999999999" in ana.fails(1, "show", "999999999")

    def test_json_is_what_the_server_sends(self, ana: Client) -> None:
        (created,) = map(json.loads, ana.ok("add", "an x", "--field", "seconds=0", "--json").splitlines())
        assert (created["status"], created["id"]) == ("task_created", 2)
        task_id = created["task_id"]
        waited = ana.ok("wait", str(task_id), "--json").encode()

        assert waited == ana.asks("wait", task_ids=[task_id]) + b"\n"
        assert ana.ok("whoami", "--json").encode() == ana.asks("whoami") + b"\n"
        assert ana.ok("show", str(task_id), "--json").encode() == ana.asks("get_task", task_id=task_id) + b"\n"
        listed = msgspec.json.decode(ana.asks("get_tasks"), type=dict[str, msgspec.Raw])["tasks"]
        assert ana.ok("list", "--json").encode() == bytes(listed)[1:-1] + b"\n"
        refused = ana.run("cancel", str(task_id), "--json")
        assert (refused.returncode, refused.stderr) == (1, "")
        assert refused.stdout.encode() == ana.asks("cancel_task", task_id=task_id) + b"\n"

    def test_lines_of_the_input(self, ana: Client) -> None:
        lines = "".join(f"task {n}\n\n" for n in range(2500))
        says = ana.ok("add", "-", "--field", "seconds=0", input=lines)
        assert says.startswith("2500 tasks created (")
        listed = [json.loads(line)["task"] for line in ana.ok("list", "--all", "--json").splitlines()]
        assert listed == [f"task {n}" for n in reversed(range(2500))]
        assert len(ana.run("list", "--limit", "3").stdout.splitlines()) == 4

    def test_a_chosen_key(self, ana: Client) -> None:
        created = ana.ok("add", "pay", "--key", "invoice 17")
        known = ana.ok("add", "pay", "--key", "invoice 17")
        assert known == created.replace("created", "already exists under this key")
        assert "the key 'invoice 17' stands for another task" in ana.fails(1, "add", "other", "--key", "invoice 17")
        ana.ok("add", "-", "--key", "k", input="one\n\ntwo\n")
        again = ana.ok("add", "-", "--key", "k", input="one\n\ntwo\nthree\n").splitlines()
        assert again[0].endswith(" created.") and again[1].startswith("2 tasks already exist under these keys")
        assert len(ana.ok("list", "--json").splitlines()) == 4

    def test_states_are_shown_while_they_change(self, ana: Client) -> None:
        with ana.start("add", "slow", "--field", "seconds=60", "--wait") as add:
            add.wait_for("running")
            assert [line.split()[2] for line in add.output().splitlines()][-2:] == ["queued", "running"]
            assert add.stop(signal.SIGINT, 10) == 130
            assert add.output().endswith("\n\nInterrupted.\n")

    def test_watch_shows_what_another_process_adds(self, ana: Client) -> None:
        ana.has_task("before", wait=True, seconds=0)
        with ana.start("watch") as text, ana.start("watch", "--json") as objects:
            text.wait_for("before")
            objects.wait_for('"ok":true')
            ana.ok("add", "after", "--field", "seconds=0")
            text.wait_for("completed      after")
            objects.wait_for('"state":"completed","attempt":1', timeout=10)
            for watch in (text, objects):
                assert watch.stop(signal.SIGINT, 10) == 130
            assert "Interrupted." in text.output()
            first, *events = map(json.loads, objects.output().splitlines()[:-2])
            assert [task["task"] for task in first["tasks"]] == ["before"]
            assert {event["event"] for event in events} == {"task"}
            assert events[-1]["task"]["status"] == "Completada"

    def test_wait_and_its_exit_statuses(self, ana: Client) -> None:
        slow = ana.has_task("slow", seconds=60)
        waited = ana.run("wait", slow, "--timeout", "0.2")
        assert waited.returncode == 3
        assert f"1 of the tasks did not end in time: {slow}" in waited.stderr
        failed = ana.run("add", "bad", "--field", "seconds=-1", "--wait")
        assert failed.returncode == 5
        assert "failed         bad: " in failed.stdout
        failed_id = failed.stdout.split()[1]
        assert ana.run("wait", failed_id, slow, "--timeout", "0", "--json").returncode == 5

    def test_cancelled(self, tmp_path: Path) -> None:
        server = Server(tmp_path, slots=1)
        with server.daemon:
            bob = Client(tmp_path, server.address).log_in()
            blocking = bob.has_task("first", seconds=60)
            with bob.start("add", "second", "--wait") as add:
                add.wait_for("created")
                second = add.output().split()[1]
                assert bob.ok("cancel", second, blocking) == f"Task {second} cancelled.\nTask {blocking} cancelled.\n"
                assert add.wait(10) == 3
                assert "cancelled" in add.output()

    @pytest.mark.parametrize("argv", [[], ["fly"], ["show", "x"], ["add"]])
    def test_a_wrong_command_line(self, ana: Client, argv: list[str]) -> None:
        done = ana.run(*argv)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr


class TestPipesAndLocales:
    def test_a_reader_that_closes_the_pipe(self, ana: Client) -> None:
        for _ in range(10):
            assert json.loads(ana.asks("new_tasks", tasks=[{"task": "x" * 2000}] * 20))["ok"]
        for command in ("list --all", "watch"):
            # Write the client's exit status to standard error, which is not the pipe
            script = f'{{ "{sys.executable}" "{CLIENT}" {command}; echo "status $?" >&2; }} | head -n 1'
            done = subprocess.run(["sh", "-c", script], env=ana.env, capture_output=True, text=True, timeout=20)
            assert len(done.stdout.splitlines()) == 1
            assert done.stderr == "status 141\n", command

    def test_a_full_disk(self, ana: Client) -> None:
        with open("/dev/full", "wb") as full:
            done = subprocess.run(ana.command("whoami"), env=ana.env, stdout=full, stderr=subprocess.PIPE, timeout=20)
        assert done.returncode == 1
        assert done.stderr.startswith(b"taskclient: cannot write the output: No space left on device")
        assert len(done.stderr.splitlines()) == 1

    def test_characters_that_the_locale_cannot_encode(self, ana: Client) -> None:
        ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
        assert "created" in ana.ok("add", "-", input="año 日本\n", **ascii_only)
        assert "a\\xf1o \\u65e5\\u672c" in ana.ok("list", **ascii_only)
        assert json.loads(ana.ok("list", "--json", **ascii_only))["task"] == "año 日本"
        assert "Iniciar sesi\\xf3n" in ana.ok("login", "--help", TASKD_LANG="es", **ascii_only)

    def test_bytes_that_are_not_text(self, ana: Client) -> None:
        command = [os.fsencode(word) for word in ana.command("add", "x", "--field")]
        done = subprocess.run([*command, b"a=\xff"], env=ana.env, capture_output=True, timeout=20)
        assert done.returncode == 1
        assert done.stderr.startswith(b"taskclient: ") and len(done.stderr.splitlines()) == 1


class TestTls:
    def test_a_certificate_that_is_trusted(self, server: Server, tmp_path: Path) -> None:
        eve = Client(tmp_path, f"tls:localhost:{server.tls_port}:trustRoots={server.trusted}")
        name = next(_names)
        eve.ok("register", name, input=PASSWORD)
        eve.ok("login", name, input=PASSWORD)
        assert "completed" in eve.ok("add", "over TLS", "--field", "seconds=0", "--wait")

    def test_wrong_tls_settings(self, server: Server, tmp_path: Path) -> None:
        port, trust = server.tls_port, f"trustRoots={server.trusted}"
        for address, says in (
            (f"tls:localhost:{port}", "is not trusted: its issuer is CN="),
            (f"tls:127.0.0.1:{port}:{trust}", "is for another host name; it is for: localhost"),
            (f"127.0.0.1:{port}", "this port speaks TLS only"),
            (f"tls:localhost:{server.port}:{trust}", "does not use TLS"),
            (f"tls:localhost:{port}:trustRoots={tmp_path}/none", "there is no such file or folder"),
        ):
            status = 2 if "none" in address else 1
            assert says in Client(tmp_path, address).fails(status, "login", "eve", input=PASSWORD)

    def test_authorities_in_a_file(self, server: Server, tmp_path: Path) -> None:
        address = f"tls:localhost:{server.tls_port}"
        cafile = str(server.trusted / "cert.pem")
        name = next(_names)
        ana = Client(tmp_path, address)
        ana.ok("--cafile", cafile, "register", name, input=PASSWORD)
        ana.env["TASKD_CAFILE"] = cafile
        ana.ok("login", name, input=PASSWORD)
        assert ana.ok("whoami").strip() == name
        assert "there is no such file or folder" in ana.fails(2, "whoami", "--cafile", str(tmp_path / "none"))
        plain = Client(tmp_path, server.address)
        assert "--cafile needs a connection with TLS" in plain.fails(2, "whoami", "--cafile", cafile)

    def test_renewed_certificates(self, tmp_path: Path) -> None:
        """SIGHUP reads them, and cuts nobody off."""
        server, ca = Server(tmp_path), authority()
        expired = ca.issue("localhost", days=(-9, -2))
        (tmp_path / "ca.pem").write_bytes(ca.pem)
        with server.daemon as daemon:
            trusting = ssl.create_default_context(cafile=str(server.trusted / "cert.pem"))
            with (
                socket.create_connection(("127.0.0.1", server.tls_port), 20) as raw,
                trusting.wrap_socket(raw, server_hostname="localhost") as old,
            ):
                self.renew(server, expired, f"the old certificate stays in use: {server.trusted}/cert.pem: the cert")
                self.renew(server, ca.issue("localhost"), "new connections get the certificate of")
                new = Client(tmp_path, f"tls:localhost:{server.tls_port}")
                name = next(_names)
                new.ok("register", name, "--cafile", str(tmp_path / "ca.pem"), input=PASSWORD)
                old.sendall(b'{"action":"ping","id":1}\n')
                assert b'"ok":true' in old.recv(1000)
            assert daemon.returncode is None

    def renew(self, server: Server, certificate: Certificate, says: str) -> None:
        """Replace the files, and tell the server."""
        _, written = certificate.write(server.folder)
        written.replace(server.trusted / "cert.pem")
        os.kill(server.daemon.pid, signal.SIGHUP)
        server.daemon.wait_for(says)


class Impostor:
    """A server that is not taskd: it sends fixed bytes to every client, and closes."""

    def __init__(self, says: bytes) -> None:
        self._says = says
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(self._says)

    def __enter__(self) -> Impostor:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class TestTrouble:
    @pytest.mark.parametrize(
        ("says", "understood"),
        [
            (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "is not a taskd"),
            (b'{"id":1,"ok":true,"status":"logged_in","to', "closed the connection without an answer"),
        ],
    )
    def test_a_server_that_is_not_taskd(self, tmp_path: Path, says: bytes, understood: str) -> None:
        with Impostor(says) as impostor:
            assert understood in Client(tmp_path, impostor.address).fails(1, "login", "ana", input=PASSWORD)

    def test_no_server(self, tmp_path: Path) -> None:
        nobody = Client(tmp_path, f"127.0.0.1:{free_port()}")
        assert "nothing listens at" in nobody.fails(1, "login", "ana", input=PASSWORD)
        assert "no such host name" in Client(tmp_path, "no.such.host.invalid:1").fails(1, "login", "a", input=PASSWORD)

    def test_a_server_that_restarts(self, tmp_path: Path) -> None:
        server = Server(tmp_path)
        bob = Client(tmp_path, server.address).log_in()
        name = json.loads(bob.asks("whoami"))["username"]
        with server.daemon, bob.start("watch", "--limit", "1") as watch, bob.terminal() as menu:
            menu.answer("Choose an option: ", "2")
            menu.answer("Username: ", name)
            menu.answer("Password: ", PASSWORD)
            menu.expect("3. Back")
            menu.expect("Choose an option: ")
            add = bob.start("add", "long", "--field", "seconds=3", "--wait")
            watch.wait_for("running")
            add.wait_for("running")

            server.daemon.kill()
            watch.wait_for("Connection lost; connecting again ...")
            add.wait_for("Connection lost; connecting again ...")
            menu.expect("The connection was lost; the next action connects again.")
            menu.answer("Choose an option: ", "1")
            menu.expect("nothing listens at")
            menu.expect("Choose an option: ")

            with server.start():
                watch.wait_for("Connected again.")
                watch.wait_for("completed      long")
                assert add.wait(10) == 0
                assert watch.stop(signal.SIGTERM, 10) == 143
                menu.press("1\n")
                menu.expect("Completada")
                menu.answer("Choose an option: ", "3")
                menu.answer("Choose an option: ", "3")
                assert menu.wait() == 0

    def test_every_line_is_one_task_although_the_server_is_killed(self, tmp_path: Path) -> None:
        """Long lines make many requests, and several are always in flight."""
        server = Server(tmp_path)
        bob = Client(tmp_path, server.address).log_in()
        lines = [f"{n} ".ljust(1000, "x") for n in range(2000)]
        (tmp_path / "input").write_text("\n".join(lines))
        command = bob.command("add", "-", "--json", "--field", "seconds=60")
        with (
            server.daemon,
            open(tmp_path / "input") as file,
            subprocess.Popen(
                command, env=bob.env, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as add,
        ):
            assert add.stdout is not None and add.stderr is not None
            confirmed: list[str] = []
            for _ in range(2):
                confirmed.append(add.stdout.readline())
                server.daemon.kill()
                server.start()
            with server.daemon:
                confirmed += add.stdout
                notes = add.stderr.read()
                assert add.wait(10) == 0, notes
                listed = [json.loads(line) for line in bob.ok("list", "--all", "--json").splitlines()]
        assert notes.splitlines()[:2] == ["Connection lost; connecting again ...", "Connected again."]
        assert sorted(task["task"] for task in listed) == sorted(lines)
        ids = [task_id for line in confirmed for task_id in json.loads(line)["task_ids"]]
        assert len(ids) == len(lines)
        assert set(ids) == {task["id"] for task in listed}


class TestTerminal:
    def test_the_menu_in_english(self, client: Client) -> None:
        name = next(_names)
        with client.terminal() as screen:
            assert f"taskd at {client.server}\r\n1. Register\r\n2. Log in\r\n3. Leave\r\n" in screen.answer(
                "Choose an option: ", "9"
            )
            screen.expect("Please choose a number from 1 to 3.")
            screen.answer("Choose an option: ", "1")
            screen.answer("Username: ", name)
            for question in ("Password: ", "Password again: "):
                screen.expect(question)
                assert not screen.echoes
                screen.press(f"{PASSWORD}\n")
            screen.expect("Registered. You can log in now.")
            assert screen.echoes

            screen.answer("Choose an option: ", "2")
            screen.answer("Username: ", name)
            screen.answer("Password: ", "wrong horse")
            screen.expect("wrong password")
            screen.answer("Choose an option: ", "2")
            screen.answer("Username: ", name)
            screen.answer("Password: ", PASSWORD)
            screen.expect(f"Logged in as {name}.")
            assert PASSWORD not in screen.output and "horse" not in screen.output

            assert "1. See tasks\r\n2. Create task\r\n3. Back\r\n" in screen.answer("Choose an option: ", "1")
            screen.expect("No tasks.")
            screen.answer("Choose an option: ", "2")
            screen.answer("Task: ", "draw a map")
            screen.expect("created.")
            screen.answer("Choose an option: ", "1")
            assert "Procesando" in screen.expect("draw a map")
            with LineClient(client.port) as line:
                line.request("login", username=name, password=PASSWORD)
                line.request("wait", task_ids=[line.request("get_tasks")["tasks"][0]["id"]], timeout=10)
            screen.answer("Choose an option: ", "1")
            assert "Completada" in screen.expect("draw a map")
            screen.answer("Choose an option: ", "3")
            screen.expect("3. Leave")
            screen.answer("Choose an option: ", "3")
            assert screen.wait() == 0
            assert screen.modes() == screen.before
        assert not client.sessions.path.exists()

    def test_the_menu_in_spanish(self, client: Client) -> None:
        with client.terminal(LC_ALL="es_ES.UTF-8") as screen:
            menu = screen.answer("Elija una opción: ", "1")
            assert "1. Registrarse\r\n2. Iniciar sesión\r\n3. Salir\r\n" in menu
            screen.answer("Usuario: ", next(_names))
            screen.answer("Contraseña: ", "corta")
            screen.expect("una contraseña tiene de 8 a 72 bytes")
            screen.answer("Elija una opción: ", "2")
            screen.answer("Usuario: ", "nadie")
            screen.answer("Contraseña: ", PASSWORD)
            screen.expect("contraseña o usuario incorrectos")
            screen.answer("Elija una opción: ", "3")
            assert screen.wait() == 0

    @pytest.mark.parametrize(("key", "status"), [("c", 130), ("d", 0)])
    def test_leaving_by_the_keyboard(self, client: Client, key: str, status: int) -> None:
        for hidden in (False, True):
            with client.terminal() as screen:
                if hidden:
                    screen.answer("Choose an option: ", "2")
                    screen.answer("Username: ", "ana")
                    screen.expect("Password: ")
                    assert not screen.echoes
                else:
                    screen.expect("Choose an option: ")
                screen.control(key)
                assert screen.wait() == status
                assert screen.modes() == screen.before
                assert "Traceback" not in screen.output

    def test_a_signal_that_interrupts_no_system_call(self, client: Client) -> None:
        # The kernel gives the signal to another thread, so it cannot interrupt the sleep of the reactor. A signal that
        # comes right before this sleep is the same, but a test cannot produce it at will.
        program = [
            "import signal, sys, threading, time",
            "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            "signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))",
            "from taskd.cli.main import main",
            "sys.exit(main(sys.argv[1:]))",
        ]
        command = [sys.executable, "-c", "\n".join(program)]
        with Terminal(command, env=client.env | {"PYTHONPATH": str(ROOT)}, cwd=client.folder) as screen:
            screen.expect("Choose an option: ")
            screen.control("c")
            assert screen.wait() == 130

    def test_a_password_at_the_prompt(self, client: Client) -> None:
        with client.terminal("login", "ana") as screen:
            screen.expect("Password: ")
            assert not screen.echoes
            screen.control("c")
            screen.expect("Interrupted.")
            assert screen.wait() == 130
            assert screen.modes() == screen.before
        with client.terminal("login") as screen:
            screen.expect("Username: ")
            screen.control("d")
            screen.expect("the input ended; nothing done")
            assert screen.wait() == 1

    def test_texts_cannot_control_the_terminal(self, ana: Client) -> None:
        ana.has_task("\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil " + "日本語" * 40)
        for columns in (60, 20):
            with ana.terminal("list", columns=columns, NO_COLOR="1") as screen:
                assert screen.wait() == 0
                lines = screen.output.replace("\r\n", "\n").splitlines()
                assert not set("\x1b\x07\x9b\u202e") & set(screen.output)
                assert len(lines) == 2 and all(width(line) <= columns for line in lines), lines
                assert "\\x1b]0;owned" in lines[1] or columns == 20

    def test_colours_where_they_are_wanted(self, ana: Client) -> None:
        ana.has_task("x", wait=True, seconds=0)
        for term, coloured in (("xterm", True), ("dumb", False)):
            with ana.terminal("list", TERM=term) as screen:
                assert screen.wait() == 0
                assert ("\x1b[32mCompletada" in screen.output) is coloured


@pytest.mark.skipif(not (ROOT / ".venv/bin/python").exists(), reason="make run has made no .venv here")
def test_a_checkout_finds_its_own_environment(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "taskclient"
    link.symlink_to(CLIENT)
    bare = next(
        (python for python in ("/usr/bin/python3", shutil.which("python3")) if python and _lacks_twisted(python)), None
    )
    if bare is None:
        pytest.skip("every Python here has Twisted")
    done = subprocess.run([bare, link, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert "taskclient register ana" in done.stdout


def _lacks_twisted(python: str) -> bool:
    if not os.access(python, os.X_OK):
        return False
    return subprocess.run([python, "-c", "import twisted.internet"], capture_output=True, timeout=20).returncode != 0
