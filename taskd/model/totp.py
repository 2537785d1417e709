"""The second factor of a login: codes of six digits that change with the time (TOTP, RFC 6238), and recovery codes."""

from __future__ import annotations

import pyotp
from pyotp.exceptions import OTPVerificationError

from taskd.model.tokens import random_groups

STEPS_AROUND = 1
"""How many time steps before and after the present one are accepted: clocks differ a little, and typing takes time. A
step has 30 seconds."""

RECOVERY_CODES = 10

RECOVERY_LETTERS = 24
"""Of a recovery code: 118 random bits, so many that one round of SHA-256 protects it."""

ISSUER = "taskd"
"""What an authenticator shows beside the username."""


def new_secret() -> str:
    """160 random bits in base32."""
    return pyotp.random_base32()


def secret_uri(secret: str, username: str) -> str:
    """The secret as authenticators read it, an ``otpauth://`` URI."""
    return pyotp.TOTP(secret).provisioning_uri(name=username, issuer_name=ISSUER)


def new_recovery_codes() -> list[str]:
    """Codes for a user who has lost the authenticator. Each works once."""
    return [random_groups(RECOVERY_LETTERS) for _ in range(RECOVERY_CODES)]


def digits_of(code: str) -> str | None:
    """The six digits of a code, which may be typed with spaces or a dash. None for anything else, such as a recovery
    code."""
    digits = "".join(code.split()).replace("-", "")
    return digits if len(digits) == 6 and digits.isascii() and digits.isdecimal() else None


def step_of(secret: str, digits: str, now: float) -> int | None:
    """The number of the time step whose code this is, None if it is not one of those that are accepted ``now``, in
    seconds since 1970."""
    try:
        return pyotp.TOTP(secret).verify_and_get_timecode(digits, for_time=now, valid_window=STEPS_AROUND)
    except OTPVerificationError:
        return None
