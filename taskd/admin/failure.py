"""How a command of taskadmin ends early."""

from __future__ import annotations

from collections.abc import Sequence

from taskd.cli.texts.catalogue import Texts
from taskd.config import Settings
from taskd.model.errors import DataInUse, SchemaTooNew, SchemaTooOld, SettingsError, TaskdError


class Failed(Exception):
    """The command has failed. ``lines`` are for standard error, in the user's language."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


def explained(e: Exception, settings: Settings, texts: Texts) -> Sequence[str]:
    """What to tell about an exception, in lines."""
    if isinstance(e, Failed):
        return e.lines
    if isinstance(e, DataInUse):
        return [texts("data_in_use", folder=settings.data)]
    if isinstance(e, SchemaTooOld):
        return [texts("too_old")]
    if isinstance(e, TaskdError | SettingsError | SchemaTooNew | OSError):
        return [str(e)]
    return [texts("defect", why=f"{type(e).__name__}: {e}")]
