"""Every variable and option, declared once: name, format, default and meaning.

Reading, ``--help``, ``.env.example`` and ``docs/settings.md`` all come from here. After a change, run
``python -m taskd.config.docs``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from taskd.config.formats import (
    ENDPOINTS,
    EXISTING,
    FLAG,
    INSTALLATION,
    MODULE,
    MODULES,
    NETWORKS,
    PATH,
    QUEUE,
    QUEUES,
    REGISTRATION,
    SSLMODE,
    TEXT,
    USERNAMES,
    VHOST,
    Format,
    decimal,
    optional,
    whole_number,
)
from taskd.model.quotas import MAX_QUOTA, MAX_QUOTA_MIB

T = TypeVar("T")

SERVER, WORKER = "taskserver", "taskworker"


@dataclass(frozen=True)
class Option:
    """An option of the command line; a repeatable one is read value by value."""

    name: str
    format: Format[Any]
    daemons: tuple[str, ...] = (SERVER, WORKER)
    short: str = ""
    repeatable: bool = False
    help: str = ""
    """Empty: the help of the variable that the option overrides."""
    default: str | None = None


@dataclass(frozen=True)
class Setting(Generic[T]):
    """A variable of the environment, and the option that overrides it."""

    name: str
    format: Format[T]
    default: str
    """As it is written in ``.env``; empty: none."""
    help: str
    option: Option | None = None
    secret: bool = False
    """A password: the spaces around it are part of it."""


POSTGRES_HOST = Setting(
    "POSTGRES_HOST",
    TEXT,
    "",
    "Host of PostgreSQL. Set it together with RABBITMQ_HOST to run distributed; set neither to run embedded.",
)
POSTGRES_PORT = Setting("POSTGRES_PORT", whole_number(1, 65535), "5432", "Port of PostgreSQL.")
POSTGRES_USER = Setting("POSTGRES_USER", TEXT, "taskd", "Role in PostgreSQL.")
POSTGRES_PASSWORD = Setting("POSTGRES_PASSWORD", TEXT, "", "Password of the role.", secret=True)
POSTGRES_DB = Setting("POSTGRES_DB", TEXT, "taskd", "Database. It must exist; taskd creates the tables.")

POSTGRES_SSLMODE = Setting(
    "POSTGRES_SSLMODE",
    optional(SSLMODE),
    "",
    "How connections to PostgreSQL use TLS, as in libpq. verify-full checks the certificate and the host name. Without"
    " it: verify-full if POSTGRES_SSLROOTCERT is set, else PGSSLMODE or prefer, which uses TLS if the server offers it"
    " but checks nothing.",
)
POSTGRES_SSLROOTCERT = Setting(
    "POSTGRES_SSLROOTCERT",
    optional(EXISTING),
    "",
    "PEM file of the authorities to trust for PostgreSQL. verify-ca and verify-full need it.",
)

RABBITMQ_HOST = Setting("RABBITMQ_HOST", TEXT, "", "Host of RabbitMQ.")
RABBITMQ_PORT = Setting(
    "RABBITMQ_PORT",
    optional(whole_number(1, 65535)),
    "",
    "Port of RabbitMQ. Without it: 5672, or 5671 with RABBITMQ_TLS=1.",
)
RABBITMQ_USER = Setting(
    "RABBITMQ_USER", TEXT, "guest", "User in RabbitMQ. RabbitMQ accepts guest from its own machine only."
)
RABBITMQ_PASSWORD = Setting("RABBITMQ_PASSWORD", TEXT, "guest", "Password of the user.", secret=True)
RABBITMQ_VHOST = Setting("RABBITMQ_VHOST", VHOST, "/", "Virtual host in RabbitMQ. It must exist.")
RABBITMQ_TLS = Setting(
    "RABBITMQ_TLS",
    FLAG,
    "0",
    "1: connect to RabbitMQ with TLS (amqps). The certificate and its host name are always checked.",
)
RABBITMQ_CAFILE = Setting(
    "RABBITMQ_CAFILE",
    optional(EXISTING),
    "",
    "PEM file, or folder of *.pem and *.crt files, of the authorities to trust for RabbitMQ. Without it: those of the"
    " machine.",
)
TASKD_INSTALLATION = Setting(
    "TASKD_INSTALLATION",
    optional(INSTALLATION),
    "",
    "Id of this installation: everything of taskd in RabbitMQ is named after it. The first daemon writes it into a new"
    " database; a daemon whose id is not that of its database does not start. Without it: the id that the database has"
    " or makes up.",
    Option("installation", INSTALLATION),
)
RABBITMQ_QUEUE = Setting("RABBITMQ_QUEUE", QUEUE, "tasks", "Queue of the tasks that name no queue.")
TASKD_QUEUES = Setting(
    "TASKD_QUEUES", QUEUES, "", "More queues. Servers accept tasks for them, and workers take tasks from them."
)
QUEUE_OPTION = Option(
    "queue",
    QUEUE,
    (WORKER,),
    "q",
    repeatable=True,
    help="A queue to take tasks from. Overrides RABBITMQ_QUEUE and TASKD_QUEUES.",
)

TASKD_LISTEN = Setting(
    "TASKD_LISTEN",
    ENDPOINTS,
    "tcp:5000:interface=127.0.0.1",
    "Twisted endpoints on which a server listens. tcp:5000 listens on every interface; for TLS, use for example"
    " ssl:5001:privateKey=key.pem:certKey=cert.pem.",
    Option("listen", TEXT, (SERVER,), "l", repeatable=True),
)
TASKD_ALLOW_PLAINTEXT = Setting(
    "TASKD_ALLOW_PLAINTEXT",
    FLAG,
    "0",
    "1: accept passwords and tokens from other machines without TLS. Anybody on the network can then read them. In the"
    " environment of taskclient: send them.",
)
TASKD_TRUSTED_PROXIES = Setting(
    "TASKD_TRUSTED_PROXIES",
    NETWORKS,
    "",
    "Balancers that send the PROXY protocol (version 1 or 2). A connection from there must begin with a PROXY header,"
    " and its address counts as the client's. Passwords and tokens are accepted from there: let the balancer use TLS"
    " with clients from other machines.",
)
TASKD_DATA = Setting(
    "TASKD_DATA", PATH, "./taskd-data", "Folder of the embedded database.", Option("data", PATH, (SERVER,), "d")
)
TASKD_WINDOW = Setting(
    "TASKD_WINDOW",
    whole_number(1, 1_000_000),
    "2000",
    "Without effect: accepted for older configurations. Tasks wait in the database until a worker has room for them.",
)
TASKD_LEASE = Setting(
    "TASKD_LEASE",
    decimal("seconds", 1.0, 3600.0),
    "30",
    "How long a worker may be silent before its tasks are given to other workers.",
)
TASKD_STALL = Setting(
    "TASKD_STALL",
    decimal("seconds", 5.0, 86_400.0),
    "300",
    "How long a handler may block a worker's reactor before the worker is ended. The log names the handler after a"
    " second.",
)
TASKD_HEALTH = Setting(
    "TASKD_HEALTH",
    optional(PATH),
    "",
    "UNIX socket on which a taskworker answers health checks (deploy/healthcheck.py). Without it there is none.",
    Option("health", optional(PATH), (WORKER,)),
)
TASKD_KEEP_DAYS = Setting(
    "TASKD_KEEP_DAYS",
    decimal("days", 0.0, 36_500.0),
    "0",
    "Age at which finished tasks are deleted with their results, logs and attempts. 0: never.",
)
TASKD_BCRYPT_ROUNDS = Setting(
    "TASKD_BCRYPT_ROUNDS",
    whole_number(4, 18),
    "12",
    "Cost of a password hash: each step doubles the time. After a change, each login renews the hash of its password."
    " Give all servers the same value.",
)
TASKD_SESSION_DAYS = Setting(
    "TASKD_SESSION_DAYS", whole_number(1, 3650), "30", "Days after a login until the user must log in again."
)
TASKD_SESSION_IDLE_DAYS = Setting(
    "TASKD_SESSION_IDLE_DAYS",
    whole_number(1, 3650),
    "7",
    "Days without use after which a login ends. API tokens end by their own time only.",
)
TASKD_AUDIT_DAYS = Setting(
    "TASKD_AUDIT_DAYS", whole_number(1, 36_500), "365", "Age in days at which rows of the audit are deleted."
)
TASKD_ADMINS = Setting(
    "TASKD_ADMINS",
    USERNAMES,
    "",
    "Users who are admins, whatever their role in the database. Servers refuse to register these names:"
    " `taskadmin create-admin` makes the accounts.",
)

TASKD_QUOTA_OPEN = Setting(
    "TASKD_QUOTA_OPEN",
    whole_number(0, MAX_QUOTA),
    "100000",
    "How many tasks a user may have that have not ended. 0: no limit. An admin can set another limit for a user, as for"
    " the next two.",
)
TASKD_QUOTA_DAILY = Setting(
    "TASKD_QUOTA_DAILY",
    whole_number(0, MAX_QUOTA),
    "1000000",
    "How many tasks a user may create within 24 hours. 0: no limit.",
)
TASKD_QUOTA_MIB = Setting(
    "TASKD_QUOTA_MIB",
    whole_number(0, MAX_QUOTA_MIB),
    "10240",
    "How many MiB the texts, payloads, results and logs of a user may take up. 0: no limit.",
)
TASKD_REGISTRATION = Setting(
    "TASKD_REGISTRATION",
    REGISTRATION,
    "open",
    "Who may create an account: open: everybody who can connect; invitation: who has an invitation from an admin;"
    " closed: nobody.",
)
TASKD_ADMIN_TOTP = Setting(
    "TASKD_ADMIN_TOTP",
    FLAG,
    "0",
    "1: an admin needs a second factor (TOTP). Without one, an admin may set one up and do what a user may, but nothing"
    " that needs the role.",
)
TASKD_REVEAL_UNKNOWN_USERS = Setting(
    "TASKD_REVEAL_UNKNOWN_USERS",
    FLAG,
    "0",
    "1: a login says that nobody has the name, as the first version did. Anybody can then find out which names there"
    " are.",
)
TASKD_LOCAL_USERS = Setting(
    "TASKD_LOCAL_USERS",
    FLAG,
    "0",
    "1: a user of the server's machine who connects to a UNIX socket of the server (TASKD_LISTEN) logs in without a"
    " password, and gets an account at the first time. Users with a uid below 1000 do not. Names that others have taken"
    " over the network are refused, so set TASKD_REGISTRATION=closed, too.",
)
TASKD_HASH_THREADS = Setting(
    "TASKD_HASH_THREADS",
    optional(whole_number(0, 64)),
    "",
    "Password hashes that a server computes at the same time. Without it, or with 0: as many as the machine has cores,"
    " at most 4.",
)
TASKD_LOGINS_PER_MINUTE = Setting(
    "TASKD_LOGINS_PER_MINUTE",
    whole_number(0, 1_000_000),
    "60",
    "Wrong passwords that one address may send a minute. A /64 of IPv6 is one address. Right passwords do not count,"
    " nor does an address from which the account has logged in lately. 0: no limit.",
)
TASKD_GUESSES_PER_HOUR = Setting(
    "TASKD_GUESSES_PER_HOUR",
    whole_number(0, 1_000_000),
    "100",
    "Wrong passwords for one account an hour, from all addresses together from which the account has not logged in"
    " lately. 0: no limit.",
)
TASKD_REGISTRATIONS_PER_HOUR = Setting(
    "TASKD_REGISTRATIONS_PER_HOUR",
    whole_number(0, 1_000_000),
    "20",
    "Registrations and tries of invitations of one address an hour. 0: no limit.",
)
TASKD_LOGIN_SECONDS = Setting(
    "TASKD_LOGIN_SECONDS",
    decimal("seconds", 1.0, 3600.0),
    "30",
    "Time that a connection has to log in. Then it is closed.",
)
TASKD_STRANGERS = Setting(
    "TASKD_STRANGERS",
    whole_number(1, 1_000_000),
    "64",
    "Connections from one address (IPv6: from one network of 64 bits) that are not logged in. With more, the oldest"
    " that asks for nothing is closed. Behind a balancer that does not send the PROXY protocol, all clients have one"
    " address.",
)
TASKD_USER_CONNECTIONS = Setting(
    "TASKD_USER_CONNECTIONS",
    whole_number(1, 1_000_000),
    "256",
    "Connections of one user to one server. A login on one more is refused.",
)
TASKD_IDLE_SECONDS = Setting(
    "TASKD_IDLE_SECONDS",
    decimal("seconds", 0.0, 31_536_000.0),
    "0",
    "Time after which a logged-in connection is closed that sends nothing and waits for no answer, even if it watches."
    " Clients can send ping. 0: never.",
)
TASKD_KEEPALIVE_SECONDS = Setting(
    "TASKD_KEEPALIVE_SECONDS",
    whole_number(4, 32_767),
    "120",
    "Silence after which TCP asks whether the client's machine is still there. After the same time without an answer,"
    " or with bytes that the client does not take for twice this time, the connection is lost.",
)
TASKD_HANDSHAKE_SECONDS = Setting(
    "TASKD_HANDSHAKE_SECONDS",
    decimal("seconds", 1.0, 3600.0),
    "10",
    "Time that the TLS handshake of a connection may take.",
)
TASKD_BACKLOG = Setting(
    "TASKD_BACKLOG",
    whole_number(1, 65_535),
    "1024",
    "Connections that may wait to be accepted, where the endpoint does not say backlog=. The system may have a lower"
    " limit (net.core.somaxconn).",
)
TASKD_SPARE_FILES = Setting(
    "TASKD_SPARE_FILES",
    whole_number(0, 1_000_000),
    "200",
    "Open files that clients may not take up: they are left for the database, RabbitMQ and, in an embedded server, for"
    " tasks. Never more than half of the limit of open files.",
)
TASKD_USER_UNREAD_MIB = Setting(
    "TASKD_USER_UNREAD_MIB",
    whole_number(1, 1_048_576),
    "64",
    "Size of the replies and events that one user's connections have not read, in MiB. With more, the connection that"
    " has the most is closed.",
)
TASKD_UNREAD_MIB = Setting(
    "TASKD_UNREAD_MIB", whole_number(1, 1_048_576), "256", "The same for all connections of a server together."
)

TASKD_SLOTS = Setting(
    "TASKD_SLOTS",
    whole_number(0, 100_000),
    "100",
    "Tasks that a worker runs at the same time on its reactor (handlers with async def).",
    Option("slots", whole_number(1, 100_000), short="s"),
)
TASKD_THREADS = Setting(
    "TASKD_THREADS",
    whole_number(1, 1000),
    "10",
    "Tasks that a worker runs at the same time in threads.",
    Option("threads", whole_number(1, 1000)),
)
TASKD_PROCESSES = Setting(
    "TASKD_PROCESSES",
    optional(whole_number(0, 1000)),
    "",
    "Tasks that a worker runs at the same time in child processes, and as many programs. Without it: as many as the"
    " machine has cores.",
    Option("processes", whole_number(1, 1000)),
)
TASKD_HANDLERS = Setting(
    "TASKD_HANDLERS",
    MODULES,
    "",
    "Where workers find handlers: Python modules such as lab.handlers.",
    Option("handlers", MODULE, repeatable=True),
)
TASKD_PROGRAMS = Setting(
    "TASKD_PROGRAMS",
    optional(PATH),
    "",
    "TOML file of the programs that workers may run. Without it they run none.",
    Option("programs", optional(PATH)),
)
TASKD_LOG_KIB = Setting(
    "TASKD_LOG_KIB",
    whole_number(1, 1_048_576),
    "1024",
    "Size to which the log of a task is cut, in KiB. The oldest lines are deleted first.",
)
GRACE = Option(
    "grace",
    whole_number(0, 86_400),
    short="g",
    help="Seconds that running tasks get to end when the daemon stops.",
    default="30",
)
ENV_FILE = Option("env-file", TEXT, short="e", help="Read the variables from this file instead of ./.env.")

TASKD_PUBLISH = Setting(
    "TASKD_PUBLISH",
    TEXT,
    "127.0.0.1:5000",
    "Address and port of the balancer outside the containers. Only docker-compose.yml reads it.",
)

GROUPS: dict[str, tuple[Setting[Any], ...]] = {
    "PostgreSQL": (
        POSTGRES_HOST,
        POSTGRES_PORT,
        POSTGRES_USER,
        POSTGRES_PASSWORD,
        POSTGRES_DB,
        POSTGRES_SSLMODE,
        POSTGRES_SSLROOTCERT,
    ),
    "RabbitMQ": (
        RABBITMQ_HOST,
        RABBITMQ_PORT,
        RABBITMQ_USER,
        RABBITMQ_PASSWORD,
        RABBITMQ_VHOST,
        RABBITMQ_TLS,
        RABBITMQ_CAFILE,
        TASKD_INSTALLATION,
        RABBITMQ_QUEUE,
        TASKD_QUEUES,
    ),
    "Server": (
        TASKD_LISTEN,
        TASKD_ALLOW_PLAINTEXT,
        TASKD_TRUSTED_PROXIES,
        TASKD_DATA,
        TASKD_WINDOW,
        TASKD_LEASE,
        TASKD_KEEP_DAYS,
        TASKD_BCRYPT_ROUNDS,
        TASKD_SESSION_DAYS,
        TASKD_SESSION_IDLE_DAYS,
        TASKD_AUDIT_DAYS,
        TASKD_ADMINS,
        TASKD_ADMIN_TOTP,
        TASKD_REGISTRATION,
        TASKD_REVEAL_UNKNOWN_USERS,
        TASKD_LOCAL_USERS,
        TASKD_HASH_THREADS,
        TASKD_LOGINS_PER_MINUTE,
        TASKD_GUESSES_PER_HOUR,
        TASKD_REGISTRATIONS_PER_HOUR,
        TASKD_QUOTA_OPEN,
        TASKD_QUOTA_DAILY,
        TASKD_QUOTA_MIB,
    ),
    "Connections of a server": (
        TASKD_LOGIN_SECONDS,
        TASKD_STRANGERS,
        TASKD_USER_CONNECTIONS,
        TASKD_IDLE_SECONDS,
        TASKD_KEEPALIVE_SECONDS,
        TASKD_HANDSHAKE_SECONDS,
        TASKD_BACKLOG,
        TASKD_SPARE_FILES,
        TASKD_USER_UNREAD_MIB,
        TASKD_UNREAD_MIB,
    ),
    "Worker, also the one in an embedded server": (
        TASKD_SLOTS,
        TASKD_THREADS,
        TASKD_PROCESSES,
        TASKD_HANDLERS,
        TASKD_PROGRAMS,
        TASKD_LOG_KIB,
        TASKD_STALL,
        TASKD_HEALTH,
    ),
    "Docker Compose": (TASKD_PUBLISH,),
}
"""All variables, in the order of the documentation."""

SECRETS = tuple(setting.name for group in GROUPS.values() for setting in group if setting.secret)
"""The variables that a daemon erases from its environment when it has read them."""


def options(daemon: str) -> dict[Option, str]:
    """The options of a daemon, each with its help text."""
    found = {}
    for each in (setting for group in GROUPS.values() for setting in group):
        if each.option is not None:
            default = f" (default {each.default})" if each.default else ""
            found[each.option] = f"{each.help} Overrides {each.name}{default}."
    found |= {option: option.help for option in (QUEUE_OPTION, GRACE, ENV_FILE)}
    return {
        option: f"{text} Repeatable." if option.repeatable else text
        for option, text in found.items()
        if daemon in option.daemons
    }
