"""What a user is, and which names and passwords are accepted."""

from __future__ import annotations

import enum
import unicodedata

import msgspec

from taskd.model.errors import BadRequest
from taskd.model.limits import MAX_PASSWORD_BYTES, MAX_USERNAME_CHARS, MIN_PASSWORD_BYTES
from taskd.model.visible import is_invisible

_MAX_RAW_USERNAME = 4 * MAX_USERNAME_CHARS
"""The limit before normalisation, which joins up to four characters and takes quadratic time on long texts."""


class Role(enum.Enum):
    """What a user may do beside their own tasks. An operator sees all users' tasks and workers and changes nothing of
    them; an admin may do everything."""

    USER = "user"
    OPERATOR = "operator"
    ADMIN = "admin"


class User(msgspec.Struct, frozen=True):
    """An account without its password hash, which only the store and taskd.api.accounts see."""

    id: int
    username: str
    role: Role = Role.USER
    disabled: bool = False


def normalize_username(raw: str) -> tuple[str, str]:
    """The username to show (NFKC) and the key under which it is unique (case folded).

    Raises BadRequest for an empty or overlong name, control and invisible characters, or surrounding white space.
    """
    name = unicodedata.normalize("NFKC", raw) if len(raw) <= _MAX_RAW_USERNAME else raw
    if not 1 <= len(name) <= MAX_USERNAME_CHARS:
        raise BadRequest(f"username must have 1 to {MAX_USERNAME_CHARS} characters", field="username")
    if name != name.strip():
        raise BadRequest("username must not begin or end with white space", field="username")
    if any(map(is_invisible, name)):
        raise BadRequest("username must not contain control or invisible characters", field="username")
    # Folding wants the decomposed form and undoes the composed one: Unicode 3.13, D146 (compatibility caseless match)
    return name, unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", name).casefold())


def check_new_password(password: str) -> bytes:
    """The password's bytes. Raises BadRequest outside 8 to 72 bytes of UTF-8."""
    raw = password_bytes(password)
    if not MIN_PASSWORD_BYTES <= len(raw) <= MAX_PASSWORD_BYTES:
        raise BadRequest(
            f"password must have {MIN_PASSWORD_BYTES} to {MAX_PASSWORD_BYTES} bytes in UTF-8",
            field="password",
        )
    return raw


def password_bytes(password: str) -> bytes:
    """A password in UTF-8. Raises BadRequest for NUL, where bcrypt would stop reading, and for surrogates."""
    if "\0" in password:
        raise BadRequest("password must not contain the NUL character", field="password")
    try:
        return password.encode()
    except UnicodeEncodeError:
        raise BadRequest("password must be valid Unicode text", field="password") from None
