"""The user's next git command runs nothing that a model has left: ways to leave it, really tried, as this user and as
one who is not root. The traps work where nothing prevents them: else they would prove nothing."""

import ctypes
import json
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from git_stage import TRAPS, Stage, run_all, work_unhindered
from git_traps import NEEDED

from v4cli.agent import sandbox

pytestmark = [
    pytest.mark.skipif(sandbox.missing() != "", reason=sandbox.missing()),
    pytest.mark.skipif(not shutil.which("git"), reason="git is not installed"),
]
NOBODY, DUMPABLE = 65534, 4


@pytest.mark.parametrize("name", TRAPS)
def test_git_runs_nothing_of_the_model(tmp_path, name):
    stage = Stage(tmp_path, TRAPS[name])
    stage.attempt()
    assert not stage.use_git()


def test_those_that_must_work_do_so_without_a_sandbox(tmp_path):
    names = sorted(NEEDED)
    assert work_unhindered(tmp_path, names) == set(names)


@pytest.mark.slow
def test_they_work_without_a_sandbox(tmp_path):
    found = work_unhindered(tmp_path, TRAPS)
    assert NEEDED - found == set() and len(found) > len(TRAPS) * 3 // 4  # git itself prevents some


def test_there_are_many_traps():
    assert len(TRAPS) >= 60


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_git_runs_nothing_of_the_model_for_who_is_not_root(monkeypatch):
    monkeypatch.setattr("sys.prefix", "/usr")  # that of this Python may be closed to others
    monkeypatch.setattr("sys.base_prefix", "/usr")
    with tempfile.TemporaryDirectory() as root:
        os.chown(root, NOBODY, NOBODY)
        child = multiprocessing.get_context("fork").Process(target=_as_nobody, args=(Path(root),))
        child.start()
        child.join(900)
        child.kill()
        assert child.exitcode == 0
        assert json.loads((Path(root) / "result").read_text()) == []


def _as_nobody(root: Path) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    ctypes.CDLL(None).prctl(DUMPABLE, 1, 0, 0, 0)  # so that its own files in /proc are its own again
    os.chdir(root)
    assert sandbox.trouble(root) == ""
    run_all(root, root / "result")
