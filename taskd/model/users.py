"""What a user is, and which names and passwords are accepted."""

from __future__ import annotations

import enum
import unicodedata

import msgspec

from taskd.model.common_passwords import is_common
from taskd.model.errors import BadRequest
from taskd.model.limits import MAX_PASSWORD_BYTES, MAX_USERNAME_CHARS, MIN_PASSWORD_BYTES
from taskd.model.scripts import mixed_scripts
from taskd.model.visible import has_visible, is_invisible

_MAX_RAW_USERNAME = 4 * MAX_USERNAME_CHARS
"""The limit before normalisation, which joins up to four characters and takes quadratic time on long texts."""

_MAX_RAW_PASSWORD = 4 * MAX_PASSWORD_BYTES
"""The same for passwords."""


class Role(enum.Enum):
    """What a user may do beside their own tasks. An operator sees all users' tasks and workers and changes nothing of
    them; an admin may do everything."""

    USER = "user"
    OPERATOR = "operator"
    ADMIN = "admin"


class Registration(enum.Enum):
    """Who may create an account."""

    OPEN = "open"
    INVITATION = "invitation"
    CLOSED = "closed"


class User(msgspec.Struct, frozen=True):
    """An account without its password hash, which only the store and taskd.api.accounts see. ``totp``: a login with the
    password needs a second factor."""

    id: int
    username: str
    role: Role = Role.USER
    disabled: bool = False
    totp: bool = False


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
    return name, _folded(name)


def check_new_username(raw: str) -> tuple[str, str]:
    """The same for a name that is to be registered. Raises BadRequest also for a name with letters of two scripts, such
    as a Cyrillic letter that looks like a Latin one; Han may stand beside Kana, Hangul or Bopomofo."""
    name, key = normalize_username(raw)
    if mixed := mixed_scripts(name):
        raise BadRequest(
            f"username mixes {mixed[0]} and {mixed[1]} letters; use the letters of one script", field="username"
        )
    return name, key


def check_new_password(password: str, username: str = "") -> bytes:
    """The bytes to hash of a password that is to be set. Raises BadRequest outside 8 to 72 bytes of UTF-8, and for a
    password without a visible character, one of the most common ones, and the username itself in any spelling."""
    raw = password_bytes(password)
    if not MIN_PASSWORD_BYTES <= len(raw) <= MAX_PASSWORD_BYTES:
        raise BadRequest(
            f"password must have {MIN_PASSWORD_BYTES} to {MAX_PASSWORD_BYTES} bytes in UTF-8",
            field="password",
        )
    if not has_visible(password):
        raise BadRequest("password must have at least one visible character", field="password")
    if is_common(raw.decode()):
        raise BadRequest("password is one of the most common ones; choose another", field="password")
    if username and len(username) <= _MAX_RAW_USERNAME and _folded(password) == _folded(username):
        raise BadRequest("password must not be the username", field="password")
    return raw


def password_bytes(password: str) -> bytes:
    """The bytes to hash: UTF-8 in NFC, so that it does not matter how a keyboard composes accents. Raises BadRequest
    for NUL, where bcrypt would stop reading, and for surrogates."""
    if "\0" in password:
        raise BadRequest("password must not contain the NUL character", field="password")
    # no longer text has 72 bytes in NFC
    composed = unicodedata.normalize("NFC", password) if len(password) <= _MAX_RAW_PASSWORD else password
    try:
        return composed.encode()
    except UnicodeEncodeError:
        raise BadRequest("password must be valid Unicode text", field="password") from None


def _folded(text: str) -> str:
    """The form in which two spellings of a name are the same."""
    # Folding wants the decomposed form and undoes the composed one: Unicode 3.13, D146 (compatibility caseless match)
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", text).casefold())
