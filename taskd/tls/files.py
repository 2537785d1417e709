"""Files with certificates, and the endpoint strings that name them."""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509
from OpenSSL.crypto import X509
from twisted.internet.ssl import Certificate, trustRootFromCertificates

_PART = re.compile(r"(?:^|:)((?:\\.|[^\\:])*)", re.DOTALL)

_SUFFIXES = (".pem", ".crt")


def arguments(description: str) -> tuple[list[str], dict[str, str]]:
    """The arguments of an endpoint string of Twisted, without its type: those without and those with a name."""
    _, *parts = _PART.findall(description)
    plain: list[str] = []
    named: dict[str, str] = {}
    for part in parts:
        # a key has no backslash in any type that taskd reads itself
        key, equals, value = part.partition("=")
        if equals:
            named[_unescaped(key)] = _unescaped(value)
        else:
            plain.append(_unescaped(part))
    return plain, named


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def certificates(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file, in order. Raises OSError, and ValueError if it has none."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError:
        found = []
    if not found:
        raise ValueError(f"{path} has no certificate in PEM form")
    return found


class Authorities:
    """The authorities to trust, read from a PEM file, or from all files ``*.pem`` and ``*.crt`` of a folder.

    Raises OSError if the path cannot be read, ValueError if no certificate is there.
    """

    def __init__(self, path: Path) -> None:
        files = sorted(f for f in path.iterdir() if f.suffix in _SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path} has no file *.pem or *.crt")
        found = (certificate for file in files for certificate in certificates(file))
        self.root = trustRootFromCertificates([Certificate(X509.from_cryptography(each)) for each in found])
