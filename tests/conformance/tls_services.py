"""A private PostgreSQL and a private RabbitMQ with TLS, and the certificates that they have."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from tests import programs, services
from tests.certificates import Certificate, authority
from tests.processes import free_port

CA = authority("Services")
HOST = "localhost"
"""The only name in their certificates; they listen on 127.0.0.1."""


@functools.cache
def folder() -> Path:
    """The certificates: of the authority (``ca.pem``), of another one (``other.pem``), and of the services."""
    # /tmp is the same folder in the other system that TASKD_TEST_SERVICES may name
    made = Path(tempfile.mkdtemp(prefix="taskd-tls-", dir="/tmp"))
    made.chmod(0o755)
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    (made / "ca.pem").write_bytes(CA.pem)
    (made / "other.pem").write_bytes(authority("Other").pem)
    return made


def _files(name: str, certificate: Certificate, user: tuple[int, int] | None) -> tuple[Path, Path]:
    own = folder() / name
    own.mkdir()
    key, cert = certificate.write(own)
    for path in (own, key, cert):
        if user is not None:
            shutil.chown(path, *user)
    return key, cert


@functools.cache
def postgres() -> services.Postgres:
    """PostgreSQL with TLS, started on first use. It accepts plain connections as well."""
    # PostgreSQL wants its key to be its own, and closed to others
    key, cert = _files("postgres", CA.issue(HOST), programs.service_user())
    server = services.Postgres(
        fsync=False, settings={"ssl": "on", "ssl_cert_file": str(cert), "ssl_key_file": str(key)}
    )
    server.start()
    return server


class RabbitMQ(services.RabbitMQ):
    """A node with TLS on a port of its own."""

    def __init__(self) -> None:
        key, cert = _files("rabbitmq", CA.issue(HOST), None)
        self.tls_port = free_port()
        super().__init__(
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.cacertfile = {folder()}/ca.pem\n"
            f"ssl_options.certfile = {cert}\n"
            f"ssl_options.keyfile = {key}\n"
            "ssl_options.verify = verify_none\n"
            "ssl_options.fail_if_no_peer_cert = false\n"
        )


@functools.cache
def rabbitmq() -> RabbitMQ:
    """RabbitMQ with TLS, started on first use."""
    node = RabbitMQ()
    node.start()
    return node
