"""taskd as a package: a wheel and an editable install, in a fresh virtual environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from taskd import __version__
from tests.processes import clean_environment

ROOT = Path(__file__).resolve().parents[2]

FILES = (
    "README.md",
    "README.es.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    ".env.example",
    "Makefile",
    "Dockerfile",
    "docker-compose.yml",
)
FOLDERS = ("bench", "deploy", "docs", "examples", "schema", "tests")
"""A source distribution has these beside the package: everything that README.md links."""


class Environment:
    """A fresh virtual environment, and an empty folder to run its programs in."""

    def __init__(self, folder: Path) -> None:
        self._bin = folder / "venv" / "bin"
        self._elsewhere = folder / "elsewhere"
        self._elsewhere.mkdir()
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)

    def run(self, program: str, *arguments: str | Path, cwd: Path | None = None) -> str:
        """The output of a program. Raises AssertionError with it unless the exit status is 0."""
        done = subprocess.run(
            [self._bin / program, *arguments],
            cwd=cwd or self._elsewhere,
            # Python must find taskd through the installation only.
            env={k: v for k, v in clean_environment().items() if k != "PYTHONPATH"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stdout}"
        return done.stdout

    def pip(self, *arguments: str | Path) -> str:
        """``pip`` in this environment."""
        return self.run("python", "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)

    def check_commands(self) -> None:
        """Every command prints its help, from any folder."""
        listed = self.run("twistd", "--help")
        assert "taskserver" in listed and "taskworker" in listed
        for daemon in ("taskserver", "taskworker"):
            assert "--slots" in self.run("twistd", daemon, "--help")
        for program in ("taskclient", "taskadmin"):
            assert "usage" in self.run(program, "--help").lower()

    def check_files(self) -> None:
        """The schema and the list of passwords are installed, and both sources of the version agree."""
        program = (
            "import importlib.metadata, importlib.resources as r, taskd;"
            "from taskd.model.common_passwords import is_common; assert is_common('password');"
            "s = r.files('taskd') / '_schema';"
            "print(taskd.__version__, importlib.metadata.version('taskd'),"
            " *sorted(f'{d.name}/{f.name}' for d in s.iterdir() for f in d.iterdir()))"
        )
        schema = sorted(str(f.relative_to(ROOT / "schema")) for f in (ROOT / "schema").glob("*/*.sql"))
        assert schema
        assert self.run("python", "-c", program).split() == [__version__, __version__, *schema]

    def uninstall(self) -> None:
        """Uninstall taskd; Twisted still works."""
        self.pip("uninstall", "--yes", "taskd")
        listed = self.run("twistd", "--help")
        assert "taskserver" not in listed
        assert "web" in listed
        self.run("python", "-c", "import twisted.plugins, twisted.internet.reactor")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources, because builds write into the tree."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in (*FILES, "setup.cfg", "pyproject.toml", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    for name in (*FOLDERS, "bin", "taskd", "twisted"):
        traces = shutil.ignore_patterns("__pycache__", "dropin.cache")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=traces)
    return copy


def test_every_command_works_wheel_or_editable(checkout: Path, tmp_path: Path) -> None:
    """Both ways in one environment, so that the second starts with the leftovers of the first."""
    environment = Environment(tmp_path)

    environment.pip("install", "setuptools")
    program = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    environment.run("python", "-c", program, tmp_path, cwd=checkout)
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(FILES) <= names
    for folder in FOLDERS:
        files = {str(f.relative_to(checkout)) for f in (checkout / folder).rglob("*") if f.is_file()}
        assert files and files <= names

    environment.pip("wheel", "--no-deps", "--wheel-dir", tmp_path, checkout)
    [wheel] = tmp_path.glob("*.whl")
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert top == {"taskd", "twisted", f"taskd-{__version__}.dist-info", f"taskd-{__version__}.data"}
    inside_twisted = [n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("twisted/")]
    assert inside_twisted == ["twisted/plugins/taskd_dropin.py"]

    environment.pip("install", "--no-compile", wheel)
    environment.check_commands()
    environment.check_files()
    environment.uninstall()

    environment.pip("install", "--editable", checkout)
    environment.check_commands()
    environment.check_files()
    environment.uninstall()
