"""What a connection may begin with.

A web page of any origin can have a browser send text of its own to any port, but always behind a request of HTTP. A
first line that is not a JSON object ends the connection, so none of that text is taken for a request.
"""

from __future__ import annotations

import re

from taskd.model.errors import BadJson

CLOSED = "; the connection is closed"

_HTTP = re.compile(rb"[A-Za-z]+ |PRI ")


def refusal(start: bytes) -> BadJson | None:
    """Why a connection that begins with these bytes is closed; None if they are the start of an object. There is at
    least one byte, and the first is not a blank."""
    if start.startswith(b"{"):
        return None
    return BadJson(f"{_reason(start)}{CLOSED}")


def _reason(start: bytes) -> str:
    if start.startswith(b"\x16"):
        return "this port does not speak TLS"
    if start.startswith((b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n")):
        return "a PROXY header is accepted only from the addresses in the server's setting TASKD_TRUSTED_PROXIES"
    if start.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "the first line begins with a byte order mark; send UTF-8 without one"
    if _HTTP.match(start):
        return "this port speaks lines of JSON, not HTTP; see docs/protocol.md"
    return 'the first line must be one JSON object, such as {"action":"ping"}'
