"""How the user learns of an error: one line in their language, or one JSON object."""

from __future__ import annotations

import msgspec

from taskd.cli.texts.catalogue import Texts
from taskd.cli.texts.words import WORDS
from taskd.cli.ui.terminal import Output
from taskd.client.errors import ClientError, Refused, Unconfirmed


class Reporter:
    """Reports errors, and as a RetryListener the attempts to reconnect. ``login`` is the command line that logs in."""

    def __init__(self, out: Output, texts: Texts, json: bool, login: str = "taskclient login") -> None:
        self._out = out
        self._texts = texts
        self._json = json
        self._login = login

    def explain(self, e: ClientError) -> str:
        """The error in one line."""
        texts = self._texts
        if isinstance(e, Refused):
            # Some statuses say more than the error code beside them
            status, field = e.fields["status"], e.fields["field"]
            keys = (f"status.{status}", f"code.{e.code}.{field}", f"code.{e.code}", "code.other")
            return texts(next(key for key in keys if key in WORDS), message=e.fields["message"])
        fields = {"command": self._login, **e.fields}
        if isinstance(e, Unconfirmed):
            fields["why"] = self.explain(e.cause)
        return texts(e.key, **fields)

    def report(self, e: ClientError) -> None:
        """Print the error: with ``--json`` on standard output, else on standard error."""
        if not self._json:
            self._out.note(f"taskclient: {self.explain(e)}")
        elif isinstance(e, Refused):
            self._out.raw(e.received.line)
        else:
            line = {"ok": False, "status": "error", "code": e.code, "message": self.explain(e)}
            if isinstance(e, Unconfirmed):
                line["key"] = e.fields["task_key"]
            self._out.raw(msgspec.json.encode(line))

    def waiting(self, error: ClientError) -> None:
        """Say why the command pauses."""
        key = "retrying" if isinstance(error, Refused) else "reconnecting"
        self._out.note(self._texts(key, why=self.explain(error)))

    def reconnected(self) -> None:
        """Say that the connection works again."""
        self._out.note(self._texts("reconnected"))
