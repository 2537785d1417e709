"""How the dispatcher shares its turn among the users."""

from __future__ import annotations

from collections.abc import Iterable

from taskd.store.paging import T


def share(limit: int, users: int) -> int:
    """How many tasks each of this many users may have now; when there are less than one for each, one for some."""
    return max(1, limit // users)


def in_turns(rows: Iterable[tuple[int, T]]) -> list[T]:
    """Values of (user id, value) in round-robin order: everybody's first, then everybody's second, ..."""
    ranks: dict[int, int] = {}
    ranked: list[tuple[int, int, T]] = []
    for user, value in rows:
        rank = ranks[user] = ranks.get(user, -1) + 1
        ranked.append((rank, user, value))
    ranked.sort(key=lambda r: r[:2])
    return [value for _, _, value in ranked]
