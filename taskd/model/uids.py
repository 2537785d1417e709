"""Which users of the machine are persons, by their uid."""

from __future__ import annotations

FIRST_UID = 1000
"""Linux gives lower ones to root and to services."""

NOBODY = 65_534
"""Linux shows a user as this one whom it cannot name here, for example one of another namespace."""

DYNAMIC = range(61_184, 65_520)
"""systemd gives these to services (``DynamicUser=``), and later to others. Source: systemd.exec(5)."""

LAST_UID = 2**32 - 2


def is_person(uid: int) -> bool:
    """Whether an account may be bound to this uid."""
    return FIRST_UID <= uid <= LAST_UID and uid != NOBODY and uid not in DYNAMIC
