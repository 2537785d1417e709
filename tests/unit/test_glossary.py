"""docs/glossary.md: every term once, in one sentence, with a file that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(
    r"^\| (?!term|---)(.+?) \| (.+) \| `(.+)` \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE
)


def test_every_row_of_the_tables_is_read() -> None:
    lines = [line for line in (ROOT / "docs" / "glossary.md").read_text().splitlines() if line.startswith("| ")]
    heads = [line for line in lines if line.startswith(("| term ", "| ---"))]
    assert len(ROWS) == len(lines) - len(heads) > 50


def test_the_files_exist() -> None:
    assert [file for _, _, file in ROWS if not (ROOT / file).is_file()] == []


def test_each_term_is_defined_once_and_in_one_sentence() -> None:
    terms = [term for names, _, _ in ROWS for term in names.split(", ")]
    assert len(terms) == len(set(terms))
    for names, meaning, _ in ROWS:
        assert meaning.endswith(".") and ". " not in meaning, names
