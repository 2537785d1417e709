"""Where the token comes from: a file for each server, which only its owner can read, or what the user has given."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from taskd.client.errors import ClientError, NotLoggedIn


class Session(Struct):
    """The user who is logged in at a server, and the token that proves it."""

    server: str
    username: str
    token: str


class SessionSource(Protocol):
    """Has the session that commands log in with."""

    def load(self) -> Session | None:
        """The session, or None if there is none. Raises ClientError."""

    def remove(self) -> None:
        """Forget the session, which the server no longer accepts. Raises ClientError."""

    def gone(self) -> NotLoggedIn:
        """The error that says so."""


class GivenToken:
    """An API token that the user gave for this command. It is stored nowhere. ``source`` is the variable or the option
    that it came from."""

    def __init__(self, server: str, token: str, source: str) -> None:
        self._session = Session(server, "", token)
        self.source = source

    def load(self) -> Session:
        """The session of the token."""
        return self._session

    def remove(self) -> None:
        """Do nothing: the token is not ours to delete."""

    def gone(self) -> NotLoggedIn:
        """The error for a token that the server refuses."""
        return NotLoggedIn("token_gone", server=self._session.server, source=self.source)


def state_folder(env: Mapping[str, str]) -> Path:
    """``taskd`` under XDG_STATE_HOME, which counts only if absolute (XDG Base Directory Specification)."""
    home = env.get("XDG_STATE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.join(env.get("HOME") or os.path.expanduser("~"), ".local", "state")
    return Path(home, "taskd")


class SessionFile:
    """The session for one server address."""

    def __init__(self, folder: Path, server: str) -> None:
        self._server = server
        self.path = folder / f"session-{_file_name(server)}.json"

    def load(self) -> Session | None:
        """The session, or None if there is none. Raises NotLoggedIn if the file does not contain a session, another
        ClientError if it cannot be read."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Session)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise self._error("state_unreadable", e) from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise NotLoggedIn("state_broken", path=self.path) from None

    def save(self, session: Session) -> None:
        """Store the session atomically: a reader sees the old file or the new one. Raises ClientError."""
        folder = self.path.parent
        draft = folder / f".{self.path.name}.{os.getpid()}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            draft.unlink(missing_ok=True)
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(msgspec.json.encode(session) + b"\n")
                draft.replace(self.path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
        except OSError as e:
            raise self._error("state_unwritable", e) from None

    def remove(self) -> None:
        """Delete the session, if there is one. Raises ClientError."""
        try:
            self.path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as e:
            raise self._error("state_unwritable", e) from None

    def gone(self) -> NotLoggedIn:
        """The error for a session that the server refuses."""
        return NotLoggedIn("session_gone", server=self._server)

    def _error(self, key: str, e: OSError) -> ClientError:
        return ClientError(key, code="internal", path=self.path, why=e.strerror or e)


def _file_name(server: str) -> str:
    name = re.sub(r"[^A-Za-z0-9.-]", lambda found: f"_{ord(found[0]):x}_", server)
    if len(name) <= 150:
        return name
    import hashlib  # only for an endpoint string too long for a file name

    return f"{name[:80]}-{hashlib.sha256(server.encode()).hexdigest()}"
