"""taskd.config: variables, the .env file, options, and one clear line for each error."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from taskd.config import DEFAULT_LIMITS, ConnectionLimits, Postgres, RabbitMQ, Settings
from taskd.config.declarations import GRACE
from taskd.config.formats import QUEUE
from taskd.config.reading import DaemonOptions, exposed_secrets, read_option, read_settings
from taskd.model.errors import SettingsError
from taskd.model.quotas import MIB
from taskd.server.tap import Options as ServerOptions
from taskd.worker.tap import Options as WorkerOptions

BOTH = {"POSTGRES_HOST": "db", "RABBITMQ_HOST": "mq"}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder without a .env."""
    monkeypatch.chdir(tmp_path)


def refusal(environ: dict[str, str] | None = None, env_file: str | None = None) -> str:
    """The one line of the error message."""
    with pytest.raises(SettingsError) as refused:
        read_settings(env_file, environ or {})
    text = str(refused.value)
    assert "\n" not in text and text
    return text


def test_with_nothing_set_it_is_embedded() -> None:
    settings = read_settings(None, {})
    assert settings.embedded and settings.postgres is None and settings.rabbitmq is None
    assert settings.queues == ("tasks",)
    assert settings.listen == ("tcp:5000:interface=127.0.0.1",)
    assert settings.data == Path("taskd-data")
    assert (settings.slots, settings.window, settings.lease) == (100, 2000, 30.0)
    assert (settings.bcrypt_rounds, settings.session_days) == (12, 30)
    assert (settings.session_idle_days, settings.audit_days) == (7, 365)
    assert (settings.threads, settings.processes, settings.handlers, settings.programs) == (10, None, (), None)
    assert (settings.log_bytes, settings.keep_days) == (1024 * 1024, 0.0)
    assert (settings.admins, settings.admin_totp) == ((), False)
    assert (settings.hash_threads, settings.logins_per_minute) == (None, 60)
    assert (settings.guesses_per_hour, settings.registrations_per_hour) == (100, 20)
    assert settings.connections == DEFAULT_LIMITS


def test_with_both_hosts_it_is_distributed() -> None:
    settings = read_settings(None, BOTH)
    assert not settings.embedded
    assert settings.postgres == Postgres("db", 5432, "taskd", "", "taskd")
    assert settings.rabbitmq == RabbitMQ("mq", 5672, "guest", "guest", "/")
    assert settings.installation is None
    assert settings.postgres.dsn() == {"host": "db", "port": 5432, "user": "taskd", "password": "", "dbname": "taskd"}


def test_everything_can_be_set() -> None:
    environ = {
        **BOTH,
        **{"POSTGRES_PORT": "1", "POSTGRES_USER": "u", "POSTGRES_PASSWORD": " p ", "POSTGRES_DB": "d"},
        **{"RABBITMQ_PORT": "65535", "RABBITMQ_USER": "v", "RABBITMQ_PASSWORD": "q", "RABBITMQ_QUEUE": "main"},
        **{"RABBITMQ_VHOST": "lab", "TASKD_INSTALLATION": "staging-2"},
        **{"TASKD_QUEUES": "slow, fast,,main", "TASKD_LISTEN": " tcp:1  ssl:2:x=y ", "TASKD_DATA": "/data"},
        **{"TASKD_SLOTS": "7", "TASKD_WINDOW": "8", "TASKD_LEASE": "1.5", "TASKD_BCRYPT_ROUNDS": "4"},
        **{"TASKD_SESSION_IDLE_DAYS": "3", "TASKD_AUDIT_DAYS": "90"},
        **{"TASKD_SESSION_DAYS": "9", "TASKD_THREADS": "2", "TASKD_PROCESSES": "3", "TASKD_LOG_KIB": "4"},
        **{"TASKD_HANDLERS": "lab.one, lab.two lab.one", "TASKD_PROGRAMS": "/p.toml", "TASKD_KEEP_DAYS": "0.5"},
        **{"TASKD_HASH_THREADS": "5", "TASKD_LOGINS_PER_MINUTE": "0", "TASKD_GUESSES_PER_HOUR": "6"},
        **{"TASKD_REGISTRATIONS_PER_HOUR": "7"},
        **{"TASKD_ADMINS": " Ana, \uff22EN ,, ana ", "TASKD_ADMIN_TOTP": "1"},
    }
    settings = read_settings(None, environ)
    assert settings.postgres == Postgres("db", 1, "u", " p ", "d")
    assert settings.rabbitmq == RabbitMQ("mq", 65535, "v", "q", "lab")
    assert settings.installation == "staging-2"
    assert settings.queues == ("main", "slow", "fast")
    assert settings.listen == ("tcp:1", "ssl:2:x=y")
    assert settings.data == Path("/data")
    assert (settings.slots, settings.window, settings.lease) == (7, 8, 1.5)
    assert (settings.bcrypt_rounds, settings.session_days) == (4, 9)
    assert (settings.session_idle_days, settings.audit_days) == (3, 90)
    assert (settings.threads, settings.processes, settings.handlers) == (2, 3, ("lab.one", "lab.two"))
    assert (settings.programs, settings.log_bytes, settings.keep_days) == (Path("/p.toml"), 4096, 0.5)
    assert (settings.admins, settings.admin_totp) == (("ana", "ben"), True)
    assert (settings.hash_threads, settings.logins_per_minute) == (5, 0)
    assert (settings.guesses_per_hour, settings.registrations_per_hour) == (6, 7)


def test_the_limits_of_connections_can_be_set() -> None:
    environ = {
        **{"TASKD_LOGIN_SECONDS": "1.5", "TASKD_HANDSHAKE_SECONDS": "2", "TASKD_IDLE_SECONDS": "3"},
        **{"TASKD_KEEPALIVE_SECONDS": "4", "TASKD_STRANGERS": "5", "TASKD_USER_CONNECTIONS": "6"},
        **{"TASKD_USER_UNREAD_MIB": "7", "TASKD_UNREAD_MIB": "8", "TASKD_BACKLOG": "9", "TASKD_SPARE_FILES": "10"},
        **{"TASKD_TRUSTED_PROXIES": "10.0.0.5, 10.1.0.0/16,,2001:db8::/32, 10.0.0.5"},
    }
    networks = tuple(map(ip_network, ("10.0.0.5/32", "10.1.0.0/16", "2001:db8::/32")))
    assert read_settings(None, environ).connections == ConnectionLimits(
        login_seconds=1.5,
        handshake_seconds=2,
        idle_seconds=3,
        keepalive_seconds=4,
        strangers=5,
        user_connections=6,
        user_unread=7 * MIB,
        unread=8 * MIB,
        backlog=9,
        spare_files=10,
        trusted_proxies=networks,
    )


@pytest.mark.parametrize("network", ["everybody", "10.0.0.300", "10.0.0.5/8", "db.example.org"])
def test_networks(network: str) -> None:
    assert refusal({"TASKD_TRUSTED_PROXIES": f"10.0.0.5,{network}"}).startswith(
        f"TASKD_TRUSTED_PROXIES: {network!r} is not a network"
    )


@pytest.mark.parametrize(("there", "missing"), [("POSTGRES_HOST", "RABBITMQ_HOST"), ("RABBITMQ_HOST", "POSTGRES_HOST")])
def test_one_host_without_the_other(there: str, missing: str) -> None:
    assert refusal({there: "x"}).startswith(f"{there} is set but {missing} is not")


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("POSTGRES_PORT", 1, 65535),
        ("RABBITMQ_PORT", 1, 65535),
        ("TASKD_SLOTS", 0, 100_000),
        ("TASKD_WINDOW", 1, 1_000_000),
        ("TASKD_BCRYPT_ROUNDS", 4, 18),
        ("TASKD_SESSION_DAYS", 1, 3650),
        ("TASKD_SESSION_IDLE_DAYS", 1, 3650),
        ("TASKD_AUDIT_DAYS", 1, 36_500),
        ("TASKD_THREADS", 1, 1000),
        ("TASKD_PROCESSES", 0, 1000),
        ("TASKD_LOG_KIB", 1, 1_048_576),
        ("TASKD_HASH_THREADS", 0, 64),
        ("TASKD_LOGINS_PER_MINUTE", 0, 1_000_000),
        ("TASKD_GUESSES_PER_HOUR", 0, 1_000_000),
        ("TASKD_REGISTRATIONS_PER_HOUR", 0, 1_000_000),
    ],
)
def test_whole_numbers(name: str, low: int, high: int) -> None:
    for value in (str(low - 1), str(high + 1), "x", "1.5", "-1", "1_0", "0x10", "٣", "9" * 5000, "1 2", "nan"):
        text = refusal({name: value})
        assert text.startswith(f"{name} must be a whole number from {low} to {high}, not ")
    for value in (str(low), str(high), f" {low} "):
        read_settings(None, {name: value})


class TestTls:
    """PostgreSQL and RabbitMQ over TLS."""

    def postgres(self, **environ: str) -> dict[str, str | int]:
        found = read_settings(None, {**BOTH, **environ}).postgres
        assert found is not None
        return {name: value for name, value in found.dsn().items() if name.startswith("ssl")}

    def test_postgres(self) -> None:
        Path("ca.pem").touch()
        root = str(Path("ca.pem").absolute())
        assert self.postgres() == {}
        assert self.postgres(POSTGRES_SSLMODE="require") == {"sslmode": "require"}
        assert self.postgres(POSTGRES_SSLROOTCERT="ca.pem") == {"sslmode": "verify-full", "sslrootcert": root}
        chosen = self.postgres(POSTGRES_SSLROOTCERT="ca.pem", POSTGRES_SSLMODE="verify-ca")
        assert chosen == {"sslmode": "verify-ca", "sslrootcert": root}

    def test_a_wrong_mode(self) -> None:
        modes = "disable, allow, prefer, require, verify-ca or verify-full"
        assert refusal({**BOTH, "POSTGRES_SSLMODE": "on"}) == f"POSTGRES_SSLMODE must be {modes}, not 'on'"

    @pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
    def test_a_mode_that_needs_an_authority(self, mode: str) -> None:
        text = refusal({**BOTH, "POSTGRES_SSLMODE": mode})
        assert text.startswith(f"POSTGRES_SSLMODE={mode} needs POSTGRES_SSLROOTCERT, a PEM file")

    @pytest.mark.parametrize("name", ["POSTGRES_SSLROOTCERT", "RABBITMQ_CAFILE"])
    def test_a_file_that_is_not_there(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert refusal({**BOTH, "RABBITMQ_TLS": "1", name: "ca.pem"}) == f"{name}: ca.pem: there is no such file"
        Path("ca.pem").touch()
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert refusal({**BOTH, "RABBITMQ_TLS": "1", name: "ca.pem"}) == f"{name}: ca.pem: this user may not read it"

    def test_rabbitmq(self) -> None:
        Path("ca.pem").touch()
        plain = read_settings(None, {**BOTH, "RABBITMQ_TLS": "0"}).rabbitmq
        tls = read_settings(None, {**BOTH, "RABBITMQ_TLS": "1", "RABBITMQ_CAFILE": "ca.pem"}).rabbitmq
        other = read_settings(None, {**BOTH, "RABBITMQ_TLS": "yes", "RABBITMQ_PORT": "7000"}).rabbitmq
        assert plain == RabbitMQ("mq", 5672, "guest", "guest", "/", False, None)
        assert tls == RabbitMQ("mq", 5671, "guest", "guest", "/", True, Path("ca.pem").absolute())
        assert other == RabbitMQ("mq", 7000, "guest", "guest", "/", True, None)

    def test_an_authority_that_would_not_be_used(self) -> None:
        Path("ca.pem").touch()
        text = refusal({**BOTH, "RABBITMQ_CAFILE": "ca.pem"})
        assert text == "RABBITMQ_CAFILE is set but RABBITMQ_TLS is not: set RABBITMQ_TLS=1 to use TLS"

    @pytest.mark.parametrize("name", ["RABBITMQ_TLS", "TASKD_ALLOW_PLAINTEXT"])
    def test_switches(self, name: str) -> None:
        assert refusal({name: "2"}) == f"{name} must be 1 or 0, not '2'"

    def test_who_may_send_secrets(self) -> None:
        nobody = read_settings(None, {}).connections
        assert (nobody.allow_plaintext, nobody.trusted_proxies) == (False, ())
        environ = {"TASKD_ALLOW_PLAINTEXT": "1", "TASKD_TRUSTED_PROXIES": "10.1.0.0/16, fd00::1"}
        found = read_settings(None, environ).connections
        assert found.allow_plaintext
        assert found.trusted_proxies == (ip_network("10.1.0.0/16"), ip_network("fd00::1"))
        text = refusal({"TASKD_TRUSTED_PROXIES": "10.1.0.1/16"})
        assert text.startswith("TASKD_TRUSTED_PROXIES: '10.1.0.1/16' is not a network")


@pytest.mark.parametrize("value", ["x" * 65, "ana, b\u2060n"])
def test_admins(value: str) -> None:
    assert refusal({"TASKD_ADMINS": value}).startswith("TASKD_ADMINS")


@pytest.mark.parametrize("value", ["0", "0.9", "3601", "x", "nan", "inf", "-inf", "-5", "1,5"])
def test_seconds(value: str) -> None:
    text = refusal({"TASKD_LEASE": value})
    assert text == f"TASKD_LEASE must be a number of seconds from 1.0 to 3600.0, not {value!r}"


@pytest.mark.parametrize("value", ["-1", "36501", "x", "nan"])
def test_days(value: str) -> None:
    text = refusal({"TASKD_KEEP_DAYS": value})
    assert text == f"TASKD_KEEP_DAYS must be a number of days from 0.0 to 36500.0, not {value!r}"


@pytest.mark.parametrize("module", ["lab.py", "lab/handlers", "1lab", "lab..x", "lab-x"])
def test_modules_have_names_for_import(module: str) -> None:
    refused = module if module != "lab.py" else None
    if refused is None:
        # The module py of the package lab: only the import shows whether it exists
        assert read_settings(None, {"TASKD_HANDLERS": module}).handlers == ("lab.py",)
    else:
        assert refusal({"TASKD_HANDLERS": module}).startswith(f"TASKD_HANDLERS: {module!r} is not the name of a Python")


@pytest.mark.parametrize("name", ["POSTGRES_HOST", "RABBITMQ_USER", "RABBITMQ_PASSWORD", "TASKD_DATA", "TASKD_LISTEN"])
@pytest.mark.parametrize("value", ["a\nb", "a\0b", "a\udcffb", "a\x1bb"])
def test_control_characters(name: str, value: str) -> None:
    text = refusal({**BOTH, name: value})
    assert text.startswith(name) and "control character" in text


def test_a_password_is_not_repeated() -> None:
    assert "hunter2" not in refusal({**BOTH, "POSTGRES_PASSWORD": "hunter2\n"})


@pytest.mark.parametrize("queue", ["x" * 151, "ñ" * 76])
@pytest.mark.parametrize("name", ["RABBITMQ_QUEUE", "TASKD_QUEUES"])
def test_queue_names(name: str, queue: str) -> None:
    assert refusal({name: queue}).startswith(f"{name}: a queue's name has 1 to 150 bytes")


@pytest.mark.parametrize("name", ["a b", "a.b", "a/b", "ñ", "x" * 33, "٣"])
def test_ids_of_installations(name: str) -> None:
    expected = f"TASKD_INSTALLATION must be 1 to 32 letters, digits, - or _, not {name!r}"
    assert refusal({"TASKD_INSTALLATION": name}) == expected
    assert read_settings(None, {"TASKD_INSTALLATION": "A-z_9" + "x" * 27}).installation == "A-z_9" + "x" * 27


def test_names_of_virtual_hosts() -> None:
    assert refusal({**BOTH, "RABBITMQ_VHOST": "x" * 256}).startswith("RABBITMQ_VHOST: a virtual host has a name of at")


def test_queue_names_of_options() -> None:
    assert QUEUE.read("--queue", "ñ" * 75) == "ñ" * 75
    for queue in ("", "a\nb", "a\ud800", "a#b"):
        with pytest.raises(SettingsError, match=r"^--queue: "):
            QUEUE.read("--queue", queue)


class TestOptions:
    """The command lines of both daemons."""

    def read(self, options: DaemonOptions, arguments: list[str], environ: dict[str, str] | None = None) -> Settings:
        options.parseOptions(arguments)
        return read_settings(options["env-file"], environ or {}, options)

    def test_without_options_nothing_changes(self) -> None:
        for options in (ServerOptions(), WorkerOptions()):
            assert self.read(options, []) == read_settings(None, {})
            assert read_option(options, GRACE) == 30

    def test_an_option_wins_over_its_variable(self) -> None:
        environ = {name: "4" for name in ("TASKD_SLOTS", "TASKD_THREADS", "TASKD_PROCESSES")}
        environ |= {"TASKD_HANDLERS": "a", "TASKD_PROGRAMS": "/a", "TASKD_DATA": "/a", "TASKD_LISTEN": "tcp:4"}
        numbers = ["-s", "5", "--threads", "6", "--processes", "7", "-g", "8"]
        texts = ["--handlers", "b", "--handlers", "c.d", "--programs", "/b", "-d", "/c", "-l", "tcp:5", "--listen", "e"]
        for each in (ServerOptions(), WorkerOptions()):
            assert self.read(each, ["--installation", "b"], {"TASKD_INSTALLATION": "a"}).installation == "b"
        options = ServerOptions()
        settings = self.read(options, numbers + texts, environ)
        assert (settings.slots, settings.threads, settings.processes) == (5, 6, 7)
        assert read_option(options, GRACE) == 8
        assert (settings.handlers, settings.listen) == (("b", "c.d"), ("tcp:5", "e"))
        assert (settings.programs, settings.data) == (Path("/b"), Path("/c"))

    def test_queues_of_a_worker(self) -> None:
        environ = {"RABBITMQ_QUEUE": "a", "TASKD_QUEUES": "b"}
        assert self.read(WorkerOptions(), ["-q", "c", "--queue", "d", "-q", "c"], environ).queues == ("c", "d")
        assert self.read(WorkerOptions(), [], environ).queues == ("a", "b")

    def test_two_command_lines_share_nothing(self) -> None:
        assert self.read(WorkerOptions(), ["--handlers", "a"]).handlers == ("a",)
        assert self.read(WorkerOptions(), []).handlers == ()

    def test_a_malformed_variable_is_refused_even_if_an_option_overrides_it(self) -> None:
        with pytest.raises(SettingsError, match=r"^TASKD_SLOTS must be"):
            self.read(ServerOptions(), ["--slots", "5"], {"TASKD_SLOTS": "many"})

    @pytest.mark.parametrize(
        ("option", "value", "low", "high"),
        [
            ("--slots", "0", 1, 100_000),
            ("--slots", "", 1, 100_000),
            ("--threads", "1001", 1, 1000),
            ("--processes", "0", 1, 1000),
        ],
    )
    def test_numbers_have_bounds(self, option: str, value: str, low: int, high: int) -> None:
        expected = f"^{option} must be a whole number from {low} to {high}, not {value!r}$"
        for options in (ServerOptions(), WorkerOptions()):
            with pytest.raises(SettingsError, match=expected):
                self.read(options, [option, value])

    @pytest.mark.parametrize("module", ["", "lab/handlers", "a,b"])
    def test_an_option_names_one_module(self, module: str) -> None:
        with pytest.raises(SettingsError, match=f"^--handlers: {module!r} is not the name of a Python module"):
            self.read(ServerOptions(), ["--handlers", module])


class TestEnvFile:
    def test_dot_env_of_the_current_folder_is_read(self) -> None:
        Path(".env").write_text("# a remark\n\nTASKD_WINDOW=5\nexport TASKD_SLOTS='6' # six\n")
        settings = read_settings(None, {})
        assert (settings.window, settings.slots) == (5, 6)

    def test_another_file_instead(self) -> None:
        Path(".env").write_text("TASKD_WINDOW=5\nTASKD_SLOTS=6\n")
        Path("other").write_text("TASKD_WINDOW=7\n")
        settings = read_settings("other", {})
        assert (settings.window, settings.slots) == (7, 100)

    def test_the_environment_wins(self) -> None:
        Path(".env").write_text("TASKD_WINDOW=5\nTASKD_SLOTS=6\n")
        settings = read_settings(None, {"TASKD_WINDOW": "8"})
        assert (settings.window, settings.slots) == (8, 6)

    def test_an_empty_variable_removes_one_of_the_file(self) -> None:
        Path(".env").write_text("POSTGRES_HOST=db\nRABBITMQ_HOST=mq\nTASKD_WINDOW=\n")
        settings = read_settings(None, {"POSTGRES_HOST": "", "RABBITMQ_HOST": " "})
        assert settings.embedded and settings.window == 2000

    def test_the_environment_is_not_changed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TASKD_WINDOW", raising=False)
        Path(".env").write_text("TASKD_WINDOW=5\n")
        read_settings()
        assert "TASKD_WINDOW" not in os.environ

    def test_a_file_with_a_byte_order_mark_and_crlf(self) -> None:
        Path(".env").write_bytes("\ufeffTASKD_WINDOW=5\r\nTASKD_SLOTS=6\r\n".encode())
        settings = read_settings(None, {})
        assert (settings.window, settings.slots) == (5, 6)

    def test_spaces_in_quotes_belong_to_a_password(self) -> None:
        Path(".env").write_text("POSTGRES_PASSWORD=' a b '\n")
        postgres = read_settings(None, BOTH).postgres
        assert postgres is not None and postgres.password == " a b "

    @pytest.mark.parametrize("line", ["hunter2", "POSTGRES_PASSWORD hunter2", "export X", "='hunter2'", "A='hunter2"])
    def test_a_line_that_sets_nothing(self, line: str) -> None:
        Path(".env").write_text(f"TASKD_WINDOW=5\n{line}\n")
        text = refusal()
        assert text == ".env, line 2: expected NAME=value"

    def test_a_malformed_value_names_its_variable(self) -> None:
        Path(".env").write_text("TASKD_WINDOW=many\n")
        assert refusal().startswith("TASKD_WINDOW must be a whole number")

    def test_a_named_file_must_exist(self) -> None:
        Path("folder").mkdir()
        for name in ("nothing", "folder"):
            assert refusal(env_file=name) == f"--env-file {name}: there is no such file"

    def test_a_folder_called_dot_env_is_ignored(self) -> None:
        Path(".env").mkdir()
        assert read_settings(None, {}).embedded

    def test_a_file_that_is_not_text(self) -> None:
        Path(".env").write_bytes(b"TASKD_DATA=caf\xe9\n")
        assert refusal().startswith(".env: cannot be read: ")

    @pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
    def test_a_name_that_no_file_can_have(self, name: str) -> None:
        assert "cannot be read" in refusal(env_file=name)

    def test_a_file_without_read_permission(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any, **options: Any) -> str:
            raise PermissionError(13, "Permission denied")

        Path(".env").write_text("")
        # root can read every file, so a file mode has no effect
        monkeypatch.setattr(Path, "read_text", refuse)
        assert refusal() == ".env: cannot be read: Permission denied"


class TestExposedSecrets:
    """A file with passwords that every user of the machine can read."""

    SECRETS = "POSTGRES_PASSWORD=p\nRABBITMQ_PASSWORD=q\nTASKD_SLOTS=7\n"

    def write(self, name: str, text: str, mode: int) -> None:
        Path(name).write_text(text)
        Path(name).chmod(mode)

    def test_the_file_is_named_and_how_to_close_it(self) -> None:
        self.write(".env", self.SECRETS, 0o644)
        self.write("other", "RABBITMQ_PASSWORD=q", 0o604)
        says = "every user of this machine can read"
        assert exposed_secrets() == f".env: {says} POSTGRES_PASSWORD and RABBITMQ_PASSWORD; run: chmod 600 .env"
        assert exposed_secrets("other") == f"other: {says} RABBITMQ_PASSWORD; run: chmod 600 other"

    @pytest.mark.parametrize("mode", [0o600, 0o640])
    def test_a_file_that_others_cannot_read(self, mode: int) -> None:
        self.write(".env", self.SECRETS, mode)
        assert exposed_secrets() is None

    @pytest.mark.parametrize("text", ["", "TASKD_SLOTS=7", "POSTGRES_PASSWORD=\n", "#POSTGRES_PASSWORD=p"])
    def test_a_file_without_secrets(self, text: str) -> None:
        self.write(".env", text, 0o644)
        assert exposed_secrets() is None

    def test_no_file(self) -> None:
        assert exposed_secrets() is None
        Path(".env").mkdir()
        assert exposed_secrets() is None
