"""Every command in environments that are odd but ordinary: a documented exit code, a word where something is wrong,
never a traceback, never a hang."""

import json
import os
import select
import shlex
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
from commands import COMMANDS, all_commands, material
from v4kernels import native

from v4cli import streams

TIMEOUT = 120  # seconds; only a hang takes so long
START = "import os, resource, signal, sys; {prelude}; os.execv(sys.executable, [sys.executable, *{command}])"
NOBODY = """
import os, pwd, sys
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
from v4cli.cli.start import main
main()
"""


PRINTS = "from v4cli import streams; streams.prepare(); print('\\xe4 \\u2192')"


class Environment(NamedTuple):
    """What is done before the program starts: Python statements, and variables (None: unset). `codes`: exit codes that
    are right besides the usual one. `stdout`: whether the usual output has to be there."""

    prelude: str = "pass"
    variables: dict = {}  # noqa: RUF012
    codes: tuple = ()
    stdout: bool = True
    program: tuple = ("-m", "v4cli")


def limit(name: str, soft: int) -> str:
    return f"resource.setrlimit(resource.{name}, ({soft}, resource.getrlimit(resource.{name})[1]))"


ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LANG": None}
UNWRITABLE = "/proc/self/nothing"  # for root too
ENVIRONMENTS = {
    "plain": Environment(),
    "no stdin": Environment("os.close(0)"),
    "no stdout": Environment("os.close(1)", stdout=False),
    "no stderr": Environment("os.close(2)"),
    "no stdin, stdout": Environment("os.close(0); os.close(1)", stdout=False),
    "no stdin, stderr": Environment("os.close(0); os.close(2)"),
    "no stdout, stderr": Environment("os.close(1); os.close(2)", stdout=False),
    "no streams": Environment("os.closerange(0, 3)", stdout=False),
    "full stdout": Environment("os.dup2(os.open('/dev/full', os.O_WRONLY), 1)", codes=(4,), stdout=False),
    "full stderr": Environment("os.dup2(os.open('/dev/full', os.O_WRONLY), 2)"),
    "nobody reads stderr": Environment("r, w = os.pipe(); os.dup2(w, 2); os.close(r)"),
    "nobody reads stdout": Environment("r, w = os.pipe(); os.dup2(w, 1); os.close(r)", codes=(0,), stdout=False),
    "locale C": Environment(variables=ASCII | {"LC_ALL": "C"}),
    "locale POSIX": Environment(variables={"LC_ALL": "POSIX", "LANG": None}),
    "latin-1": Environment(variables=ASCII | {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1:strict"}),
    "ascii": Environment(variables={"PYTHONIOENCODING": "ascii"}),
    "no HOME": Environment(variables={"HOME": None, "V4_HOME": None, "XDG_DATA_HOME": None}),
    "no HOME, no user": Environment(variables={"HOME": None, "V4_HOME": None}, program=("-c", NOBODY)),
    "nothing": Environment(variables={name: None for name in os.environ}, program=("-c", NOBODY)),
    "empty HOME": Environment(variables={"HOME": "", "V4_HOME": ""}),
    "home that cannot be written": Environment(variables={"V4_HOME": UNWRITABLE}),
    "home that is a file": Environment(variables={"V4_HOME": __file__}, codes=(1, 4)),
    "home of nobody": Environment(variables={"V4_HOME": "~nobody-of-this-name/v4"}, codes=(2,), stdout=False),
    "full disk": Environment(limit("RLIMIT_FSIZE", 0), codes=(1, 4), stdout=False),
    "few files": Environment(limit("RLIMIT_NOFILE", 24), codes=(1, 4), stdout=False),
    "small stack": Environment(limit("RLIMIT_STACK", 1 << 20)),
    "no temporary folder": Environment(variables={"TMPDIR": "/nonexistent"}),
    "umask 0777": Environment("os.umask(0o777)"),
    "umask 0": Environment("os.umask(0)"),
    "folder removed": Environment("os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')", codes=(2,), stdout=False),
    "children ignored": Environment("signal.signal(signal.SIGCHLD, signal.SIG_IGN)"),
    "nohup": Environment("signal.signal(signal.SIGHUP, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)"),
    "colours": Environment(variables={"FORCE_COLOR": "0", "CLICOLOR_FORCE": "1", "COLUMNS": "0", "TERM": None}),
    "odd variables": Environment(variables={"TERM": "none", "TZ": "No/Where", "COLUMNS": "x", "LANG": "tr_TR.UTF-8"}),
    "warnings": Environment(variables={"PYTHONWARNINGS": "error"}),
    "optimized": Environment(variables={"PYTHONOPTIMIZE": "2", "PYTHONHASHSEED": "1"}),
}  # fmt: skip
PROBED = ("bench", "bench kernels", "calibrate")  # these measure or work for seconds


def pairs() -> list:
    """All commands in all environments; by default one in all of them, each other in a few."""
    chosen = []
    for i, name in enumerate(COMMANDS):
        for j, where in enumerate(ENVIRONMENTS):
            turn = j * len(COMMANDS) // len(ENVIRONMENTS) == i
            daily = name == "run" or (turn and name not in PROBED)
            chosen.append(
                pytest.param(name, where, marks=() if daily else pytest.mark.slow, id=f"{name or 'v4'}-{where}")
            )
    return chosen


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def started(args: list[str], where: Environment, folder, **options) -> subprocess.Popen:
    """v4 in an environment; the current folder and V4_HOME are fresh."""
    variables = os.environ | {"V4_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"} | where.variables
    variables = {name: value for name, value in variables.items() if value is not None}
    code = START.format(prelude=where.prelude, command=[*where.program, *args])
    streams = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")} | options
    return subprocess.Popen([sys.executable, "-c", code], env=variables, cwd=folder, **streams)


def arguments(text: str, places: dict, folder) -> list[str]:
    return shlex.split(text.format(**places, new=folder / "new"))


def test_every_command_has_its_row():
    assert set(COMMANDS) == all_commands()


@pytest.mark.parametrize(("name", "where"), pairs())
def test_it_ends_as_documented(name, where, places, tmp_path):
    row, environment = COMMANDS[name], ENVIRONMENTS[where]
    process = started(arguments(row.args, places, tmp_path), environment, tmp_path)
    try:
        out, err = process.communicate(row.stdin, timeout=TIMEOUT)
    finally:
        process.kill()
    told = f"exit {process.returncode}\n{out!r}\n{err.decode('utf-8', 'replace')}"
    unread = "os.close(0)" in environment.prelude or "closerange" in environment.prelude
    codes = {row.code, *environment.codes} | ({0, 2} if row.stdin and unread else set())
    assert process.returncode in codes, told
    assert b"Traceback" not in err and b"unexpected" not in err and b"Exception ignored" not in err, told
    if process.returncode == row.code and environment.stdout and row.prints and not (row.stdin and unread):
        assert json.loads(out.decode()) is not None if row.json else out, told
    if process.returncode and "close" not in environment.prelude and "stderr" not in where:
        assert err.startswith(b"v4: ") or b"\nv4: " in err or b"\nhint: " in err, told
    if where == "full stdout" and row.prints:
        assert process.returncode == 4 and b"stdout: cannot be written" in err, told


# -- what is said and done, one by one ---------------------------------------------------------------------------


def v4(*args, where: str = "plain", stdin: bytes = b"", folder, **variables):
    environment = ENVIRONMENTS[where]
    environment = environment._replace(variables=environment.variables | variables)
    process = started([os.fsencode(arg) if isinstance(arg, str) else arg for arg in args], environment, folder)
    out, err = process.communicate(stdin, timeout=TIMEOUT)
    return process.returncode, out, err.decode("utf-8", "replace")


@pytest.mark.parametrize("where", ["home that cannot be written", "home that is a file", "no HOME, no user"])
def test_a_chat_that_cannot_be_kept_answers_and_says_so(where, tmp_path):
    code, out, err = v4("chat", "--plain", where=where, stdin=b"hello\nhello\n", folder=tmp_path)
    assert code == 0 and len(out.splitlines()) == 2
    assert err.count("not kept: ") == 1 and "V4_HOME=" in err


def test_a_chat_without_room_gives_the_message_back_and_fails(tmp_path):
    code, _, err = v4("chat", "--plain", where="full disk", stdin=b"hello\n", folder=tmp_path)
    assert code == 4 and "cannot be written" in err and "not sent: hello" in err


def test_json_is_utf8_under_every_locale_and_text_loses_only_characters(tmp_path):
    line = "copy äß日本 →"
    for where in ("locale C", "latin-1", "ascii"):
        code, out, _ = v4("parse", "--in", "-", where=where, stdin=line.encode(), folder=tmp_path)
        assert code == 0 and json.loads(out.decode())["content"] == line
        code, out, _ = v4("config", "path", where=where, folder=tmp_path, V4_HOME=str(tmp_path / "ä→"))
        assert code == 0 and out.decode().endswith("/ä→/config.toml\n")
    for where, said in (("latin-1", "ä ?".encode("latin-1")), ("ascii", b"? ?"), ("plain", "ä →".encode())):
        told = ENVIRONMENTS[where]._replace(program=("-c", PRINTS))
        assert started([], told, tmp_path).communicate()[0] == said + b"\n"


def test_arguments_are_utf8_under_every_locale(tmp_path):
    for where in ("plain", "locale C", "latin-1"):
        code, out, _ = v4("run", "--json", "-n", "1", "--system", "ü", "日本", where=where, folder=tmp_path)
        assert code == 0
        assert [m["content"] for m in json.loads(out)["messages"][:2]] == ["ü", "日本"]
        code, _, err = v4("run", b"caf\xe9", where=where, folder=tmp_path)
        assert code == 2 and "prompt: not UTF-8 text (byte 3)" in err


def test_stdin_is_utf8_under_every_locale(tmp_path):
    for where in ("locale C", "latin-1"):
        code, _, _ = v4("chat", "--plain", where=where, stdin="\ufeffgrüße\n".encode(), folder=tmp_path)
        kept = next((tmp_path / "home" / "chats").iterdir()).read_text("utf-8")
        assert code == 0 and '"content": "grüße"' in kept
        for path in (tmp_path / "home" / "chats").iterdir():
            path.unlink()


BOM = b"\xef\xbb\xbf"


def test_byte_order_marks_are_no_text(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_bytes(BOM + b"temp = 0.5\n")
    (tmp_path / ".v4cli.toml").write_bytes(BOM + b"top_k = 3\n")
    (tmp_path / "prompt").write_bytes(BOM + b"hello")
    (tmp_path / "tools.json").write_bytes(BOM + b"[]")
    (tmp_path / "ids").write_bytes(BOM + b"1 2")
    (tmp_path / "tasks.jsonl").write_bytes(BOM + b'{"id": "a", "prompt": "hello"}\r\n')
    settings = json.loads(v4("config", "show", "--json", folder=tmp_path)[1])
    assert settings["temp"]["value"] == 0.5 and settings["top_k"]["value"] == 3
    code, out, _ = v4("run", "--json", "-n", "1", "-f", "prompt", "--tools", "./tools.json", folder=tmp_path)
    assert code == 0 and json.loads(out)["messages"][0]["content"] == "hello"
    code, out, _ = v4("run", "--json", "-n", "1", stdin=BOM + b"hello", folder=tmp_path)
    assert code == 0 and json.loads(out)["messages"][0]["content"] == "hello"
    assert v4("score", "--model", "nano", "--backend", "cpu", "--ids", "ids", folder=tmp_path)[0] == 0
    code, out, _ = v4("render", "--in", "-", "--contract", "0731", stdin=BOM + b'{"messages": []}', folder=tmp_path)
    assert "JSON" not in out.decode()
    rollout = ("rollout", "tasks.jsonl", "--out", "out", "--tools", "calculator", "--max-tokens", "4")
    assert v4(*rollout, folder=tmp_path)[0] == 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(encoding, tmp_path):
    text = ("\ufeff" if encoding.endswith("e") else "") + "temp = 0.5ä"
    (tmp_path / "prompt").write_bytes(text.encode(encoding))
    (tmp_path / ".v4cli.toml").write_bytes(text.encode(encoding))
    code, _, err = v4("config", "show", folder=tmp_path)
    assert code == 2 and ".v4cli.toml: " in err and "UTF-16 or UTF-32 text)\nhint: save it as UTF-8" in err
    (tmp_path / ".v4cli.toml").unlink()
    code, _, err = v4("run", "-f", "prompt", folder=tmp_path)
    assert code == 2 and "prompt: UTF-16 or UTF-32 text" in err


def test_v4_home_is_a_path_as_a_shell_reads_it(tmp_path):
    def path(home: str) -> str:
        return v4("config", "path", folder=tmp_path, V4_HOME=home, HOME="/h")[1].decode().strip()

    assert path("~/x") == "/h/x/config.toml" and path(" /y ") == "/y/config.toml"
    assert path("x") == f"{tmp_path}/x/config.toml" and path(" ").startswith("/h/.config/")
    code, _, err = v4("ls", where="home of nobody", folder=tmp_path)
    assert code == 2 and "no such home folder" in err and "hint: V4_HOME=/" in err


def test_where_there_is_no_home_nothing_is_made(tmp_path):
    v4("chat", "--plain", where="no HOME, no user", stdin=b"hello\n", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not native.available(), reason="needs the kernel library")
@pytest.mark.parametrize("soft", [True, False])
def test_a_stack_too_small_for_the_kernels_is_made_larger_or_said(soft, tmp_path):
    kib = 256
    hard = "resource.getrlimit(resource.RLIMIT_STACK)[1]" if soft else kib << 10
    where = Environment(f"resource.setrlimit(resource.RLIMIT_STACK, ({kib << 10}, {hard}))")
    process = started(["run", "-n", "3", "hi"], where, tmp_path)
    out, err = process.communicate(b"", timeout=TIMEOUT)
    if soft:
        assert process.returncode == 0 and out
    else:
        assert process.returncode == 2 and b"the limit is 256 (ulimit -s)" in err


def test_whoever_waits_for_stdin_says_so(tmp_path):
    process = started(["run", "hello"], ENVIRONMENTS["plain"], tmp_path)
    assert b"waiting for text on stdin" in process.stderr.readline()
    out, _ = process.communicate(b"", timeout=TIMEOUT)
    assert process.returncode == 0 and out


def test_a_named_pipe_is_waited_for_with_a_word_and_read(tmp_path):
    os.mkfifo(tmp_path / "later")
    (tmp_path / "now").write_text("Hello, ")
    process = started(["run", "--json", "-f", "now", "-f", "later"], ENVIRONMENTS["plain"], tmp_path)
    process.stdin.close()
    assert process.stderr.readline() == b"v4: waiting for text on later\n"
    (tmp_path / "later").write_text("who are you?")
    asked = json.loads(process.stdout.read())["messages"][0]["content"]
    assert asked == "now (7 bytes):\n```\nHello,\n```\n\nlater (12 bytes):\n```\nwho are you?\n```"
    assert process.wait(TIMEOUT) == 0


def test_a_stdout_that_does_not_wait_is_waited_for(tmp_path):
    reader, writer = os.pipe()
    where = Environment("os.set_blocking(1, False)")
    process = started(["parse", "--in", "-"], where, tmp_path, stdout=writer)
    process.stdin.write(b"</think>" + b"word " * 40_000)
    process.stdin.close()
    while process.poll() is None and select.select([], [writer], [], 0)[1]:
        time.sleep(0.01)  # until the pipe is full
    os.close(writer)
    with open(reader, "rb") as pipe:
        out = pipe.read()
    assert process.wait(TIMEOUT) == 0 and json.loads(out)["content"].split() == ["word"] * 40_000
    assert process.stderr.read() == b""


COLOURS = [
    ({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ({"FORCE_COLOR": "0"}, False), ({"FORCE_COLOR": ""}, False), ({"FORCE_COLOR": "false"}, False),
    ({"CLICOLOR_FORCE": "1"}, True), ({"CLICOLOR_FORCE": "0"}, False), ({"FORCE_COLOR": "1", "NO_COLOR": ""}, True),
]  # fmt: skip
NO_COLOURS = dict.fromkeys(("FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"))


@pytest.fixture
def variables_of(monkeypatch):
    """variables_of(variables): this process has them; None: unset."""

    def have(variables: dict) -> None:
        for name, value in variables.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return have


@pytest.mark.parametrize(("variables", "coloured"), COLOURS)
def test_the_variables_say_what_is_styled(variables, coloured, variables_of):
    variables_of(NO_COLOURS | variables)
    with open(os.devnull, "w") as stream:
        assert streams.styled(stream) == coloured


@pytest.mark.parametrize(("variables", "coloured"), COLOURS[:3])
def test_colour_is_what_the_variables_say(variables, coloured, tmp_path):
    _, _, err = v4("run", "hello", "--stats", "-n", "4", folder=tmp_path, **NO_COLOURS | variables)
    assert ("\x1b[2m" in err) == coloured and "\r" not in err


@pytest.mark.parametrize(("term", "screen"), [(None, False), ("", False), ("dumb", False), ("xterm", True)])
def test_a_terminal_is_a_screen_if_it_has_a_name(term, screen, variables_of):
    variables_of(NO_COLOURS | {"TERM": term})
    master, slave = os.openpty()
    with open(slave, "w") as stream:
        assert streams.is_screen(stream) == streams.styled(stream) == streams.live(stream) == screen
    os.close(master)


def test_a_terminal_that_is_none_gets_no_escapes(tmp_path):
    master, slave = os.openpty()
    where = Environment(variables={"TERM": "dumb", "FORCE_COLOR": None, "CLICOLOR_FORCE": None})
    process = started(["run", "hello", "--stats", "-n", "4"], where, tmp_path, stderr=slave)
    process.communicate(b"", timeout=TIMEOUT)
    os.close(slave)
    assert b"tok/s" in (said := os.read(master, 1 << 16)) and b"\x1b" not in said


def test_exit_codes_of_programs_are_theirs_where_children_are_ignored(tmp_path):
    """Whoever ignores the end of its children hands that on, and every program then seems to succeed."""
    probe = "from v4cli import interrupts; interrupts.install(); import subprocess; sys.exit(subprocess.call('false'))"
    where = ENVIRONMENTS["children ignored"]._replace(program=("-c", "import sys; " + probe))
    process = started([], where, tmp_path)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1


def test_a_package_that_is_not_installed_is_named_with_what_brings_it(tmp_path):
    """torch, which is needed by few commands only."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    command = [sys.executable, "-m", "v4cli", "run", "-m", "nano", "--backend", "reference", "-n", "1", "hi"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "v4: torch is not installed, and this needs it\nhint: pip install torch\n"
