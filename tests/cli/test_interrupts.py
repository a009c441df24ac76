"""Ctrl-C ends every command at every moment, says so once and exits with 130. How soon is promised for a machine that
is not busy with other things, so that is looked at in the slow test only."""

import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import COMMANDS, material
from test_environments import arguments

from v4cli.interrupts import END_WITHIN, interrupts

TIMEOUT = 60  # seconds; only a hang takes so long
SEED = 14


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def begin(args: list[str], folder: Path, **options) -> subprocess.Popen:
    """v4, once it heeds signals; before that it is Python that starts. Its input stays open."""
    variables = os.environ | {"V4_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": folder, "env": variables} | options
    process = subprocess.Popen([sys.executable, "-m", "v4cli", *args], stdin=subprocess.PIPE, **options)
    while not heeds(process.pid, signal.SIGTERM) and process.poll() is None:
        time.sleep(0.002)
    return process


def heeds(pid: int, number: int) -> bool:
    try:
        caught = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return False
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def end(process: subprocess.Popen, number: int = signal.SIGINT) -> tuple[int, str, float]:
    """Exit code, what it said, and seconds from the signal to its end."""
    at = time.monotonic()
    process.send_signal(number)
    try:
        process.wait(TIMEOUT)
        seconds = time.monotonic() - at
        process.stdin.close()
        return process.returncode, process.stderr.read().decode(), seconds
    finally:
        process.kill()


def check(name: str, code: int, said: str) -> None:
    told = f"exit {code}\n{said}"
    assert "Traceback" not in said and "unexpected" not in said and "Exception ignored" not in said, told
    if code != COMMANDS[name].code:  # the signal came before its end
        assert code == 130 and said.count("v4: interrupted") == 1, told


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_at_a_random_moment_ends_it(name, places, tmp_path):
    row, rng = COMMANDS[name], random.Random(f"{SEED}{name}")
    process = begin(arguments(row.long or row.args, places, tmp_path), tmp_path)
    if name in ("", "chat"):
        process.stdin.write(b"hello\n" * 1000)
        process.stdin.flush()
    time.sleep(rng.uniform(0.0, 1.0 if row.long else 0.3))
    code, said, _ = end(process)
    check(name, code, said)
    if row.long and name not in ("", "show", "parse", "bench cache", "plan"):  # those may be done by then
        assert code == 130


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_ends_every_command_soon(places, tmp_path):
    rng, all_seconds = random.Random(SEED), {}
    for name, row in COMMANDS.items():
        for i in range(12):
            process = begin(arguments(row.long or row.args, places, tmp_path).copy(), tmp_path)
            time.sleep(rng.uniform(0.0, (0.3, 3.0)[i % 2] if row.long else 0.3))
            if process.poll() is None:
                code, said, seconds = end(process)
                check(name, code, said)
                all_seconds.setdefault(name, []).append(seconds)
            process.kill()
    medians = {name: statistics.median(seconds) for name, seconds in all_seconds.items()}
    print("\n".join(f"{name or 'v4'}: {median:.3f} s" for name, median in medians.items()))
    assert statistics.median(medians.values()) < 0.3, medians
    assert max(medians.values()) < 1.0, medians  # where the machine has other things to do


# -- what it must not wait for -------------------------------------------------------------------------------------

PRELUDE = "import sys, threading, time, ctypes; from v4cli import interrupts, streams; from v4cli.cli import start; "
WORK = {
    "a thread that never ends": "threading.Thread(target=time.sleep, args=(1000,)).start()",
    "a call into C": "ctypes.CDLL(None).usleep.restype = None; [ctypes.CDLL(None).sleep(1000) for _ in range(3)]",
    "an exception in its way": "\ntry: time.sleep(1000)\nexcept BaseException: raise ImportError('half an import')",
    "all caught": "\nwhile True:\n try: time.sleep(1000)\n except BaseException: pass",
    "the end of an object": "\nclass Slow:\n def __del__(self): time.sleep(1000)\nSlow(); time.sleep(1000)",
    "what is left when Python ends": (
        "\nclass Last:\n def __del__(self, sleep=time.sleep): sleep(1000)\nlast = Last(); time.sleep(1000)"
    ),
    "stdout that nobody reads": "[print('x' * 1000) for _ in range(1000)]",
}


@pytest.mark.parametrize("what", WORK)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_holds_the_end_up(what, number, tmp_path):
    code = f"{PRELUDE}\ndef run():\n print('', file=sys.stderr, flush=True)\n exec({WORK[what]!r}, globals())\n"
    code += "start._run = run\nstart.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stderr.readline()
    time.sleep(0.2)
    code, said, _ = end(process, number)
    assert code == 128 + number and said == "v4: interrupted\n"


def test_what_is_ignored_stays_ignored(tmp_path):
    code = f"{PRELUDE} import signal, os; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    code += "start._run = lambda: [os.kill(os.getpid(), 2), time.sleep(0.5)]; start.main()"
    assert subprocess.run([sys.executable, "-c", code], timeout=TIMEOUT).returncode == 0


def test_a_program_of_the_model_dies_with_the_command(tmp_path):
    pid = tmp_path / "pid"
    kill = f"""
import os, subprocess
from v4cli.agent import process
from v4cli.agent.process import Limits
from pathlib import Path
def run():
    def stubborn(text):
        print(text, file=sys.stderr, flush=True)
        while True:
            try: time.sleep(1000)
            except BaseException: pass
    script = "echo $$ > {pid}; echo begun; sleep 1000"
    process.run(["sh", "-c", script], Path("/"), dict(os.environ), Limits(), stubborn, lambda: False)
start._run = run
start.main()
"""
    begun = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + kill], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert begun.stderr.readline() == b"begun\n"
    assert end(begun)[0] == 130
    wanted, until = int(pid.read_text()), time.monotonic() + TIMEOUT
    while os.path.exists(f"/proc/{wanted}/cmdline") and Path(f"/proc/{wanted}/cmdline").read_bytes():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_prefill_ends_between_layers_and_keeps_what_was_computed(tmp_path):
    from tiny import SMALL, random_checkpoint  # imports torch

    from v4cli.engine.engine import Engine

    session, stop = Engine.open(random_checkpoint(tmp_path / "model", SMALL), "reference").session(), threading.Event()
    session.engine.scheduler.chunk = 64
    experts, done = session.engine.model.ops.shared_expert, []

    def slow(*args):
        done.append(len(session.tokens))
        if done.count(64) == 2:
            stop.set()
        return experts(*args)

    session.engine.model.ops.shared_expert = slow
    with interrupts(stop):
        assert session.sync([5] * 200, cancelled=stop.is_set) is False
    assert len(session.tokens) == 64 == session.state.n_tokens and done.count(64) == 2
    assert session.sync([5] * 70)


def test_the_second_ctrl_c_interrupts_and_the_first_of_a_conversation_is_spared():
    code = f"""{PRELUDE}
import os, signal
interrupts.install()
stop = threading.Event()
with interrupts.interrupts(stop, go_on=True):
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.is_set() and not interrupts.told()
time.sleep({2 * END_WITHIN})
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    assert interrupts.spare() and not interrupts.told()
time.sleep({2 * END_WITHIN})
with interrupts.interrupts(stop):
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.is_set() and interrupts.told() == signal.SIGINT
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=TIMEOUT, stdin=subprocess.DEVNULL).returncode == 7
