"""The file of programs, and the arguments that a payload becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskd.model.backoff import Backoff
from taskd.model.errors import SettingsError
from taskd.worker import Reject
from taskd.worker.forkserver.messages import Path as File
from taskd.worker.program_arguments import Template
from taskd.worker.programs import Command, read_programs

# -- templates


def fill(args: list[Any], **payload: Any) -> list[str | File]:
    """The arguments for this payload."""
    return Template(args).fill(payload)


def rejection(args: list[Any], **payload: Any) -> str:
    """Why the payload is rejected."""
    with pytest.raises(Reject) as caught:
        fill(args, **payload)
    return str(caught.value)


def refusal(args: list[Any]) -> str:
    """Why the template is invalid."""
    with pytest.raises(SettingsError) as caught:
        Template(args)
    return str(caught.value)


def test_placeholders_alone_or_inside_text() -> None:
    args = ["{input}", "-resize", "{w:int}x{h:int}", "--out={output}", "{{literal}}", ""]
    expected = ["a b.png", "-resize", "10x20", "--out=-o; rm -rf /", "{literal}", ""]
    assert fill(args, input="a b.png", w=10, h=20, output="-o; rm -rf /") == expected
    assert Template(args).fields == ["input", "w", "h", "output"]


def test_types() -> None:
    args = ["{a}", "{b:int}", "{c:float}", "{d:bool}"]
    assert fill(args, a="x", b=2**70, c=0.25, d=True) == ["x", str(2**70), "0.25", "true"]
    # a whole number has only one spelling
    assert fill(args, a=5, b=1, c=2, d=False) == ["5", "1", "2", "false"]


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("{a}", 0.5, "a must be a text, not '0.5'"),
        ("{a}", True, "a must be a text, not 'true'"),
        ("{a}", None, "a must be a text, not 'null'"),
        ("{a}", ["x"], "a must be a text, not 'a list'"),
        ("{a}", {}, "a must be a text, not 'an object'"),
        ("{a}", "x\0y", "a must not contain the NUL character"),
        ("{a}", "\ud800", "a must be valid Unicode text"),
        ("{a:int}", "5", "a must be a whole number, not '5'"),
        ("{a:int}", 5.0, "a must be a whole number, not '5.0'"),
        ("{a:int}", False, "a must be a whole number, not 'false'"),
        ("{a:float}", "5", "a must be a number, not '5'"),
        ("{a:bool}", 1, "a must be true or false, not '1'"),
        ("{a...}", "x", "a must be a list, each element a text"),
        ("{a:int...}", [1, "x"], "a must be a list, each element a whole number, not 'x'"),
    ],
)
def test_a_value_of_another_type(field: str, value: Any, why: str) -> None:
    assert rejection([field], a=value) == why


def test_unknown_and_missing_fields() -> None:
    assert rejection(["{a}", "{b}"], a="x", b="y", c=1) == "the payload must not have a field 'c'; there are: a, b"
    assert rejection([], c=1) == "the payload must not have a field 'c'; there are: none"
    assert rejection(["{a}", "{b:int}"], a="x") == "the payload must have a field 'b': a whole number"


def test_defaults() -> None:
    args = ["{a=x y}", "{b:int=5}", "{c=}", "--b={b:int}"]
    assert fill(args) == ["x y", "5", "", "--b=5"]
    assert fill(args, b=6, c="z") == ["x y", "6", "z", "--b=6"]


def test_lists_become_several_arguments() -> None:
    assert fill(["{files...}", "end"], files=["a", "b c"]) == ["a", "b c", "end"]
    assert fill(["{n:int...}"], n=[]) == []
    assert rejection(["{files...}"], files=["a", "-b"]) == (
        "files must not begin with '-', which the program would read as an option"
    )


def test_optional_groups() -> None:
    args = ["{a}", ["--size", "{w:int}x{h:int}"], ["--from={a}", "{q}"]]
    assert fill(args, a="x") == ["x"]
    assert fill(args, a="x", w=1, h=2) == ["x", "--size", "1x2"]
    assert fill(args, a="x", q="y") == ["x", "--from=x", "y"]
    assert rejection(args, a="x", w=1) == "the payload must have a field 'h' when it has 'w'"


@pytest.mark.parametrize("value", ["-rf", "--help", "-", "-5"])
def test_a_value_is_never_an_option(value: str) -> None:
    assert "must not begin with '-'" in rejection(["{a}"], a=value)
    assert "must not begin with '-'" in rejection(["{a}{b}"], a="", b=value)
    assert "must not begin with '-'" in rejection([["{a}"], "--"], a=value)
    # after a "--" that is always there, or after a prefix, it is not an option
    assert fill(["--", "{a}"], a=value) == ["--", value]
    assert fill(["--", ["{a}"]], a=value) == ["--", value]
    assert fill(["-o{a}"], a=value) == [f"-o{value}"]
    assert fill(["./{a}"], a=value) == [f"./{value}"]


def test_a_negative_number_and_a_default_are_not_options() -> None:
    assert "must not begin with '-'" in rejection(["{n:int}"], n=-5)
    assert fill(["--n={n:int}"], n=-5) == ["--n=-5"]
    assert "must not begin with '-'" in rejection(["{a=-v}"])


@pytest.mark.parametrize("value", ["../../../etc/hostname", "/etc/hostname", "a/b", "..", ".", "", "a/..", "./a"])
def test_a_value_beside_a_slash_does_not_lead_out_of_its_folder(value: str) -> None:
    templates = ["dir/{name}", "/srv/{name}/x", "{name}/x", "--in=/srv/{name}", "{name:name}", "x={name:name}"]
    for template in [*templates, "dir/{name=x}", "dir/{name:name}"]:
        found = rejection([template], name=value)
        assert "name must" in found and "\n" not in found, template
    # elsewhere it is a text like any other, and :str says that it is one here too
    for template in ("{name}", "--in={name}", "dir/{name:str}"):
        assert fill(["--", template], name=value) == ["--", template.partition("{")[0] + value]


def test_names_beside_a_slash() -> None:
    args = ["dir/{name}", "dir/{name}.png", "../{name}-{n:int}", "{other:name}", "{more:name...}"]
    expected = ["dir/a b..", "dir/a b...png", "../a b..-5", "7", "x", "y"]
    assert fill(args, name="a b..", n=5, other=7, more=["x", "y"]) == expected
    assert rejection(["{files:name...}"], files=["a", "b/c"]) == "files must be a name without a path, not 'b/c'"


def test_several_fields_do_not_make_a_part_that_leads_out() -> None:
    assert rejection(["dir/{a}{b}"], a=".", b=".") == "b must not make '..' a part of a path"
    assert rejection(["dir/.{a}/x"], a=".") == "a must not make '..' a part of a path"
    assert rejection([".{a:name}"], a="x/") == "a must be a name without a path, not 'x/'"
    assert fill(["dir/{a}{b}"], a=".", b="x") == ["dir/.x"]
    # only the part with :str is free
    assert rejection(["{a:str}/{b}"], a="/x/..", b="..") == "b must not make '..' a part of a path"


def test_a_path_is_resolved_where_the_program_starts() -> None:
    assert fill(["{a:path}", "--b={b:path}"], a="x", b="y") == [File("a", "", "x"), File("b", "--b=", "y")]
    assert fill(["{a:path...}"], a=["x", "-y"]) == [File("a", "", "x"), File("a", "", "-y")]
    assert fill(["{a:path=x}"]) == [File("a", "", "x")]
    assert rejection(["{a:path}"], a="") == "a must not be empty"
    assert rejection(["{a:path}"], a=5) == "a must be a path, not '5'"
    assert "must not begin with '-'" in rejection(["{x}{a:path}"], x="-", a="y")
    assert rejection(["/x/{x}/={a:path}"], x="..", a="y/z") == "x must not make '..' a part of a path"


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["{a"], "'{a' has a '{' that is not part of a placeholder: double it"),
        (["a}"], "'a}' has a '}' that is not part of a placeholder: double it"),
        (["{}"], "has a '{'"),
        (["{a b}"], "has a '{'"),
        (["{1}"], "has a '{'"),
        (["{a:text}"], "a must be one of str, int, float, bool, name, path, not text"),
        (["{a:int=x}"], "the default of a must be a whole number, not 'x'"),
        (["{a:float=nan}"], "the default of a must be a number, not 'nan'"),
        (["{a:bool=yes}"], "the default of a must be true or false, not 'yes'"),
        (["{a:int}", "{a:float}"], "a must have the same type in every placeholder"),
        (["{a...}", "{a}"], "a must have the same type in every placeholder"),
        (["{a...=x}"], "a must not have a default, because it is a list"),
        (["{a...}.png"], "a list must be an argument of its own"),
        (["x{a...}"], "a list must be an argument of its own"),
        (["-{a}"], "would let the payload name an option"),
        (["--{a}"], "would let the payload name an option"),
        ([5], "an argument must be a text, or a list of texts, not 5"),
        ([["x"]], "a list within the arguments must contain a field"),
        ([["{a=x}"]], "a must not have a default in a list that may be left out"),
        ([["{a}", ["{b}"]]], "an argument must be a text"),
        (["a\0b"], "NUL"),
        (["{a:name=x/y}"], "the default of a must be a name without a path, not 'x/y'"),
        (["{a:name=..}"], "the default of a must be a name without a path, not '..'"),
        (["{a:path}.png"], "'{a:path}.png': a path must be at the end of its argument, and not after a '/'"),
        (["/srv/{a:path}"], "'/srv/{a:path}': a path must be at the end of its argument, and not after a '/'"),
        (["{a}", "{a:name}"], "a must have the same type in every placeholder"),
    ],
)
def test_invalid_templates(args: list[Any], why: str) -> None:
    assert why in refusal(args)


def test_no_template_makes_a_shell_line() -> None:
    nasty = "$(reboot) `reboot` ; reboot | reboot & > /etc/passwd '\" \\ \n * ~"
    assert fill(["x={a}", "{a}"], a=nasty) == [f"x={nasty}", nasty]


# -- the file


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a file. TOOL becomes the path of an existing program, HERE that of its folder."""
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "plain").write_text("no program")

    def written(text: str) -> str:
        file = tmp_path / "programs.toml"
        file.write_text(text.replace("TOOL", f'"{program}"').replace("HERE", str(tmp_path)))
        return str(file)

    return written


def by_kind(file: str) -> dict[str, Command]:
    """The programs of a file by their kinds."""
    return {command.kind: command for command in read_programs(file)}


def test_all_keys(write: Any, tmp_path: Path) -> None:
    text = """
        [convert]
        summary = "Scales a picture."
        path = TOOL
        args = ["--", "{input}", ["-resize", "{size}"]]
        env = { LANG = "C.UTF-8" }
        cwd = "HERE"
        timeout = 600
        memory = "512M"
        processes = 8
        max_output = "10K"
        max_file = "1M"
        root = "HERE"
        max_attempts = 5
        backoff = { first = 1, factor = 3, longest = 60, jitter = 0 }
    """
    commands = by_kind(write(text))
    assert list(commands) == ["command:convert"]
    found = commands["command:convert"]
    assert (found.summary, found.cwd, found.timeout) == ("Scales a picture.", str(tmp_path), 600.0)
    assert (found.max_attempts, found.backoff) == (5, Backoff(1, 3, 60, 0))
    program = found.program(found.arguments({"input": "a.png"}), str(tmp_path))
    assert program.argv == [str(tmp_path / "tool"), "--", "a.png"]
    assert program.env == {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    assert (program.memory, program.processes, program.max_output) == (512 * 2**20, 8, 10 * 2**10)
    assert (program.max_file, program.root) == (2**20, str(tmp_path))


def test_defaults_of_a_section(write: Any) -> None:
    found = by_kind(write('[a]\npath = TOOL\nargs = ["{b}"]\n[c]\npath = TOOL\ncwd="temporary"'))
    a = found["command:a"]
    assert (a.cwd, a.timeout, a.max_attempts, a.backoff, a.summary) == (None, None, 3, Backoff(), "Runs tool with b")
    assert a.program([], "/x").memory is a.program([], "/x").processes is None
    assert (a.program([], "/x").max_output, a.program([], "/x").max_file) == (10 * 2**20, 2**30)
    assert found["command:c"].cwd is None
    assert isinstance(a, Command)


def test_a_section_may_set_the_path_variable(write: Any) -> None:
    a = by_kind(write('[a]\npath = TOOL\nenv = { PATH = "/x" }'))["command:a"]
    assert a.program([], "/").env == {"PATH": "/x"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there must be a section [NAME] for each program"),
        ("[a", "at the end of a table declaration"),
        ("a = 1", "[a] expected object, got integer"),
        ("['a b']\npath = TOOL", "[a b]: kind must be 1 to 64 of letters"),
        ("[a]", "[a] path is missing"),
        ("[a]\npath = 5", "[a] path: expected string, got integer"),
        ("[a]\npath = 'sh'", "[a] path: must be absolute, not 'sh'"),
        ("[a]\npath = '/no/such'", "[a] path: there is no file '/no/such'"),
        ("[a]\npath = 'HERE'", "[a] path: there is no file"),
        ("[a]\npath = 'HERE/plain'", "must be executable for the worker"),
        ("[a]\npath = TOOL\nargz = []", "[a] argz: is not known; there are: path, summary, args"),
        ("[a]\npath = TOOL\nargs = '-v x'", "[a] args: expected array, got string"),
        ("[a]\npath = TOOL\nargs = ['{x']", "[a] args: '{x' has a '{'"),
        ("[a]\npath = TOOL\nenv = 'A=1'", "[a] env: expected object, got string"),
        ("[a]\npath = TOOL\nenv = {A = 1}", "[a] env[...]: expected string, got integer"),
        ("[a]\npath = TOOL\nenv = {'A=B' = '1'}", "[a] env: 'A=B' cannot be the name of a variable"),
        ("[a]\npath = TOOL\nenv = {'' = '1'}", "[a] env: '' cannot be the name of a variable"),
        ('[a]\npath = TOOL\nenv = {A = "1\\u0000"}', "[a] env: 'A' must not contain the NUL character"),
        ("[a]\npath = TOOL\ncwd = 'x'", "[a] cwd: must be absolute, or \"temporary\", not 'x'"),
        ("[a]\npath = TOOL\ncwd = '/no/such'", "[a] cwd: there is no folder '/no/such'"),
        ("[a]\npath = TOOL\ntimeout = '10m'", "[a] timeout: expected number or null, got string"),
        ("[a]\npath = TOOL\ntimeout = 0", "[a] timeout: expected number > 0.0"),
        ("[a]\npath = TOOL\ntimeout = nan", "[a] timeout: expected number > 0.0"),
        ("[a]\npath = TOOL\ntimeout = true", "[a] timeout: expected number or null, got boolean"),
        ("[a]\npath = TOOL\nmemory = 'much'", '[a] memory: must be a size, as in "512M"'),
        ("[a]\npath = TOOL\nmemory = 0", "[a] memory: must be a size"),
        ("[a]\npath = TOOL\nmax_output = true", "[a] max_output: expected integer or string, got boolean"),
        ("[a]\npath = TOOL\nmax_file = 0", "[a] max_file: must be a size"),
        ("[a]\npath = TOOL\nargs = ['{x:path}']", "[a] root is missing: x is a path, and must be below a folder"),
        ("[a]\npath = TOOL\nroot = 'x'", "[a] root: must be absolute, not 'x'"),
        ("[a]\npath = TOOL\nroot = '/no/such'", "[a] root: there is no folder '/no/such'"),
        ("[a]\npath = TOOL\nprocesses = 0", "[a] processes: expected integer >= 1"),
        ("[a]\npath = TOOL\nmax_attempts = 101", "[a] max_attempts: expected integer <= 100"),
        ("[a]\npath = TOOL\nbackoff = 5", "[a] backoff: expected object, got integer"),
        ("[a]\npath = TOOL\nbackoff = {firzt = 1}", "[a] backoff.firzt is not known"),
        ("[a]\npath = TOOL\nbackoff = {jitter = 2}", "[a] backoff.jitter: expected number <= 1.0"),
        ("[a]\npath = TOOL\nbackoff = {first = nan}", "[a] backoff.first: expected number >= 0.0"),
    ],
)
def test_an_error_is_one_line_with_its_place(write: Any, text: str, why: str) -> None:
    file = write(text)
    with pytest.raises(SettingsError) as caught:
        read_programs(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and message.count(file) == 1
    assert why in message
    assert "\n" not in message


def test_a_missing_file_and_one_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.toml: No such file"):
        read_programs(str(tmp_path / "missing.toml"))
    (tmp_path / "raw.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"raw\.toml: "):
        read_programs(str(tmp_path / "raw.toml"))
