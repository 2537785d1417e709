"""The user's language, and the texts in it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

from taskd.cli.texts.reasons import REASONS, STATES
from taskd.cli.texts.words import WORDS
from taskd.model.visible import visible

LANGUAGES = ("en", "es")


def language(env: Mapping[str, str]) -> str:
    """``en`` or ``es``: TASKD_LANG, else the first locale variable that is set, in the order of POSIX."""
    wanted = next((env[name] for name in ("TASKD_LANG", "LC_ALL", "LC_MESSAGES", "LANG") if env.get(name)), "")
    return "es" if re.match(r"es(?![a-z])", wanted.lower()) else "en"


class Texts:
    """The texts of one language: ``texts("key", field=...)``. They are safe to print, whatever the fields contain.
    ``words`` has the texts of a program by their names, English and Spanish."""

    def __init__(self, lang: str, words: Mapping[str, tuple[str, str]] = WORDS) -> None:
        self.lang = lang
        self._words = words
        self._column = LANGUAGES.index(lang)

    def __call__(self, key: str, /, **fields: Any) -> str:
        """The text of that name with its fields filled in."""
        return self._fill(self._words[key], fields)

    def state(self, state: str) -> str:
        """The name of a task's state; an unknown one stays as it is."""
        return visible(STATES.get(state, state) if self.lang == "es" else state)

    def reason(self, code: str, message: str, **fields: Any) -> str:
        """Why a task is in its state: our own text if there is one and its fields are not empty, else ``message``."""
        with contextlib.suppress(KeyError):
            message = self._fill(REASONS[code], {name: field for name, field in fields.items() if field}) or message
        return visible(message)

    def _fill(self, texts: tuple[str, str], fields: Mapping[str, Any]) -> str:
        return texts[self._column].format(**{name: visible(str(field)) for name, field in fields.items()})
