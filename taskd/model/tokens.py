"""Secrets that taskd makes for users: session and API tokens, invitations, one-time codes. Only hashes are stored."""

from __future__ import annotations

import hashlib
import secrets

_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Douglas Crockford's Base32: no letter looks like a digit or like another letter."""

_GROUPS, _GROUP = 7, 4
"""28 characters of 5 bits are 140 random bits."""

_MISREAD = str.maketrans("ILO", "110")


def new_token() -> str:
    """A random token of 256 bits, for machines."""
    return secrets.token_urlsafe(32)


def new_code() -> str:
    """A random code of at least 128 bits that a person can read aloud and type: groups of four, joined by dashes."""
    return "-".join("".join(secrets.choice(_DIGITS) for _ in range(_GROUP)) for _ in range(_GROUPS))


def normalize_code(typed: str) -> str:
    """The code that a person means: letter case, dashes and spaces do not matter, and I, L and O are read as digits."""
    return "".join(filter(str.isalnum, typed)).upper().translate(_MISREAD)


def token_hash(token: str) -> bytes:
    """What the store keeps of a token. Tokens are random, so one round of SHA-256 is enough."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def code_hash(typed: str) -> bytes:
    """What the store keeps of a code, however a person types it."""
    return token_hash(normalize_code(typed))
