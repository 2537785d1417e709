"""Durations and times, as people write them and as they are shown."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from taskd.cli.durations import duration, moment_in, seconds_in


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("90", 90),
            ("0", 0),
            ("0.25", 0.25),
            ("90s", 90),
            ("10m", 600),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("2d", 172_800),
            ("1.5h", 5400),
            ("1d2h3m4.5s", 93_784.5),
            (" 1H ", 3600),
            ("007", 7),
        ],
    )
    def test_valid(self, text: str, seconds: float) -> None:
        assert seconds_in(text) == seconds

    @pytest.mark.parametrize(
        "text", ["", " ", "x", "-1", "+1", "1x", "30m1h", "1h1h", "1e3", "inf", "nan", ".", "1.s", "٣s", "1 h", "1,5h"]
    )
    def test_invalid(self, text: str) -> None:
        with pytest.raises(ValueError):
            seconds_in(text)

    def test_a_number_that_is_too_large(self) -> None:
        assert seconds_in("9" * 5000 + "d") == float("inf")

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0, "0s"), (0.5, "0.5s"), (30, "30s"), (5400, "1h30m"), (172_800, "2d"), (90_061, "1d1h1m1s"), (1.5, "1.5s")],
    )
    def test_how_it_is_shown(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text
        assert seconds_in(text) == seconds


@pytest.fixture
def in_madrid() -> Iterator[None]:
    """A local time zone with daylight saving time."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "CET-1CEST,M3.5.0,M10.5.0/3"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("in_madrid")
class TestMoments:
    @pytest.mark.parametrize(
        ("text", "utc"),
        [
            ("2026-12-01 08:00", "2026-12-01T07:00"),
            ("2026-07-01 08:00", "2026-07-01T06:00"),
            ("2026-12-01T08:00:30", "2026-12-01T07:00:30"),
            ("2026-12-01", "2026-11-30T23:00"),
            ("2026-12-01 08:00Z", "2026-12-01T08:00"),
            ("2026-12-01t08:00z", "2026-12-01T08:00"),
            ("2026-12-01 08:00 +02:00", "2026-12-01T06:00"),
            ("2026-12-01T08:00-0530", "2026-12-01T13:30"),
            ("2026-12-01T08:00+02", "2026-12-01T06:00"),
        ],
    )
    def test_valid(self, text: str, utc: str) -> None:
        at = moment_in(text)
        assert at == datetime.fromisoformat(utc).replace(tzinfo=timezone.utc)
        assert at.utcoffset() is not None

    @pytest.mark.parametrize(
        "text",
        [
            *("", "tomorrow", "08:00", "2026-13-01", "2026-02-30 08:00", "2026-12-01 25:00", "20261201", "2026-W01"),
            *("2026-12-01 08:00+25:00", "2026-12-01 08", "1764576000", "2026-12-01 08:00 CET"),
        ],
    )
    def test_invalid(self, text: str) -> None:
        with pytest.raises(ValueError):
            moment_in(text)

    def test_the_first_and_last_years(self) -> None:
        for text in ("0001-01-01", "9999-12-31 23:59"):
            with contextlib.suppress(ValueError):  # the system cannot convert this year
                assert moment_in(text).utcoffset() is not None
