"""``.env.example`` and the tables of ``docs/settings.md``, written from the declarations.

``python -m taskd.config.docs``, run in a checkout, writes both. In the page it replaces what stands between the marks
``<!-- begin NAME -->`` and ``<!-- end NAME -->``. A test fails while one of the files is out of date.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from taskd.config.declarations import GROUPS, SERVER, WORKER, options

EXAMPLE, PAGE = Path(".env.example"), Path("docs/settings.md")

_HEAD = """\
# Settings of taskd. Copy this file to .env in the folder where a daemon starts, or pass it with --env-file.
# The environment wins over this file, and an option of the command line wins over both. A line that is commented out
# shows the default. docs/settings.md has the same list, with the options.
#
# docker-compose.yml sets the hosts, the ports and TASKD_LISTEN itself. It creates the role in PostgreSQL and the user
# in RabbitMQ; without POSTGRES_PASSWORD the password is taskd.
"""
_PART = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def example() -> str:
    """The text of ``.env.example``."""
    blocks = [_HEAD]
    for title, group in GROUPS.items():
        blocks.append(f"# === {title} ===\n")
        for each in group:
            words = each.format.words
            text = f"{each.help} {words[:1].upper()}{words[1:]}." if words else each.help
            comment = textwrap.fill(text, 118, initial_indent="# ", subsequent_indent="# ")
            blocks.append(f"{comment}\n#{each.name}={each.default}\n")
    return "\n".join(blocks)


def updated(page: str) -> str:
    """The page with its marked parts up to date."""
    parts = {"settings": _settings()} | {daemon: _options(daemon) for daemon in (SERVER, WORKER)}
    return _PART.sub(lambda part: f"{part[1]}\n{parts[part[2]]}\n{part[3]}", page)


def _settings() -> str:
    return "\n".join(
        f"### {title}\n\n"
        + _table(
            ("variable", "default", "value", "meaning"),
            [(f"`{s.name}`", f"`{s.default}`" if s.default else "", s.format.words or "text", s.help) for s in group],
        )
        for title, group in GROUPS.items()
    )


def _options(daemon: str) -> str:
    rows = []
    for option, text in options(daemon).items():
        names = f"`--{option.name}`, `-{option.short}`" if option.short else f"`--{option.name}`"
        default = f" Default: {option.default}." if option.default else ""
        rows.append((names, option.format.words or "text", text + default))
    return _table((f"`twistd {daemon}`", "value", "meaning"), rows)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in lines)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
    EXAMPLE.write_text(example(), "utf-8")
