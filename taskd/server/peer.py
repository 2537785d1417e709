"""Whose process is at the other end of a UNIX socket."""

from __future__ import annotations

import socket
import struct
from typing import Any

_CREDENTIALS = struct.Struct("iII")
"""``struct ucred`` of Linux: process, user, group."""


def peer_uid(transport: Any) -> int | None:
    """The uid of the process that has connected, at the moment when it did. The kernel says it, so the process cannot
    lie. None if this is no UNIX socket, or the system cannot tell."""
    get_handle = getattr(transport, "getHandle", None)
    handle: Any = None if get_handle is None else get_handle()
    if getattr(handle, "family", None) != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return None
    try:
        found = handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return None
    _, uid, _ = _CREDENTIALS.unpack(found)
    return int(uid)
