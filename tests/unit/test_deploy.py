"""docker-compose.yml, .env.example and the systemd units agree with the code and the tests.

Nothing runs here; the integration tests run the daemons with these commands.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from taskd.config import declarations, docs, reading
from taskd.config.reading import read_settings
from tests.daemons import TWISTD
from tests.services import render_nginx

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OURS = {
    "taskserver-1": "taskserver",
    "taskserver-2": "taskserver",
    "taskworker-1": "taskworker",
    "taskworker-2": "taskworker",
}
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (ROOT / ".env.example").read_text()
EXAMPLE_NAMES = set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.MULTILINE))


def resolved(value: str) -> str:
    """A value of the compose file when there is no .env."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", value)


def dockerfile(instruction: str) -> str:
    """The arguments of the last instruction of this name."""
    return re.findall(rf"^{instruction} (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]


def test_the_compose_file_has_all_services() -> None:
    """Two servers behind a balancer, two workers, and what they share."""
    assert set(SERVICES) == {"postgres", "rabbitmq", "nginx", *OURS}
    assert SERVICES["postgres"]["image"].split(":")[1].startswith("16")
    assert re.fullmatch(r"rabbitmq:\d.*", SERVICES["rabbitmq"]["image"])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_has_a_health_check_and_restarts(name: str) -> None:
    """A health check, a restart policy, and an image with a version or our own build."""
    service = SERVICES[name]
    test = service["healthcheck"]["test"]
    assert test[0] in ("CMD", "CMD-SHELL") and len(test) > 1
    assert service["healthcheck"]["interval"] and service["healthcheck"]["timeout"]
    assert service["restart"] == "unless-stopped"
    assert service.get("build") == "." if name in OURS else ":" in service["image"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_start_after_their_dependencies_are_healthy(name: str) -> None:
    """Every dependency is a service and has a condition."""
    needed = SERVICES[name].get("depends_on", {})
    assert {d["condition"] for d in needed.values()} <= {"service_healthy"}
    shared = {"postgres", "rabbitmq"}
    expected = {"nginx": {"taskserver-1", "taskserver-2"}} | {daemon: shared for daemon in OURS}
    assert set(needed) == expected.get(name, set())


def test_only_the_balancer_publishes_a_port() -> None:
    """The other services are reachable only inside the network."""
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["nginx"]


def test_data_is_in_volumes() -> None:
    """The data of PostgreSQL and RabbitMQ; RabbitMQ needs a fixed host name to find it."""
    named = {
        name: service["volumes"][0].split(":")[0] for name, service in SERVICES.items() if name in COMPOSE["volumes"]
    }
    assert named == {"postgres": "postgres", "rabbitmq": "rabbitmq"}
    assert SERVICES["rabbitmq"]["hostname"]


@pytest.mark.parametrize("name", sorted(OURS))
def test_containers_run_the_tested_commands(name: str) -> None:
    """The options before the daemon's name are those of tests/daemons.py."""
    command = SERVICES[name]["command"]
    assert command[: len(TWISTD) + 1] == [*TWISTD, OURS[name]]
    if OURS[name] == "taskserver":
        assert yaml.safe_load(dockerfile("CMD")) == command


@pytest.mark.parametrize("daemon", ["taskserver", "taskworker"])
def test_units_run_the_tested_commands(daemon: str) -> None:
    """With the twistd of the virtual environment."""
    [line] = re.findall(r"^ExecStart=(.+)$", (DEPLOY / f"{daemon}.service").read_text(), re.MULTILINE)
    program, *options = shlex.split(line)
    assert [Path(program).name, *options] == [*TWISTD, daemon]


@pytest.mark.parametrize("name", [name for name in sorted(OURS) if OURS[name] == "taskworker"])
def test_workers_start_in_the_folder_of_handlers(name: str) -> None:
    """Workers look there for the values of TASKD_HANDLERS and TASKD_PROGRAMS."""
    worker = SERVICES[name]
    assert worker["volumes"] == [f"./handlers:{worker['working_dir']}:ro"]
    assert worker["init"] is True


@pytest.mark.parametrize("name", [name for name in sorted(OURS) if OURS[name] == "taskworker"])
def test_tasks_cannot_read_the_environment_of_the_first_process(name: str) -> None:
    """It is of root, and the worker is not: it runs as the user of the image. Health checks have no passwords."""
    worker = SERVICES[name]
    user, group = dockerfile("USER").split(":")
    change = {f"--reuid={user}", f"--regid={group}", "--clear-groups"}
    assert worker["user"] == "root" and worker["entrypoint"][0] == "setpriv"
    assert change | {"--no-new-privs"} <= set(worker["entrypoint"])
    check = worker["healthcheck"]["test"]
    assert check[1:3] == ["env", "-i"] and change <= set(check)


@pytest.mark.parametrize("daemon", ["taskserver", "taskworker"])
def test_units_let_the_daemon_end_its_children(daemon: str) -> None:
    """TERM goes to the daemon only, and a task that runs out of memory does not stop the service."""
    lines = (DEPLOY / f"{daemon}.service").read_text().splitlines()
    assert {"KillMode=mixed", "OOMPolicy=continue"} <= set(lines)


def test_a_server_with_local_logins_sees_the_users_and_has_a_folder_for_its_socket() -> None:
    """What operations.md sets in its environment is where the unit makes a folder."""
    unit = (DEPLOY / "taskserver.service").read_text().splitlines()
    drop_in = (DEPLOY / "taskserver.service.d" / "local.conf").read_text().splitlines()
    assert "PrivateUsers=yes" in unit
    assert {"PrivateUsers=no", "RuntimeDirectory=taskd", "RuntimeDirectoryMode=0755"} <= set(drop_in)
    operations = (ROOT / "docs" / "operations.md").read_text()
    [listen] = re.findall(r"^TASKD_LISTEN=(.* unix:.*)$", operations, re.MULTILINE)
    settings = read_settings(environ={"TASKD_LISTEN": listen, "TASKD_LOCAL_USERS": "1"})
    assert settings.local_users and settings.listen[-1] == "unix:/run/taskd/taskd.sock"


def exposure(unit: str, folder: Path, drop_in: str = "") -> float:
    """What `systemd-analyze security` gives a unit of ours, from 0 (best) to 10, in a folder without other files."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    shutil.copy(DEPLOY / unit, folder / unit)
    if drop_in:
        # systemd-analyze reads it as systemd does
        (folder / f"{unit}.d").mkdir()
        shutil.copy(DEPLOY / f"{unit}.d" / drop_in, folder / f"{unit}.d" / drop_in)
    command = [program, "security", "--offline=yes", "--no-pager", str(folder / unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze has no --offline, which came with systemd 250")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    return float(found[1])


@pytest.mark.parametrize(("daemon", "most"), [("taskserver", 2.0), ("taskworker", 4.0)])
def test_units_may_do_little(daemon: str, most: float, tmp_path: Path) -> None:
    """A unit that says nothing has more than 9."""
    assert exposure(f"{daemon}.service", tmp_path) <= most


def test_the_drop_in_for_programs_of_other_users(tmp_path: Path) -> None:
    """It gives rights, and is scored apart from the unit."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    most = exposure("taskworker.service", together, "programs.conf")
    assert exposure("taskworker.service", alone) < most <= 4.0


@pytest.mark.parametrize("path", ["taskserver.service", "taskworker.service", "taskworker.service.d/programs.conf"])
def test_each_line_that_takes_or_gives_rights_has_its_reason(path: str) -> None:
    """A comment above it, or above the group that it stands in."""
    text = (DEPLOY / path).read_text().partition("[Service]\n")[2].partition("[Install]")[0]
    explained = False
    for line in text.splitlines():
        if line.startswith("#"):
            explained = True
        elif not line:
            explained = False
        elif re.match("(Protect|Private|Restrict|System|Capab|Ambient|NoNew|Lock|Device|UMask|Remove|Delegate)", line):
            assert explained, line


def test_units_leave_what_the_daemons_need() -> None:
    """pyOpenSSL's callbacks need memory that is writable and executable, handlers may; every lookup uses NETLINK."""
    for daemon in ("taskserver", "taskworker"):
        lines = (DEPLOY / f"{daemon}.service").read_text().splitlines()
        assert not any(line.startswith("MemoryDenyWriteExecute=") for line in lines)
        [families] = [line for line in lines if line.startswith("RestrictAddressFamilies=")]
        assert {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"} <= set(families.partition("=")[2].split())
        assert "SystemCallErrorNumber=EPERM" in lines
    server = (DEPLOY / "taskserver.service").read_text()
    assert "ExecReload=/bin/kill -HUP $MAINPID" in server


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_containers_have_few_rights(name: str) -> None:
    """Ours have no capability and a root file system that nobody can write to; no container gains rights."""
    service = SERVICES[name]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged")
    if name in OURS:
        # a worker begins as root and becomes its user
        capabilities = ["KILL", "SETGID", "SETUID"] if name.startswith("taskworker") else []
        assert service["cap_drop"] == ["ALL"] and service.get("cap_add", []) == capabilities
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp:mode=1777,size=1g", "/var/lib/taskd:uid=999,gid=999,mode=0700"]
    assert service.get("user") not in ("root", "0") or service["entrypoint"][0] == "setpriv"


def test_the_user_of_the_image_is_that_of_the_file_systems_in_memory() -> None:
    """A tmpfs names its owner by number, so the image fixes it."""
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"groupadd .*--gid 999 taskd", text) and re.search(r"useradd .*--uid 999 --gid 999 ", text)
    assert dockerfile("USER") == "999:999"


def test_make_run_runs_the_tested_command() -> None:
    """``make run`` in the checkout starts the same command."""
    assert f"$(BIN)/{' '.join(TWISTD)} taskserver" in (ROOT / "Makefile").read_text()


def test_every_variable_of_the_compose_file_is_explained() -> None:
    """.env.example has it; and it has a default, so ``docker compose up`` works without a .env."""
    used = re.findall(r"(?<!\$)\$\{([A-Z_]+)(:-)?", COMPOSE_TEXT)
    assert used
    assert {name for name, _ in used} <= EXAMPLE_NAMES
    assert all(default for _, default in used)


@pytest.mark.parametrize("name", sorted(OURS))
def test_containers_get_variables_that_the_daemons_know(name: str, tmp_path: Path) -> None:
    """All settings, no unknown variable, and no malformed value when .env does not set it."""
    environment = {key: resolved(value) for key, value in SERVICES[name]["environment"].items()}
    # The containers are distributed, and the ports inside them fixed.
    assert set(environment) == EXAMPLE_NAMES - {"TASKD_DATA", "TASKD_LISTEN", "TASKD_PUBLISH"}
    nothing = tmp_path / "env"
    nothing.touch()
    settings = read_settings(str(nothing), environment)
    assert settings.postgres is not None and settings.postgres.host in SERVICES
    assert settings.rabbitmq is not None and settings.rabbitmq.host in SERVICES
    server = {key: resolved(value) for key, value in SERVICES["postgres"]["environment"].items()}
    assert server == {key: environment[key] for key in server}


def test_the_example_names_what_the_code_reads() -> None:
    """Exactly these; only docker-compose.yml reads the published port."""
    source = Path(declarations.__file__).read_text()
    assert set(re.findall(r'"((?:POSTGRES|RABBITMQ|TASKD)_[A-Z_]+)"', source)) == EXAMPLE_NAMES
    read = set(re.findall(r"d\.((?:POSTGRES|RABBITMQ|TASKD)_[A-Z_]+)", Path(reading.__file__).read_text()))
    assert read | {"TASKD_PUBLISH"} == EXAMPLE_NAMES


def test_the_example_is_generated_from_the_declarations() -> None:
    """``python -m taskd.config.docs`` writes it."""
    assert docs.example() == EXAMPLE


def test_the_example_changes_nothing_and_shows_the_defaults(tmp_path: Path) -> None:
    """With its lines commented out, and without."""
    shown = tmp_path / "env"
    shown.write_text(re.sub(r"^#([A-Z_]+=)", r"\1", EXAMPLE, flags=re.MULTILINE))
    nothing = tmp_path / "empty"
    nothing.touch()
    defaults = read_settings(str(nothing), {})
    assert read_settings(str(ROOT / ".env.example"), {}) == defaults
    assert read_settings(str(shown), {}) == defaults


def test_every_variable_of_the_example_has_a_comment() -> None:
    """A group of variables is preceded by one."""
    for group in re.split(r"\n\n+", EXAMPLE.strip()):
        assert re.match(r"# \S", group), group


def test_the_image_holds_what_the_build_reads() -> None:
    """The files that the Dockerfile copies exist, and .dockerignore allows them."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists() and source in allowed
    assert dockerfile("USER") not in ("root", "0")


def test_nginx_gets_other_ports_and_keeps_the_rest() -> None:
    """tests/services.py replaces the ports and nothing else."""
    template = (DEPLOY / "nginx.conf").read_text()
    rendered = render_nginx(template, 6000, [6001, 6002, 6003])
    assert re.findall(r"^ *server (\S+) (.*);", rendered, re.MULTILINE) == [
        (f"127.0.0.1:{port}", "max_fails=1 fail_timeout=5s") for port in (6001, 6002, 6003)
    ]
    assert re.findall(r"listen (\S+)", rendered)[-1] == "127.0.0.1:6000"
    assert set(re.findall(r"^ *server ([\w-]+):5000 ", template, re.MULTILINE)) == {
        name for name, daemon in OURS.items() if daemon == "taskserver"
    }
    rest = re.compile(r"^.*(server|listen) .*$\n", re.MULTILINE)
    assert rest.sub("", rendered) == rest.sub("", template)


class FakeDaemon:
    """Answers everybody who connects to it with one line, or with nothing."""

    def __init__(self, family: int, address: Any, answer: bytes | None) -> None:
        self._socket = socket.socket(family)
        self._socket.bind(address)
        self._socket.listen()
        self.name = self._socket.getsockname()
        self.requests: list[bytes] = []
        self._answer = answer
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        kept = []
        while True:
            connection, _ = self._socket.accept()
            kept.append(connection)
            if isinstance(self.name, tuple):
                self.requests.append(connection.recv(1000))
            if self._answer is not None:
                connection.sendall(self._answer)
                connection.close()


HEALTHY = b'{"healthy":true,"reasons":[]}\n'
SICK = b'{"healthy":false,"reasons":["store: read-only","broker: away"]}\n'
NO_HEALTH = b'{"ok":false,"status":"error","code":"forbidden"}\n'


class TestHealthCheck:
    """deploy/healthcheck.py, with daemons that answer as they should, or do not."""

    @pytest.fixture
    def check(self) -> Any:
        return runpy.run_path(str(DEPLOY / "healthcheck.py"))

    def test_a_healthy_server(self, check: Any) -> None:
        daemon = FakeDaemon(socket.AF_INET, ("127.0.0.1", 0), HEALTHY)
        check["check_server"](f"127.0.0.1:{daemon.name[1]}")
        assert daemon.requests == [b'{"action":"health"}\n']

    def test_a_healthy_worker(self, check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        daemon = FakeDaemon(socket.AF_UNIX, str(tmp_path / "health"), HEALTHY)
        check["check_worker"](daemon.name)
        monkeypatch.setenv("TASKD_HEALTH", daemon.name)
        check["check_worker"]()

    @pytest.mark.parametrize(
        ("answer", "words"), [(SICK, "read-only; broker"), (NO_HEALTH, "forbidden"), (b"", "without"), (b"x\n", "")]
    )
    def test_an_unhealthy_daemon(self, check: Any, tmp_path: Path, answer: bytes, words: str) -> None:
        server = FakeDaemon(socket.AF_INET, ("127.0.0.1", 0), answer)
        with pytest.raises((OSError, ValueError), match=words):
            check["check_server"](f"127.0.0.1:{server.name[1]}")
        worker = FakeDaemon(socket.AF_UNIX, str(tmp_path / "health"), answer)
        with pytest.raises((OSError, ValueError), match=words):
            check["check_worker"](worker.name)

    def test_a_frozen_daemon(self, check: Any, tmp_path: Path) -> None:
        """It accepts, for the kernel does that, and never answers."""
        check["check_worker"].__globals__["SECONDS"] = 0.1
        daemon = FakeDaemon(socket.AF_UNIX, str(tmp_path / "health"), None)
        with pytest.raises(TimeoutError, match=r"no answer within 0.1 s"):
            check["check_worker"](daemon.name)

    def test_a_daemon_that_is_not_there(self, check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(OSError):
            check["check_worker"](str(tmp_path / "nothing"))
        monkeypatch.delenv("TASKD_HEALTH", raising=False)
        with pytest.raises(ValueError, match="TASKD_HEALTH"):
            check["check_worker"]()
