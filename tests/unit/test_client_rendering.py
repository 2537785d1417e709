"""Tasks as text: escapes, widths, tables that fit, colours."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from taskd.cli.context import ReceivedTask
from taskd.cli.texts.catalogue import Texts
from taskd.cli.ui.rendering import Renderer, age, compact
from taskd.cli.ui.text import cut, pad, width
from taskd.client.connection import read
from taskd.client.errors import ConnectionFailed
from taskd.model.states import SHOWN_STATES
from taskd.model.visible import visible
from taskd.protocol.views import TaskView

NOON = datetime(2025, 3, 1, 12, tzinfo=timezone.utc)
ENGLISH = Texts("en")
COLUMNS = ("id", "status", "state", "kind", "age", "text")


def task(**fields: Any) -> TaskView:
    """A task with these fields, and defaults for the others."""
    defaults: dict[str, Any] = {
        "id": 7,
        "task": "render",
        "kind": "simulate",
        "queue": "tasks",
        "status": "Procesando",
        "state": "running",
        "attempt": 1,
        "max_attempts": 3,
        "version": 2,
        "created_at": NOON,
        "run_at": NOON,
    }
    return TaskView(**defaults | fields)


class TestText:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain", "plain"),
            ("año 日本 👍🏽 é", "año 日本 👍🏽 é"),
            ("👩\u200d💻", "👩\u200d💻"),
            ("\x1b]0;t\x07", "\\x1b]0;t\\x07"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\x7f\x85\x9b", "\\x7f\\x85\\x9b"),
            ("\u2028\u2029\u202e\u2066\ufeff\xad", "\\u2028\\u2029\\u202e\\u2066\\ufeff\\xad"),
            ("\U000e0041\ud800", "\\U000e0041\\ud800"),
        ],
    )
    def test_visible(self, text: str, shown: str) -> None:
        assert visible(text) == shown

    def test_nothing_visible_moves_the_cursor(self) -> None:
        # The control characters (Unicode Standard, 23.1) and those that change the direction of text (UAX 9)
        every = visible("".join(map(chr, range(0x3000))))
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f]", every)

    @pytest.mark.parametrize(
        ("text", "cells"), [("", 0), ("abc", 3), ("日本", 4), ("👍", 2), ("e\u0301", 1), ("\u200d", 0), ("한", 2)]
    )
    def test_width(self, text: str, cells: int) -> None:
        assert width(text) == cells

    @pytest.mark.parametrize(
        ("text", "cells", "shown"),
        [
            ("abcdef", 6, "abcdef"),
            ("abcdef", 5, "abcd…"),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
            ("e\u0301e\u0301e\u0301", 2, "e\u0301…"),
            ("abc", 1, "…"),
            ("abc", 0, ""),
            ("abc", -3, ""),
        ],
    )
    def test_cut(self, text: str, cells: int, shown: str) -> None:
        assert cut(text, cells) == shown
        assert width(shown) <= max(cells, 0)

    def test_pad(self) -> None:
        assert pad("日", 4) == "日  "
        assert pad("long", 2) == "long"

    @pytest.mark.parametrize(
        ("seconds", "shown"),
        [(-5, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (86399, "23 h"), (86400 * 400, "400 d")],
    )
    def test_age(self, seconds: float, shown: str) -> None:
        assert age(NOON, NOON + timedelta(seconds=seconds)) == shown

    @pytest.mark.parametrize(
        ("raw", "shown"),
        [
            (b'{"a": [1, 2],\n "b": null}', '{"a":[1,2],"b":null}'),
            (b"123456789012345678901234567890", "123456789012345678901234567890"),
            (b'"\x1b\xc2\x9b"', '"\\x1b\\x9b"'),
        ],
    )
    def test_compact(self, raw: bytes, shown: str) -> None:
        assert compact(Raw(raw)) == shown


class TestView:
    @pytest.mark.parametrize(
        "change", [{"id": "7"}, {"created_at": "2025-03-01T12:00:00"}, {"created_at": None}, {"version": 1.5}]
    )
    def test_a_malformed_task(self, change: dict[str, Any]) -> None:
        good = msgspec.to_builtins(task(result=None, payload=None))
        read(Raw(msgspec.json.encode(good)), ReceivedTask, "here")
        with pytest.raises(ConnectionFailed):
            read(Raw(msgspec.json.encode(good | change)), ReceivedTask, "here")

    def test_fields_of_a_newer_server(self) -> None:
        good = msgspec.to_builtins(task(result=None, payload=None))
        assert read(Raw(msgspec.json.encode(good | {"priority": 3})), ReceivedTask, "here").id == 7


class TestTable:
    def lines(self, columns: int | None, *tasks: TaskView, lang: str = "en") -> list[str]:
        renderer = Renderer(Texts(lang), columns, colour=False)
        return renderer.table(COLUMNS).lines(renderer.rows(tasks, NOON))

    def test_columns_are_aligned_by_cells(self) -> None:
        lines = self.lines(None, task(kind="k"), task(id=1234, state="en_日本", task="x"))
        starts = {width(line[: line.index(word)]) for line, word in zip(lines, ("TASK", "render", "x"), strict=True)}
        assert len(starts) == 1
        assert lines[1].startswith("   7  Procesando")

    @pytest.mark.parametrize("lang", ["en", "es"])
    @pytest.mark.parametrize("columns", [200, 80, 60, 50, 40, 30, 20, 10, 8])
    def test_no_line_is_wider_than_the_terminal(self, columns: int, lang: str) -> None:
        tasks = [task(task="日本語" * 100), task(id=12345, task="x" * 100, state="completed")]
        lines = self.lines(columns, *tasks, lang=lang)
        assert len(lines) == 3
        assert max(map(width, lines)) <= columns

    def test_a_narrow_terminal_drops_columns(self) -> None:
        headings = [self.lines(columns, task())[0].split() for columns in (80, 55, 45, 38, 24)]
        assert headings == [
            ["ID", "STATUS", "STATE", "KIND", "AGE", "TASK"],
            ["ID", "STATUS", "STATE", "AGE", "TASK"],
            ["ID", "STATUS", "STATE", "TASK"],
            ["ID", "STATUS", "TASK"],
            ["ID", "TASK"],
        ]

    def test_later_pages_keep_the_widths(self) -> None:
        renderer = Renderer(ENGLISH, 45, colour=False)
        table = renderer.table(COLUMNS)
        first = table.lines(renderer.rows([task(id=1000)], NOON))
        second = table.lines(renderer.rows([task(id=1, kind="much-longer-than-before")], NOON))
        assert len(second) == 1
        assert second[0].index("render") == first[1].index("render")

    def test_colours(self) -> None:
        renderer = Renderer(ENGLISH, 80, colour=True)
        lines = renderer.table(COLUMNS).lines(renderer.rows([task(status="Completada", state="completed")], NOON))
        assert "\x1b[32mCompletada\x1b[0m  \x1b[32mcompleted\x1b[0m" in lines[1]
        assert "\x1b" not in lines[0]


class TestChange:
    @pytest.mark.parametrize("lang", ["en", "es"])
    def test_the_text_begins_in_the_same_column_whatever_the_state(self, lang: str) -> None:
        """Also for a running task at 100 per cent."""
        renderer = Renderer(Texts(lang), None, colour=False)
        lines = [renderer.change(task(state=state), NOON) for state in SHOWN_STATES]
        lines += [renderer.progress(7, "render", progress, None, NOON) for progress in (0.0, 0.5, 1.0)]
        assert len({line.index("render") for line in lines}) == 1

    def test_results_and_errors(self) -> None:
        renderer = Renderer(ENGLISH, None, colour=False)
        ended = {"state": "completed", "finished_at": NOON}
        assert renderer.change(task(**ended, result=Raw(b'{"a": 1}')), NOON).endswith('completed      render: {"a":1}')
        assert renderer.change(task(state="failed", error="b\x07d"), NOON).endswith("failed         render: b\\x07d")
        assert renderer.change(task(attempt=2), NOON).endswith("running        render (attempt 2 of 3)")

    @pytest.mark.parametrize("columns", [200, 80, 50, 40, 30, 20])
    def test_it_fits(self, columns: int) -> None:
        line = Renderer(ENGLISH, columns, colour=False).change(task(task="日本語" * 100, state="completed"), NOON)
        assert width(line) <= columns
        assert "completed" in line


class TestDetails:
    def test_empty_fields_are_left_out(self) -> None:
        lines = Renderer(ENGLISH, None, colour=False).details(task(state="scheduled", payload=Raw(b"{}")))
        assert [line.split(":")[0] for line in lines] == [
            "Task",
            "Text",
            "Status",
            "Kind",
            "Queue",
            "Attempts",
            "Created",
            "Not before",
            "Payload",
        ]

    def test_in_spanish(self) -> None:
        lines = Renderer(Texts("es"), None, colour=False).details(task())
        assert lines[2].split() == ["Estado:", "Procesando", "(en", "curso)"]
