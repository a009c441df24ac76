"""Shared fixtures: where the golden data is; a random checkpoint and the stores of it, to be read only."""

import atexit
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from v4cli.agent import sandbox

# Before torch is imported: its threads are not to burn a core while they wait, on which tests run side by side.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ignored where tests run in the background, and programs inherit that; those started here are to heed signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


def pytest_addoption(parser):
    parser.addoption("--without", default="", help="programs to be hidden from all tests, such as bwrap,git")


def pytest_configure(config):
    """Before test files are read, which look for programs to decide what to skip."""
    if given := config.getoption("--without"):
        os.environ["PATH"], sandbox.PATH = paths_without(*given.split(","))


def paths_without(*names: str) -> tuple[str, str]:
    """PATH of this process without these programs, and that of what it runs: only where there is no sandbox, in which
    the system is as it is."""
    inside = path_without(names, sandbox.PATH) if "bwrap" in names else sandbox.PATH
    return path_without(names, os.environ["PATH"]), inside


@functools.cache
def path_without(names: tuple[str, ...], path: str) -> str:
    """A PATH with the programs of another one but for these: links stand for what is beside them."""
    parts = []
    for part in path.split(os.pathsep):
        if any(shutil.which(name, path=part) for name in names):
            links = Path(tempfile.mkdtemp(prefix="v4-without-"))
            atexit.register(shutil.rmtree, links)
            for program in Path(part).iterdir():
                if program.name not in names:
                    (links / program.name).symlink_to(program)
            part = str(links)
        parts.append(part)
    return os.pathsep.join(parts)


@pytest.fixture
def hide(monkeypatch):
    """`hide(names…)` makes it a machine without these programs."""

    def hidden(*names: str) -> None:
        outside, inside = paths_without(*names)
        monkeypatch.setenv("PATH", outside)
        monkeypatch.setattr(sandbox, "PATH", inside)
        sandbox.missing.cache_clear()

    yield hidden
    monkeypatch.undo()
    sandbox.missing.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory) -> Path:
    """Commands keep what they keep here, not in the user's folders."""
    path = tmp_path_factory.mktemp("home")
    os.environ["V4_HOME"] = str(path)
    return path


@pytest.fixture
def full_disk():
    """Within `full_disk()` no file can grow."""

    @contextmanager
    def full():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


@pytest.fixture(scope="session")
def in_new_process():
    """`in_new_process(code, *arguments)`: what Python code, which may import from the tests, prints as JSON."""

    def run(code: str, *arguments: object):
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of golden data beside the checkout; tests that need it skip where it is absent."""
    if not GOLDEN.is_dir():
        pytest.skip(f"golden data not found beside the checkout ({GOLDEN})")
    return GOLDEN


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """An official checkpoint with every kind of layer."""
    from tiny import STORE_LIKE, random_checkpoint

    return random_checkpoint(tmp_path_factory.mktemp("source"), STORE_LIKE)


@pytest.fixture(scope="session", params=["native", "q4"])
def made(request, source, tmp_path_factory) -> Path:
    """The store of it in either quantization."""
    from tiny import make_store

    return make_store(source, tmp_path_factory.mktemp("stores") / request.param, request.param)
