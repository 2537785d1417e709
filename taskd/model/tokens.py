"""Random texts that somebody must show: session tokens, API tokens, one-time codes, invitations."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from taskd.model.errors import BadRequest, quote
from taskd.model.limits import MAX_TOKEN_NAME_CHARS, MAX_TOKEN_SCOPES
from taskd.model.task_checks import check_kind

CODE_SECONDS = 86_400.0
"""How long a one-time code is valid."""

TOKEN_PREFIX = "taskd_"
"""What API tokens begin with, so that programs that look for leaked secrets find them."""

TOKEN_SCOPES = ("tasks:read", "tasks:write")
"""What an API token allows if nothing else is said."""

_CODE_LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"
"""Without those that look like others."""


def new_token() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def new_code() -> str:
    """A one-time code of 128 random bits and more, in groups that can be read aloud."""
    return random_groups(28)


def random_groups(count: int) -> str:
    """So many random letters and digits, in groups of four. Each has almost 5 bits."""
    letters = "".join(secrets.choice(_CODE_LETTERS) for _ in range(count))
    return "-".join(letters[n : n + 4] for n in range(0, count, 4))


def code_hash(code: str) -> bytes:
    """What the store keeps of a one-time code or a recovery code: upper and lower case, spaces and dashes make no
    difference."""
    return token_hash("".join(code.split()).replace("-", "").upper())


def token_hash(token: str) -> bytes:
    """What the store keeps of a token. Tokens are random, so one round of SHA-256 is enough."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def check_token_name(name: str) -> str:
    """The name of an API token, unchanged. Raises BadRequest."""
    if not 1 <= len(name) <= MAX_TOKEN_NAME_CHARS or not name.isprintable() or name != name.strip():
        text = f"name must be 1 to {MAX_TOKEN_NAME_CHARS} printable characters, without spaces at its ends"
        raise BadRequest(text, field="name")
    return name


def check_scopes(scopes: Sequence[str] | None) -> tuple[str, ...]:
    """What an API token is to allow, each scope once. Raises BadRequest."""
    if scopes is None:
        return TOKEN_SCOPES
    if not 1 <= len(scopes) <= MAX_TOKEN_SCOPES:
        raise BadRequest(f"scopes must have 1 to {MAX_TOKEN_SCOPES} entries", field="scopes")
    for scope in scopes:
        what, _, kind = scope.partition(":")
        if scope not in TOKEN_SCOPES and (what != "submit" or not _is_kind(kind)):
            raise BadRequest(
                f"{quote(scope)} is not a scope; scopes are tasks:read, tasks:write and submit:KIND", field="scopes"
            )
    return tuple(dict.fromkeys(scopes))


def _is_kind(kind: str) -> bool:
    try:
        check_kind(kind)
    except BadRequest:
        return False
    return True
