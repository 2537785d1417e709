"""The id of the installation: made with the database, so that all daemons that share it agree. Everything of theirs in
RabbitMQ is named after it. The stores read it at their start, under the lock of the migrations.
"""

from __future__ import annotations

from taskd.model.errors import SettingsError

FIND = "SELECT id FROM installation"

MAKE_UP = "INSERT INTO installation DEFAULT VALUES"


def check(stored: str, wanted: str | None) -> str:
    """The stored id. Raises SettingsError if the settings want another one: this is another installation's database, or
    the daemons do not agree."""
    if wanted is not None and wanted != stored:
        raise SettingsError(
            f"TASKD_INSTALLATION is {wanted}, but the database belongs to the installation {stored}: leave it empty or"
            " set it to the same, or choose another database"
        )
    return stored
