"""Handlers for test_hostile.py."""

from __future__ import annotations

import json
from typing import Any

from taskd.worker import handler
from tests.integration.hostile import attack

TEXT = "\x1b]0;owned\x07\x9b2J\u202e\r\n2026-01-01T00:00:00+0000 [taskd#info] forged"


@handler("attack", isolation="process")
def attack_from_child(task: Any) -> str:
    """Look into every process."""
    return json.dumps(attack([each[::-1].encode() for each in task.payload["reversed"]]))


@handler("raise.async")
async def raise_async(task: Any) -> None:
    """Fail with a text for a terminal."""
    raise ValueError(TEXT)


@handler("raise.thread")
def raise_in_thread(task: Any) -> None:
    """The same, and print it."""
    print(TEXT)
    raise ValueError(TEXT)


@handler("raise.process", isolation="process")
def raise_in_child(task: Any) -> None:
    """The same in a child."""
    print(TEXT)
    raise ValueError(TEXT)
