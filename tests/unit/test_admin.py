"""taskd.admin: the commands of taskadmin, on a store in memory."""

from __future__ import annotations

import csv
import io
import re
import sqlite3
from argparse import Namespace
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from twisted.internet.task import Clock

from taskd.admin import commands
from taskd.admin.checks import count_admins, has_unix_socket, readable_by_others, secret_files
from taskd.admin.commands import ACTOR, Admin
from taskd.admin.failure import Failed, explained
from taskd.admin.options import parser
from taskd.admin.texts import WORDS
from taskd.admin.user_file import SHOWN, NewUser, read_users
from taskd.cli.texts.catalogue import Texts
from taskd.config.reading import read_settings
from taskd.model.errors import BadRequest, DataInUse, SchemaTooOld, SettingsError, Unavailable
from taskd.model.tokens import code_hash
from taskd.model.users import Role
from taskd.ports.accounts import Entry, Factor, NewSession
from taskd.store.sqlite.database import InlineRunner
from taskd.store.sqlite.store import SqliteStore
from tests.unit.stage import now

ENGLISH, SPANISH = Texts("en", WORDS), Texts("es", WORDS)
CODE = r"(?:[A-Z2-9]{4}-){6}[A-Z2-9]{4}"


class Stage:
    """A store, and what a command printed and noted."""

    def __init__(self) -> None:
        clock = Clock()
        clock.advance(1_700_000_000)
        self.store: Any = SqliteStore(InlineRunner(), clock)
        now(self.store.start())
        self.notes: list[str] = []

    def run(self, command: Any, **options: Any) -> str:
        """What the command printed. The store is not stopped."""
        out = io.StringIO()
        now(command(Admin(self.store, ENGLISH, out, self.notes.append), Namespace(**options)))
        return out.getvalue()

    def create_admin(self, name: str, existing: bool = False) -> str:
        return self.run(commands.create_admin, name=name, existing=existing)

    def account(self, key: str) -> Any:
        return now(self.store.find_user(key))

    def audited(self) -> list[Entry]:
        """The oldest first."""
        return [row.entry for row in reversed(now(self.store.list_audit(None, 100)))]


@pytest.fixture
def stage() -> Any:
    """Closed at the end."""
    stage = Stage()
    yield stage
    now(stage.store.stop())


# -- create-admin


def test_an_admin_is_created_with_a_one_time_code(stage: Stage) -> None:
    code = stage.create_admin("Root").strip()
    assert re.fullmatch(CODE, code)
    account = stage.account("root")
    assert (account.user.username, account.user.role, account.password) == ("Root", Role.ADMIN, "")
    assert account.code == code_hash(code.lower().replace("-", " "))
    assert any("24 hours" in line for line in stage.notes)
    assert now(stage.store.use_code(account.user.id, account.code, "$2b$new"))
    assert stage.audited() == [Entry("create_admin", 0, ACTOR, account.user.id, "root")]


def test_a_user_becomes_an_admin_only_if_asked(stage: Stage) -> None:
    now(stage.store.create_user("Ana", "ana", "$2b$hash"))
    with pytest.raises(Failed, match="Ana exists already; with --existing"):
        stage.create_admin("Ana")
    assert (stage.account("ana").user.role, stage.audited()) == (Role.USER, [])
    assert stage.create_admin("ANA", existing=True) == ""
    account = stage.account("ana")
    assert (account.user.role, account.password, account.code) == (Role.ADMIN, "$2b$hash", None)
    assert [entry.action for entry in stage.audited()] == ["create_admin"]
    with pytest.raises(Failed, match="nobody is registered as nobody"):
        stage.create_admin("nobody", existing=True)
    with pytest.raises(BadRequest):
        stage.create_admin("\n")


def test_a_disabled_admin_is_told(stage: Stage) -> None:
    now(stage.store.create_user("Ana", "ana", "$2b$hash"))
    now(stage.store.set_disabled("ana", True))
    stage.create_admin("ana", existing=True)
    assert "Ana is disabled" in stage.notes[-1]


# -- reset-password


def test_a_reset_ends_what_the_old_password_gave(stage: Stage) -> None:
    ana = now(stage.store.create_user("Ana", "ana", "$2b$hash"))
    now(stage.store.open_session(ana.id, NewSession(b"login", 1000)))
    now(stage.store.open_session(ana.id, NewSession(b"token", 1000, name="ci")))
    code = stage.run(commands.reset_password, name="ANA").strip()
    account = stage.account("ana")
    assert (account.password, account.code) == ("", code_hash(code))
    assert now(stage.store.find_sessions([b"login", b"token"], 1000.0)) == {}
    assert stage.audited() == [Entry("reset_password", 0, ACTOR, ana.id, "ana")]
    assert stage.run(commands.reset_password, name="ana").strip() != code
    with pytest.raises(Failed, match="nobody is registered as ben"):
        stage.run(commands.reset_password, name="ben")


# -- bind-local


def bind(stage: Stage, name: str, uid: str | None) -> None:
    assert stage.run(commands.bind_local, name=name, uid=uid, none=uid is None) == ""


def test_an_account_is_bound_to_a_user_of_the_machine(stage: Stage) -> None:
    ana = now(stage.store.create_user("Ana", "ana", "$2b$hash"))
    now(stage.store.create_user("Ben", "ben", "$2b$hash"))
    bind(stage, "ANA", "2147483000")
    assert stage.notes == ["Ana is bound to the uid 2147483000 (?) of the machine"]
    assert now(stage.store.find_local(2147483000)) == ana
    with pytest.raises(Failed, match=r"the uid 2147483000 belongs to another account .* bound to Ana"):
        bind(stage, "ben", "2147483000")
    bind(stage, "ana", None)
    assert stage.notes[-1] == "Ana is bound to no user of the machine"
    assert now(stage.store.find_local(2147483000)) is None
    assert stage.audited() == [
        Entry("bind_local", 0, ACTOR, ana.id, "ana", details="local uid 2147483000"),
        Entry("bind_local", 0, ACTOR, ana.id, "ana", details="no local uid"),
    ]
    with pytest.raises(Failed, match="nobody is registered as nobody"):
        bind(stage, "nobody", "1001")


@pytest.mark.parametrize(
    "uid",
    [
        "0",
        "999",
        "61184",
        "65519",
        "65534",
        "-5",
        "ana",
        "",
        "1e4",
        "4294967295",
        "99999999999",
        "\uff11\uff10\uff10\uff11",
    ],
)
def test_a_uid_that_is_no_persons(stage: Stage, uid: str) -> None:
    now(stage.store.create_user("Ana", "ana", "$2b$hash"))
    with pytest.raises(Failed, match="is not the uid of a person"):
        bind(stage, "ana", uid)
    assert stage.audited() == []


def test_the_command_line_of_bind_local(capsys: pytest.CaptureFixture[str]) -> None:
    read = parser(ENGLISH).parse_args
    assert (read(["bind-local", "ana", "1001"]).uid, read(["bind-local", "ana", "1001"]).none) == ("1001", False)
    assert (read(["bind-local", "ana", "--none"]).uid, read(["bind-local", "ana", "--none"]).none) == (None, True)
    for wrong in (["ana"], ["ana", "1001", "--none"], []):
        with pytest.raises(SystemExit):
            read(["bind-local", *wrong])
    capsys.readouterr()


@pytest.mark.parametrize(
    ("listen", "found"),
    [
        ("tcp:5000", False),
        ("tcp:5000 unix:/run/taskd/taskd.sock:mode=666", True),
        ("systemd:domain=UNIX:index=0", True),
        ("haproxy:unix:/run/taskd/taskd.sock", False),
        ("ssl:5001:privateKey=unix.pem", False),
    ],
)
def test_the_check_knows_unix_sockets(listen: str, found: bool) -> None:
    assert has_unix_socket(read_settings(environ={"TASKD_LISTEN": listen})) is found


# -- reset-totp


def test_a_lost_second_factor_is_turned_off(stage: Stage) -> None:
    ana = now(stage.store.create_user("Ana", "ana", "$2b$hash"))
    now(stage.store.open_session(ana.id, NewSession(b"login", 1000)))
    now(stage.store.begin_totp(ana.id, "SECRET"))
    assert now(stage.store.confirm_totp(ana.id, Factor("SECRET", 1), [b"code"], b"login"))
    assert stage.account("ana").user.totp
    assert stage.run(commands.reset_totp, name="ANA") == ""
    assert stage.notes == ["Ana has no second factor now"]
    assert (stage.account("ana").user.totp, stage.account("ana").totp) == (False, None)
    assert list(now(stage.store.find_sessions([b"login"], 1000.0))) == [b"login"]
    stage.run(commands.reset_totp, name="ana")
    assert stage.audited() == [Entry("reset_totp", 0, ACTOR, ana.id, "ana")]
    with pytest.raises(Failed, match="nobody is registered as ben"):
        stage.run(commands.reset_totp, name="ben")


# -- import-users


def test_users_are_imported_with_a_code_each(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "users.csv"
    file.write_text("﻿Username,Role\nana\nBen,operator\n\nÑandú , \n", "utf-8")
    now(stage.store.create_user("Ben", "ben", "$2b$hash"))
    rows = list(csv.reader(io.StringIO(stage.run(commands.import_users, file=file, output=None))))
    assert [row[:2] for row in rows] == [["username", "role"], ["ana", "user"], ["Ñandú", "user"]]
    for name, _, code in rows[1:]:
        assert (stage.account(name.casefold()).code, stage.account(name.casefold()).password) == (code_hash(code), "")
    assert stage.account("ben").user.role is Role.USER
    assert stage.notes == ["Ben exists already: skipped", "2 users were imported, 1 skipped"]
    assert [(e.action, e.actor, e.subject) for e in stage.audited()] == [
        ("import_user", ACTOR, "ana"),
        ("import_user", ACTOR, "ñandú"),
    ]


def test_the_codes_go_to_a_new_file_of_the_owner(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("ana,admin\n")
    output = tmp_path / "codes.csv"
    assert stage.run(commands.import_users, file=tmp_path / "users.csv", output=output) == ""
    assert output.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(f"username,role,code\nana,admin,{CODE}\n", output.read_text())
    with pytest.raises(Failed, match="exists already; choose another name"):
        stage.run(commands.import_users, file=tmp_path / "users.csv", output=output)
    with pytest.raises(Failed, match="No such file or directory"):
        stage.run(commands.import_users, file=tmp_path / "users.csv", output=tmp_path / "missing" / "codes.csv")


def test_codes_of_an_interrupted_import_are_kept(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("ana\nben\n")
    create, output = stage.store.create_user, tmp_path / "codes.csv"

    async def fail(username: str, *args: Any) -> Any:
        if username == "ben":
            raise Unavailable("the database went away")
        return await create(username, *args)

    stage.store.create_user = fail
    with pytest.raises(Failed, match="the database went away") as caught:
        stage.run(commands.import_users, file=tmp_path / "users.csv", output=output)
    assert "1 users were imported before that" in caught.value.lines[1]
    assert re.search(f"ana,user,{CODE}\n", output.read_text())


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("ana,boss\n", ["line 1: 'boss' is not a role"]),
        ("ana\n\nben,user,x\n", ["line 3: expected username"]),
        ("ana\nBen\nANA\n", ["line 3: the same user as in line 1"]),
        ("username\n,admin\n\x07\n", ["line 2: username must have", "line 3: username must not contain control"]),
        ("ana\nx" + "y" * 64 + "\n", ["line 2: username must have 1 to 64"]),
        ('ana\n"ben\n', ["line 2: unexpected end of data"]),
        ("", ["has no users"]),
        ("username,role\n", ["has no users"]),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_imported(
    stage: Stage, tmp_path: Path, text: str, lines: list[str]
) -> None:
    file = tmp_path / "users.csv"
    file.write_text(text)
    with pytest.raises(Failed) as caught:
        stage.run(commands.import_users, file=file, output=tmp_path / "codes.csv")
    shown = [line for line in caught.value.lines if line != "nothing was imported"]
    assert len(shown) == len(lines)
    for line, expected in zip(shown, lines, strict=True):
        assert line.startswith(str(file)) and expected in line
    assert stage.account("ana") is None
    assert not (tmp_path / "codes.csv").exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"users\.csv: No such file"):
        read_users(tmp_path / "users.csv", ENGLISH)
    (tmp_path / "users.csv").write_bytes(b"ana\n\xff\n")
    with pytest.raises(Failed, match=r"users\.csv: no es texto en UTF-8"):
        read_users(tmp_path / "users.csv", SPANISH)
    (tmp_path / "users.csv").write_text("a,b,c\n" * (SHOWN + 5))
    with pytest.raises(Failed) as caught:
        read_users(tmp_path / "users.csv", ENGLISH)
    assert caught.value.lines[SHOWN:] == ("... (+5)", "nothing was imported")
    (tmp_path / "users.csv").write_text("ana\n" + "".join(f"u{n}\n" for n in range(1000)))
    assert len(read_users(tmp_path / "users.csv", ENGLISH)) == 1001
    assert read_users(tmp_path / "users.csv", ENGLISH)[0] == NewUser("ana", "ana", Role.USER)


# -- migrate and check


def test_migrate_says_what_it_has_done(stage: Stage) -> None:
    assert stage.run(commands.migrate) == "the schema has version 1; 1 migrations were applied\n"
    assert stage.audited() == [Entry("migrate", 0, ACTOR, details="version 1, 1 applied")]


def test_a_check_applies_no_migration(tmp_path: Path) -> None:
    file = str(tmp_path / "new.sqlite3")
    store = SqliteStore(InlineRunner(file), Clock(), migrate=False)
    with pytest.raises(SchemaTooOld, match="lacks 1 migrations: run taskadmin migrate"):
        now(store.start_once())
    now(store.stop())
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT * FROM sqlite_master").fetchall() == []


def test_admins_who_can_act_are_counted(stage: Stage) -> None:
    for n in range(3):
        now(stage.store.create_user(f"A{n}", f"a{n}", "x", role=Role.ADMIN))
    now(stage.store.set_disabled("a0", True))
    now(stage.store.create_user("Named", "named", "x"))
    assert now(count_admins(stage.store, ())) == 2
    assert now(count_admins(stage.store, ("named", "nobody"))) == 3


def test_files_with_secrets(tmp_path: Path) -> None:
    listen = "tcp:5000 ssl:5001:privateKey=/etc/it\\:s.pem:certKey=cert.pem"
    settings = structs.replace(read_settings(environ={"TASKD_LISTEN": listen}), data=tmp_path)
    (tmp_path / "taskd.sqlite3").touch()
    (tmp_path / "taskd.sqlite3-wal").touch()
    found = list(secret_files(settings, Path(".env")))
    assert found == [
        Path(".env"),
        tmp_path / "taskd.sqlite3",
        tmp_path / "taskd.sqlite3-wal",
        Path("/etc/it:s.pem"),
    ]
    for mode, readable in ((0o600, False), (0o640, False), (0o644, True), (0o602, True)):
        (tmp_path / "taskd.sqlite3").chmod(mode)
        assert readable_by_others(tmp_path / "taskd.sqlite3") is readable
    assert readable_by_others(tmp_path / "missing") is False


# -- texts


def test_every_text_has_the_same_fields_in_both_languages() -> None:
    for name, (english, spanish) in WORDS.items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", spanish)), name
        assert english and spanish


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Failed("one", "two"), ["one", "two"]),
        (DataInUse("locked"), ["un taskserver está usando"]),
        (SchemaTooOld("old"), ["el esquema de la base de datos no está al día"]),
        (SettingsError("TASKD_X is wrong"), ["TASKD_X is wrong"]),
        (Unavailable("away"), ["away"]),
        (ZeroDivisionError("zero"), ["un defecto de taskd"]),
    ],
)
def test_what_is_told_of_an_error(error: Exception, text: list[str]) -> None:
    lines = explained(error, read_settings(environ={}), SPANISH)
    assert len(lines) == len(text)
    assert all(line.startswith(part) for line, part in zip(lines, text, strict=True))
