"""What is wrong with the certificate of a server."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from zope.interface import Interface


class Flaw(Enum):
    """What is wrong with the certificate of a server."""

    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    UNTRUSTED = "untrusted"
    OTHER_HOST = "other host"
    NO_HOST = "no host"
    OTHER = "other"


class Problem(NamedTuple):
    """Why a certificate was refused. ``detail`` is a date (YYYY-MM-DD, UTC) for EXPIRED and NOT_YET_VALID, the issuer
    for UNTRUSTED, the names in the certificate for OTHER_HOST, and OpenSSL's text for OTHER."""

    flaw: Flaw
    detail: str

    def __str__(self) -> str:
        return _WORDS[self.flaw].format(self.detail)


_WORDS = {
    Flaw.EXPIRED: "its certificate expired on {}",
    Flaw.NOT_YET_VALID: "its certificate is valid from {} on; check the clock of this machine",
    Flaw.UNTRUSTED: "its certificate is from an authority that is not trusted: {}",
    Flaw.OTHER_HOST: "its certificate is for another host: {}",
    Flaw.NO_HOST: "its certificate names no host (subjectAltName)",
    Flaw.OTHER: "its certificate was refused: {}",
}


class ICertificateListener(Interface):
    """A protocol above ClientTls that wants to know why it gets no connection."""

    def certificate_refused(problem: Problem) -> None:
        """The connection is about to be lost because of this."""
