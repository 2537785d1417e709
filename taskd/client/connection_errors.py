"""Which error of the library stands for an error of the network, of TLS or of the operating system."""

from __future__ import annotations

from twisted.python.failure import Failure

from taskd.client.errors import ConnectionFailed
from taskd.tls.problems import Flaw, Problem

_CERTIFICATE = {
    Flaw.EXPIRED: ("tls_expired", "date"),
    Flaw.NOT_YET_VALID: ("tls_not_yet", "date"),
    Flaw.UNTRUSTED: ("tls_untrusted", "issuer"),
    Flaw.OTHER_HOST: ("tls_name", "names"),
    Flaw.NO_HOST: ("tls_unnamed", ""),
    Flaw.OTHER: ("tls_refused", "why"),
}
"""Key and field of the error for each flaw of a certificate."""


def os_reason(e: Exception) -> str:
    """The operating system's own message, also where Twisted has wrapped the error."""
    for inner in (getattr(e, "osError", None), getattr(e, "originalException", None), e):
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
    return str(e) or type(e).__name__


def lost_error(reason: Failure, server: str, is_taskd: bool, problem: Problem | None = None) -> ConnectionFailed:
    """The error for a connection that ended. ``is_taskd``: the server has sent a valid reply before. ``problem``: what
    is wrong with its certificate."""
    if is_taskd:
        return ConnectionFailed("lost", server=server)
    if problem is not None:
        return _certificate_error(problem, server)
    return _tls_error(reason.value, server) or ConnectionFailed("closed_early", server=server)


def _tls_error(e: BaseException | None, server: str) -> ConnectionFailed | None:
    """The error for a failure of TLS, None for any other failure."""
    # By name, because a plain connection must not import pyOpenSSL and service_identity
    module = type(e).__module__.partition(".")[0]
    if module == "service_identity":  # by an endpoint of a plugin, as the next one
        return _certificate_error(Problem(Flaw.OTHER_HOST, "?"), server)
    if module != "OpenSSL":
        return None
    # SSL.Error carries a list of (library, function, reason), SSL.SysCallError a number and a text
    last = e.args[-1] if e is not None and e.args else None
    why = str(last[-1][-1] if isinstance(last, list) and last else last or type(e).__name__)
    if why == "certificate verify failed":
        return _certificate_error(Problem(Flaw.UNTRUSTED, "?"), server)
    if why in _NOT_TLS:
        return ConnectionFailed("tls_plain", transient=False, nothing_done=True, server=server)
    return None if "eof" in why.lower() else ConnectionFailed("tls_failed", server=server, why=why)


def _certificate_error(problem: Problem, server: str) -> ConnectionFailed:
    key, field = _CERTIFICATE[problem.flaw]
    fields = {field: problem.detail} if field else {}
    return ConnectionFailed(key, transient=False, nothing_done=True, server=server, **fields)


def is_tls_alert(data: bytes) -> bool:
    """Whether a server that expected TLS has answered a plain request so: content type 21 and version 3.x."""
    return data[:2] == b"\x15\x03"


_NOT_TLS = ("wrong version number", "packet length too long", "unknown protocol", "record layer failure")
"""The reasons that different versions of OpenSSL give when the server answers in plain text."""
