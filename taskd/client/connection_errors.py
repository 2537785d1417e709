"""What the network says when something fails, in words that help a user."""

from __future__ import annotations

from twisted.python.failure import Failure

from taskd.client.errors import ClientError, ConnectionTrouble


def os_reason(e: Exception) -> str:
    """The operating system's words for what Twisted has wrapped."""
    for inner in (getattr(e, "osError", None), getattr(e, "originalException", None), e):
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
    return str(e) or type(e).__name__


def why_lost(reason: Failure, server: str, spoken: bool) -> ClientError:
    """Why a connection ended. ``spoken`` tells whether the server had proved to be a taskd before."""
    trouble = None if spoken else _tls_trouble(reason.value, server)
    return trouble or ConnectionTrouble("lost" if spoken else "closed_early", server=server)


def _tls_trouble(e: BaseException | None, server: str) -> ClientError | None:
    """What went wrong with TLS, or None when it was something else."""
    # By name, not by type: pyOpenSSL and service_identity are not to be imported for a plain connection
    module = type(e).__module__.partition(".")[0]
    if module == "service_identity":
        return ConnectionTrouble("tls_name", transient=False, undone=True, server=server)
    if module != "OpenSSL":
        return None
    # An error of OpenSSL is a list of (library, function, reason); one of the system below it a number and a text
    last = e.args[-1] if e is not None and e.args else None
    why = str(last[-1][-1] if isinstance(last, list) and last else last or type(e).__name__)
    if "eof" in why.lower():
        return None
    if why == "certificate verify failed":
        return ConnectionTrouble("tls_untrusted", transient=False, undone=True, server=server)
    if why in _NOT_TLS:
        return ConnectionTrouble("tls_plain", transient=False, undone=True, server=server)
    return ConnectionTrouble("tls_failed", server=server, why=why)


_NOT_TLS = ("wrong version number", "packet length too long", "unknown protocol", "record layer failure")
"""What OpenSSL says of an answer in plain text; it depends on its version."""
