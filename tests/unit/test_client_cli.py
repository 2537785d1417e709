"""From the command line to an exit status: addresses, languages, texts, and the process with its signals."""

from __future__ import annotations

import re
import signal
import string
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import OpenSSL
import pytest
from twisted.internet import endpoints
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

import taskd.cli
import taskd.client
from taskd.cli.errors import OutputClosed, UsageError
from taskd.cli.main import _without_tls, main
from taskd.cli.options import parser
from taskd.cli.process import CommandProcess
from taskd.cli.reporting import Reporter
from taskd.cli.run import COMMANDS
from taskd.cli.texts.catalogue import Texts, language
from taskd.cli.texts.help import EXAMPLES
from taskd.cli.texts.words import WORDS
from taskd.cli.ui.terminal import Output
from taskd.client.address import endpoint, is_plain, normalized
from taskd.client.errors import BadAddress, ClientError


class TestAddress:
    @pytest.mark.parametrize(
        ("given", "address"),
        [
            ("example.org", "example.org:5000"),
            (" Example.ORG:80 ", "example.org:80"),
            ("[::1]", "[::1]:5000"),
            ("[fe80::1%eth0]:80", "[fe80::1%eth0]:80"),
            ("tls:Example.org:5001", "tls:Example.org:5001"),
            ("unix:/run/taskd", "unix:/run/taskd"),
        ],
    )
    def test_normalized(self, given: str, address: str) -> None:
        assert normalized(given) == address

    @pytest.mark.parametrize("given", ["", "a b", "host:0", "host:65536", "[::1]:99999", "/run/taskd"])
    def test_not_an_address(self, given: str) -> None:
        with pytest.raises(BadAddress):
            normalized(given)

    @pytest.mark.parametrize(
        ("address", "kind"),
        [
            ("127.0.0.1:80", endpoints.TCP4ClientEndpoint),
            ("[::1]:80", endpoints.TCP6ClientEndpoint),
            ("example.org:80", endpoints.HostnameEndpoint),
            ("tcp:example.org:80", endpoints.TCP4ClientEndpoint),
            ("unix:/run/taskd", endpoints.UNIXClientEndpoint),
            ("tls:example.org:80", endpoints.wrapClientTLS),
        ],
    )
    def test_endpoint(self, address: str, kind: Any) -> None:
        made = endpoint(MemoryReactorClock(), address)
        if isinstance(kind, type):
            assert type(made) is kind
        assert is_plain(address) is not address.startswith("tls:")

    @pytest.mark.parametrize(
        ("address", "says"),
        [
            ("tcp:x", "tcp:x is not a server address; use"),
            ("gopher:x:1", "(Unknown endpoint type: 'gopher')"),
            ("tls:x:1:trustRoots=/does/not/exist", "/does/not/exist: there is no such file or folder"),
            ("tls:x:1:certificate=/does/not/exist", "(No such file or directory)"),
            ("tls:x:1:colour=red", "is not a server address; use"),
            ("tls:x", "is not a server address; use"),
            ("tls:x:0", "a port is a number"),
            ("ssl:x:1", "such as tls:HOST:PORT"),
            ("tcp:x:http", "is not a server address ("),
            ("[::1", "is not a server address ("),
        ],
    )
    def test_an_endpoint_that_twisted_refuses(self, address: str, says: str) -> None:
        with pytest.raises(BadAddress) as caught:
            endpoint(MemoryReactorClock(), address)
        assert says in Texts("en")(caught.value.key, **caught.value.fields)


class TestTexts:
    @pytest.mark.parametrize(
        ("env", "lang"),
        [
            ({}, "en"),
            ({"LANG": "es_ES.UTF-8"}, "es"),
            ({"LANG": "es_ES.UTF-8", "LC_ALL": "C"}, "en"),
            ({"LANG": "C", "LC_MESSAGES": "es"}, "es"),
            ({"LC_ALL": "", "LANG": "es"}, "es"),
            ({"LC_ALL": "en_US.UTF-8", "TASKD_LANG": "ES"}, "es"),
            ({"LANG": "est_EE"}, "en"),
            ({"LANG": "pt_BR"}, "en"),
        ],
    )
    def test_language(self, env: dict[str, str], lang: str) -> None:
        assert language(env) == lang

    def test_both_languages_fill_in_the_same(self) -> None:
        def fields(text: str) -> set[str]:
            return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}

        for key, (english, spanish) in WORDS.items():
            # English prints the message of the server; Spanish may have a text of its own
            missing = {"message"} if key.startswith("code.") else set()
            assert fields(english) - missing <= fields(spanish) <= fields(english), key

    def test_every_text_that_the_code_uses_exists(self) -> None:
        folders = [Path(package.__path__[0]) for package in (taskd.client, taskd.cli)]
        source = "".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
        asked = re.findall(
            r"(?:texts|\bt|ClientError|UsageError|BadAddress|NotLoggedIn|ConnectionFailed|prompt|_ask|_ask_needed"
            r"|say|note|report)\((?:reply, )?\s*\"([\w.]+)\"",
            source,
        )
        assert len(asked) > 60
        assert set(asked) - set(WORDS) == {"key"}, "which is only an example"


VERBS = [
    *(["token", verb] for verb in ("new", "list", "end")),
    *(["users", verb] for verb in ("set-role", "disable", "enable", "reset-password", "end-sessions")),
]


class TestCommandLine:
    @pytest.mark.parametrize("lang", ["en", "es"])
    def test_every_command_has_help(self, lang: str, capsys: pytest.CaptureFixture[str]) -> None:
        for argv in ([], *([command] for command in COMMANDS), *VERBS):
            with pytest.raises(SystemExit) as ended:
                parser(Texts(lang)).parse_args([*argv, "--help"])
            assert ended.value.code == 0
            shown = capsys.readouterr().out
            assert shown.startswith("uso: " if lang == "es" else "usage: ")
            assert "%%" not in shown
        assert set(EXAMPLES) <= {"main", *COMMANDS}

    def test_common_options_stand_before_or_after_the_command(self) -> None:
        for argv in (["--json", "--server", "a:1", "whoami"], ["whoami", "--json", "--server", "a:1"]):
            options = parser(Texts("en")).parse_args(argv)
            assert (options.json, options.server) == (True, "a:1")
        assert parser(Texts("en")).parse_args(["whoami"]).server is None

    def test_there_is_no_option_for_a_password(self) -> None:
        with pytest.raises(SystemExit):
            parser(Texts("en")).parse_args(["login", "ana", "--password", "x"])

    @pytest.mark.parametrize("argv", [["--help"], ["add", "--help"]])
    def test_main_returns_a_status(self, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(argv) == 0
        assert "taskclient" in capsys.readouterr().out

    @pytest.mark.parametrize("argv", [[], ["--json"], ["nonsense"], ["--server", "a b", "whoami"]])
    def test_main_with_a_wrong_command_line(self, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(argv) == 2
        assert "taskclient" in capsys.readouterr().err

    def test_a_wrong_address_is_reported_as_json_too(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--server", "a b", "whoami", "--json"]) == 2
        out, err = capsys.readouterr()
        assert out.startswith('{"ok":false,"status":"error","code":"bad_request","message":"a b is not a server')
        assert err == ""


class Loop(Clock):
    """A reactor that runs the scheduled calls until it is stopped."""

    threadpool = None

    def __init__(self) -> None:
        super().__init__()
        self._work: list[Callable[[], object]] = []
        self._stopped = False
        self.readers: list[Any] = []

    def callWhenRunning(self, work: Callable[..., object], *args: Any) -> None:
        self._work.append(lambda: work(*args))

    callFromThread = callWhenRunning

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def run(self) -> None:
        while not self._stopped:
            self._work.pop(0)()

    def stop(self) -> None:
        self._stopped = True


def process(loop: Loop) -> CommandProcess:
    texts = Texts("en")
    return CommandProcess(loop, texts, Reporter(Output(None, None), texts, json=False))


@pytest.fixture
def signals() -> Iterator[None]:
    """Restores the signal handlers of the test run."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
class TestCommandProcess:
    def run(self, perform: Callable[[Loop], Coroutine[Any, Any, int]], pipe: int | None = None) -> int:
        loop = Loop()
        return process(loop).run(perform(loop), pipe)

    def test_the_status_of_the_command(self) -> None:
        async def five(loop: Loop) -> int:
            return 5

        assert self.run(five) == 5

    @pytest.mark.parametrize(
        ("number", "status", "says"), [(signal.SIGINT, 130, "\nInterrupted.\n"), (signal.SIGTERM, 143, "")]
    )
    def test_a_signal_cancels_it(
        self, number: signal.Signals, status: int, says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cleaned = []

        async def waiting(loop: Loop) -> int:
            loop.callWhenRunning(signal.raise_signal, number)
            try:
                await Deferred()
            finally:
                cleaned.append(True)
            return 0

        assert self.run(waiting) == status
        assert cleaned == [True]
        assert capsys.readouterr().err == says

    def test_a_signal_before_the_command_has_begun(self) -> None:
        loop = Loop()
        loop.callWhenRunning(signal.raise_signal, signal.SIGINT)

        async def waiting() -> int:
            await Deferred()
            return 0

        assert process(loop).run(waiting()) == 130

    @pytest.mark.parametrize(
        ("why", "status", "says"),
        [
            (OutputClosed(), 141, ""),
            (ClientError("output_failed", why="No space"), 1, "taskclient: cannot write the output: No space\n"),
            (UsageError("no_text"), 2, "taskclient: what is the task?"),
            (KeyError("a\nb"), 1, "taskclient: unexpected error, please report it: KeyError: 'a"),
            (ZeroDivisionError(), 1, "taskclient: unexpected error, please report it: ZeroDivisionError:\n"),
        ],
    )
    def test_a_command_that_raises(
        self, why: Exception, status: int, says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async def failing(loop: Loop) -> int:
            raise why

        assert self.run(failing) == status
        err = capsys.readouterr().err
        assert err.startswith(says)
        assert err.count("\n") == (1 if says else 0)

    def test_a_reader_that_closes_the_pipe(self) -> None:
        async def waiting(loop: Loop) -> int:
            loop.callWhenRunning(lambda: loop.readers[0].connectionLost(Failure(OSError())))
            await Deferred()
            return 0

        assert self.run(waiting, pipe=1) == 141


def test_the_library_needs_neither_terminal_nor_command_line() -> None:
    sources = [path.read_text() for path in Path(taskd.client.__path__[0]).rglob("*.py")]
    assert sources
    assert not any(re.search(r"^\s*(?:import|from) (?:rich|argparse|taskd\.cli)\b", text, re.M) for text in sources)


def test_loaded_tls_is_not_removed() -> None:
    _without_tls()
    assert sys.modules["OpenSSL"] is OpenSSL
