"""Addresses from which many users log in."""

from __future__ import annotations

from ipaddress import ip_network

from twisted.logger import Logger

from taskd.model.addresses import parsed

_PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fc00::/7", "::1")))

MANY_USERS = 20
"""So many users from one private address look like a balancer in front of the server."""

_MAX_WATCHED = 256
"""Private addresses whose users are counted."""


class SharedAddressNotice:
    """Logs once that many users log in from one private address: probably a balancer that does not send the addresses
    of its clients. All of them then share the limits of one address, and guesses are made from a known one."""

    _log = Logger()

    def __init__(self) -> None:
        self._users: dict[str, set[str]] | None = {}

    def logged_in(self, key: str, address: str | None) -> None:
        """This user has logged in from here."""
        if self._users is None or not address:
            return
        users = self._users.get(address)
        if users is None:
            found = parsed(address)
            if found is None or len(self._users) >= _MAX_WATCHED or not any(found in network for network in _PRIVATE):
                return
            users = self._users[address] = set()
        users.add(key)
        if len(users) >= MANY_USERS:
            self._users = None
            self._log.warn(
                "{number} users have logged in from the private address {address}. This looks like a balancer that does"
                " not send the addresses of its clients: they share one limit for logins. Let it send them with the"
                " PROXY protocol, and name it in TASKD_TRUSTED_PROXIES.",
                number=len(users),
                address=address,
            )
