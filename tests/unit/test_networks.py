"""taskd.api.networks: which addresses are one source."""

from __future__ import annotations

import pytest
from twisted.logger import capturedLogs

from taskd.api.networks import MANY_USERS, SharedAddressNotice
from taskd.model.addresses import network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        (None, ""),
        ("", ""),
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:c000:0207", "192.0.2.7"),
        ("64:ff9b::192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("no address", "no address"),
    ],
)
def test_the_source_of_an_address(address: str | None, network: str) -> None:
    assert network_of(address) == network


class TestSharedAddressNotice:
    def lines(self, address: str | None, users: int) -> list[str]:
        notice = SharedAddressNotice()
        with capturedLogs() as events:
            for n in range(3 * users):
                notice.logged_in(f"user{n % users}", address)
        return [event["address"] for event in events]

    @pytest.mark.parametrize(
        "address", ["10.1.2.3", "192.168.0.9", "172.31.0.1", "127.0.0.1", "::1", "::ffff:10.0.0.1"][:6]
    )
    def test_many_users_from_one_private_address_are_reported_once(self, address: str) -> None:
        assert self.lines(address, MANY_USERS) == [address]
        assert self.lines(address, MANY_USERS - 1) == []

    @pytest.mark.parametrize("address", ["203.0.113.5", "172.32.0.1", "2001:db8::1", None, "somewhere"])
    def test_public_addresses_are_not(self, address: str | None) -> None:
        assert self.lines(address, 2 * MANY_USERS) == []

    def test_users_of_different_addresses_are_not_added_up(self) -> None:
        notice = SharedAddressNotice()
        with capturedLogs() as events:
            for n in range(1000):
                notice.logged_in(f"user{n}", f"10.0.{n // 200}.{n % 200}")
        assert events == []

    def test_the_line_says_what_to_set(self) -> None:
        notice = SharedAddressNotice()
        with capturedLogs() as events:
            for n in range(MANY_USERS):
                notice.logged_in(f"user{n}", "10.0.0.1")
        assert "TASKD_TRUSTED_PROXIES" in events[0]["log_format"]
