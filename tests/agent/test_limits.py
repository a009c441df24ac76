"""Limits of a run, in the sandbox and without one: what goes over them is stopped, and nothing of it is left."""

import os
import time
import uuid

import psutil
import pytest

from v4cli.agent import process, sandbox
from v4cli.agent.process import Limits

needs_sandbox = pytest.mark.skipif(sandbox.missing() != "", reason=sandbox.missing())


@pytest.fixture(params=[pytest.param("sandbox", marks=needs_sandbox), "none"])
def run(request, tmp_path, monkeypatch):
    """Runs a script of bash in a workspace, in a sandbox and without one."""
    if request.param == "none":
        monkeypatch.setattr(sandbox, "missing", lambda: "bubblewrap (bwrap) is not installed")

    def run(script: str, cancelled=lambda: False, output=lambda text: None, **limits) -> process.Finished:
        limits = Limits(**{"seconds": 20} | limits)
        return sandbox.run(["bash", "-c", script], tmp_path, limits, False, output, cancelled)

    return run


def left(name: str) -> list[psutil.Process]:
    """Processes with this in their command line."""
    return [p for p in psutil.process_iter(["cmdline"]) if any(name in part for part in p.info["cmdline"] or ())]


def test_output_and_status(run):
    done = run("echo out; echo err >&2; echo more; exit 3")
    assert (done.text, done.status, done.stopped) == ("out\nerr\nmore\n", 3, "")
    assert run("kill -SEGV $$").status in (139, 128 + 11)
    assert run("cat").text == ""  # there is no input


def test_output_comes_while_it_runs(run):
    seen = []
    done = run("echo first; sleep 600", output=seen.append, cancelled=lambda: bool(seen))
    assert seen[0] == "first\n" and done.text == "first\n" and done.stopped == "the user interrupted it"


def test_characters_are_whole_however_they_come(run):
    seen = []
    done = run("printf '\\xe2\\x82'; sleep 0.2; printf '\\xac \\xff'", output=seen.append)
    assert done.text == "€ \ufffd" == "".join(seen)


def test_time(run):
    start = time.monotonic()
    done = run("while :; do echo x; sleep 0.05; done", seconds=0.5)
    assert done.stopped == "it ran longer than 0.5 seconds" and done.text.startswith("x\n")
    assert time.monotonic() - start < 5


def test_cpu_time(run):
    done = run("while :; do :; done", cpu_seconds=1)
    assert done.status in (128 + 24, 128 + 9) and not done.stopped


@pytest.mark.parametrize("script", ["yes", "cat /dev/zero", "yes >&2"])
def test_endless_output(run, script):
    done = run(script, output_bytes=1 << 20)
    assert done.stopped == "it printed more than 1024 KiB" and (1 << 20) < len(done.text) < (2 << 20)


def test_file_size(run, tmp_path):
    done = run("head -c 10M /dev/zero > big; echo $?", file_bytes=1 << 20)
    assert (tmp_path / "big").stat().st_size == 1 << 20 and "153" in done.text


def test_open_files(run):
    done = run("python3 -c 'x = [open(\"/dev/null\") for _ in range(200)]'", open_files=100)
    assert "Too many open files" in done.text


def test_memory_of_one_process(run):
    done = run("python3 -c 'x = bytearray(1 << 30); print(len(x))'", memory_bytes=256 << 20)
    assert "MemoryError" in done.text and done.status == 1


def test_memory_of_many_processes(run):
    code = "import time; x = bytearray(150 << 20); time.sleep(600)"
    done = run(f"for i in 1 2 3 4; do python3 -c '{code}' & done; wait", memory_bytes=300 << 20)
    assert done.stopped == "it used more than 300 MiB of memory"


def test_memory_shared_by_many_processes_counts_once(run):
    code = "import os, time\nx = bytearray(100 << 20)\nfor _ in range(3): os.fork()\ntime.sleep(0.5)\nos._exit(0)"
    done = run(f"python3 -c '{code}'; sleep 0.3; echo fine", memory_bytes=400 << 20)
    assert done.text == "fine\n"


def test_number_of_processes(run):
    name = f"86400.{uuid.uuid4().int % 10**8}"
    done = run(f"for i in $(seq 200); do sleep {name} & done; wait", processes=60)
    assert done.stopped == "it had more than 60 processes and threads" or "Resource temporarily" in done.text
    assert not left(name)


@needs_sandbox
@pytest.mark.parametrize("bomb", [":(){ :|:& };:; sleep 600", "python3 -c 'import os\nwhile 1: os.fork()'"])
def test_fork_bomb(tmp_path, bomb):
    start = time.monotonic()
    done = sandbox.run(["bash", "-c", bomb], tmp_path, Limits(seconds=20, processes=300))
    assert "300 processes" in done.stopped or "Resource temporarily" in done.text
    assert time.monotonic() - start < 25
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


DETACHED = {
    "background": "sleep {} & echo started",
    "nohup": "nohup sleep {} > /dev/null 2>&1 & echo started",
    "setsid": "setsid sleep {} & echo started",
    "double fork": "(setsid bash -c 'sleep {} & disown' < /dev/null > /dev/null 2>&1 &); echo started",
    "closed output": "(exec >&- 2>&-; sleep {} & setsid sleep {} &); echo started",
}


@pytest.mark.parametrize("name", DETACHED)
def test_nothing_survives_the_end(run, name):
    number = f"86400.{uuid.uuid4().int % 10**8}"
    start = time.monotonic()
    done = run(DETACHED[name].replace("{}", number))
    assert "started" in done.text and done.status == 0 and time.monotonic() - start < 10
    assert not left(number)


@pytest.mark.parametrize("name", DETACHED)
def test_nothing_survives_a_timeout(run, name):
    number = f"86400.{uuid.uuid4().int % 10**8}"
    script = DETACHED[name].replace("{}", number)
    done = run(f"{script}; trap '' TERM INT HUP; while :; do sleep {number}; done", seconds=0.5)
    assert done.stopped and not left(number)


@pytest.mark.parametrize("script", ["kill -STOP $$", "exec >&- 2>&-; sleep 600", "trap '' TERM HUP INT; sleep 600"])
def test_no_trick_prolongs_it(run, script):
    start = time.monotonic()
    assert run(script, seconds=0.5).stopped and time.monotonic() - start < 5


def test_the_environment_is_clean(run, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "TOKEN")
    monkeypatch.setenv("LD_PRELOAD", "")
    names = {line.split("=")[0] for line in run("env").text.splitlines()}
    assert names - {"V4_RUN"} == {"PATH", "HOME", "LANG", "TERM", "NO_COLOR", "GIT_OPTIONAL_LOCKS", "PWD", "SHLVL", "_"}


def test_the_home_folder_is_private(run):
    home = run("cd && pwd && echo x > x && ls -A").text.split()
    assert home[0] != os.path.expanduser("~") and home[1:] == ["x"] and not os.path.exists(f"{home[0]}/x")


def test_a_program_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "missing", lambda: "no")
    assert sandbox.run(["no-such-program"], tmp_path).status == 127
