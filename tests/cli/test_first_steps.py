"""What README tells a newcomer to type, from the clone to a plot: every line of it, in one shell, as it stands."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAILED = "a line failed: "
NO_ROOM = "[04]"  # exit codes of what tells whether a release fits on this disk
TIMEOUT = 900  # seconds; only a hang takes so long


def steps() -> list[str]:
    """The lines of the shell under the heading of the first minutes."""
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"## The first five minutes\n.*?```sh\n(.*?)```", readme, re.S)
    assert block, "README has no first five minutes"
    return block[1].strip().splitlines()


def as_installed(step: str) -> str:
    """A step in the environment of the tests, which has been installed already."""
    if step.startswith("make run"):
        return 'v4 run "Hello, who are you?"'
    return step.replace("$PWD/.venv/bin", str(Path(sys.executable).parent))


def test_there_are_25_steps():
    assert len(steps()) >= 25


def test_every_step_does_what_it_says(tmp_path):
    pytest.importorskip("llguidance", reason="answers by a schema need it: pip install 'v4cli[grammar]'")
    pytest.importorskip("matplotlib", reason="the plot needs it: pip install 'v4cli[bench]'")
    script = "".join(
        f"{as_installed(step)}\n[[ $? = {NO_ROOM if '--dry-run' in step else 0} ]] || echo '{FAILED}{i}'\n"
        for i, step in enumerate(steps(), 1)
    )
    environment = os.environ | {
        "V4_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    shell = subprocess.Popen(
        ["bash", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = shell.communicate(timeout=TIMEOUT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)  # a server whose turn to stop did not come
    assert FAILED not in out, f"{out}\n{err}"
    assert "17*23 = 391" in out and "tulip" in out and '{"friendly": ' in out
    (folder,) = tmp_path.glob("tmp.*")
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG") and (folder / "answer.json").stat().st_size
