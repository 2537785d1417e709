"""Which error of the library stands for an error of the network, of TLS or of the operating system."""

from __future__ import annotations

from twisted.python.failure import Failure

from taskd.client.errors import ConnectionFailed


def os_reason(e: Exception) -> str:
    """The operating system's own message, also where Twisted has wrapped the error."""
    for inner in (getattr(e, "osError", None), getattr(e, "originalException", None), e):
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
    return str(e) or type(e).__name__


def lost_error(reason: Failure, server: str, is_taskd: bool) -> ConnectionFailed:
    """The error for a connection that ended. ``is_taskd``: the server has sent a valid reply before."""
    if is_taskd:
        return ConnectionFailed("lost", server=server)
    return _tls_error(reason.value, server) or ConnectionFailed("closed_early", server=server)


def _tls_error(e: BaseException | None, server: str) -> ConnectionFailed | None:
    """The error for a failure of TLS, None for any other failure."""
    # By name, because a plain connection must not import pyOpenSSL and service_identity
    module = type(e).__module__.partition(".")[0]
    if module == "service_identity":
        key = "tls_name"
    elif module != "OpenSSL":
        return None
    else:
        # SSL.Error carries a list of (library, function, reason), SSL.SysCallError a number and a text
        last = e.args[-1] if e is not None and e.args else None
        why = str(last[-1][-1] if isinstance(last, list) and last else last or type(e).__name__)
        if why == "certificate verify failed":
            key = "tls_untrusted"
        elif why in _NOT_TLS:
            key = "tls_plain"
        else:
            return None if "eof" in why.lower() else ConnectionFailed("tls_failed", server=server, why=why)
    return ConnectionFailed(key, transient=False, nothing_done=True, server=server)


_NOT_TLS = ("wrong version number", "packet length too long", "unknown protocol", "record layer failure")
"""The reasons that different versions of OpenSSL give when the server answers in plain text."""
