"""What an action answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from taskd.api.principal import Principal


@dataclass(frozen=True)
class Reply:
    """``fields`` are the reply's fields except ``id`` and ``ok``; ``status`` is always among them.

    ``principal`` is who the client is from now on, None if that does not change. The transport calls ``after_sent``
    once it has written the reply.
    """

    fields: Mapping[str, Any]
    principal: Principal | None = None
    after_sent: Callable[[], None] | None = None


SUCCESS = Reply({"status": "success"})
