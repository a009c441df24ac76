"""Tools for files and programs as Windows has them; as_elsewhere.py runs these."""

import errno
import io
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import psutil
import pytest

from v4cli import files as whole_files
from v4cli import streams, system
from v4cli.agent import approval, commands, files, outside, places, sandbox
from v4cli.agent.builtin import toolbox
from v4cli.agent.process import Limits
from v4cli.agent.tools import Context, ToolError
from v4cli.calibrate import layers

BOX = toolbox("all")


def do(folder: Path, name: str, **arguments) -> str:
    return BOX.tools[name].run(arguments, Context(folder))


@pytest.mark.parametrize(
    "path",
    ["CON", "nul", "aux.txt", "docs/LPT1.tar.gz", "COM\u00b9", "conin$", "prn .txt", "a\\NUL", "x. ", "docs./x",
     "a:stream", ".git::$INDEX_ALLOCATION", "a?b", 'a"b', "\\\\?\\C:\\x", "C:\\Windows", "\\\\server\\share\\con"],
)  # fmt: skip
def test_names_that_windows_takes_for_something_else_are_refused(tmp_path, path):
    (tmp_path / "docs").mkdir()
    for name, more in (("read_file", {}), ("write_file", {"content": "x"}), ("list_folder", {})):
        with pytest.raises(ToolError, match=r"Windows (takes|drops|allows)"):
            do(tmp_path, name, path=path, **more)
    assert os.listdir(tmp_path) == ["docs"] and os.listdir(tmp_path / "docs") == []


def test_names_that_only_look_like_those_can_be_used(tmp_path):
    for path in ("console.txt", "aux2", "COM", "lpt10", "com0x.c", ".hidden", "a b"):
        do(tmp_path, "write_file", path=path, content="x")
    assert len(os.listdir(tmp_path)) == 7


def test_a_path_is_asked_for_by_its_long_form_only_if_it_has_to_be(tmp_path):
    short, deep = tmp_path / "a", tmp_path / "/".join(["folder"] * 40)
    assert system.extended(short) == short
    assert system.extended(deep) == "\\\\?\\" + str(deep) and system.extended(system.extended(deep)).count("?") == 1


def test_what_is_long_is_done_by_its_long_form(tmp_path, monkeypatch):
    """Here the long form is another name of the folder, which nothing but `extended` leads to."""
    (tmp_path / "real").mkdir()
    monkeypatch.setattr(system, "extended", lambda path: str(path).replace("/short/", "/real/"))
    whole_files.write_atomically(tmp_path / "short" / "x", b"1")
    assert os.listdir(tmp_path / "real") == ["x"]
    os.close(system.open_file(tmp_path / "short" / "x", os.O_RDONLY))


def test_edits_keep_the_line_ends_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"a\r\nb\r\n")
    do(tmp_path, "edit_file", path="x", old="a\nb", new="a\nc\nb")
    assert (tmp_path / "x").read_bytes() == b"a\r\nc\r\nb\r\n"
    shown = files.preview_write({"path": "x", "content": "a\nd\n"}, Context(tmp_path))
    do(tmp_path, "write_file", path="x", content="a\nd\n")
    assert (tmp_path / "x").read_bytes() == b"a\r\nd\r\n" and "-a\r\n" not in shown and "+d\r\n" in shown


def test_a_link_that_comes_meanwhile_is_not_followed(tmp_path, monkeypatch):
    work = tmp_path / "work"
    (work / "docs").mkdir(parents=True)
    (work / "docs" / "x").write_text("mine")
    (tmp_path / "x").write_text("secret")
    (work / "link").symlink_to(tmp_path)
    with pytest.raises(ToolError, match="outside the workspace"):
        do(work, "read_file", path="link/x")
    monkeypatch.setattr(files, "_parts", lambda folder, path: ("link", "x"))
    for name, more in (("read_file", {}), ("write_file", {"content": "new"})):
        with pytest.raises(ToolError):
            do(work, name, path="docs/x", **more)
    assert (tmp_path / "x").read_text() == "secret"
    opened, swapped = system.open_file, []

    def swap(path, flags, mode=0o600, follow=True):
        """The folder becomes a link between the look and the opening."""
        if not swapped and str(path).endswith("docs/x"):
            swapped.append(path)
            (work / "docs").rename(work / "gone")
            (work / "docs").symlink_to(tmp_path)
        return opened(path, flags, mode, follow)

    monkeypatch.setattr(files, "_parts", lambda folder, path: ("docs", "x"))
    monkeypatch.setattr(system, "open_file", swap)
    with pytest.raises(ToolError):
        do(work, "read_file", path="docs/x")
    assert swapped


def test_a_folder_is_told_from_a_file(tmp_path):
    (tmp_path / "docs").mkdir()
    for name, more in (("read_file", {}), ("write_file", {"content": "x"})):
        with pytest.raises(ToolError, match="it is a folder; list_folder lists it"):
            do(tmp_path, name, path="docs", **more)
    assert isinstance(next(iter([*_places(tmp_path)])), places.Named)


def _places(folder):
    with places.walked(folder, ()) as place:
        yield place


def test_what_programs_trust_is_not_written(tmp_path):
    for path in (".GIT/hooks/x", ".Envrc", "Git~1/config", ".VENV/lib/x.pth"):
        with pytest.raises(ToolError, match="read-only here"):
            do(tmp_path, "write_file", path=path, content="x")
    assert os.listdir(tmp_path) == []


def test_programs_run_without_a_sandbox_and_are_asked_about(tmp_path, monkeypatch):
    assert sandbox.missing() == "there is no sandbox on this system"
    rules = approval.Approvals("all", tmp_path)
    call = BOX.call({"function": {"name": "run_python", "arguments": '{"code": "print(1)"}'}})
    decision = rules.decide(call, Context(tmp_path))
    assert not decision.allowed and "there is no sandbox" in decision.reason
    asked = []

    def ask(request):
        asked.append(request)
        return approval.Answer(approval.Choice.ALWAYS)

    rules = approval.Approvals("all", tmp_path, ask)
    for _ in range(2):
        assert rules.decide(call, Context(tmp_path)).allowed
    assert [request.pattern for request in asked] == ["", ""] and "no sandbox" in asked[0].unprotected
    shell = commands.shell('echo "ä"')
    assert shell[0].endswith("powershell.exe") and shell[-2] == "-EncodedCommand"
    code = "import os; print(os.getcwd(), 'é', sorted(os.environ)); open('made', 'w')"
    told = do(tmp_path, "run_python", code=code)
    assert str(tmp_path) in told and "é" in told and "V4_HOME" not in told and "TEMP" in told
    assert (tmp_path / "made").exists()


def test_a_program_that_goes_on_is_ended_with_all_that_it_started(tmp_path):
    code = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    code += "print(p.pid, flush=True); time.sleep(600)"
    done = sandbox.run([sys.executable, "-c", code], tmp_path, Limits(seconds=2))
    assert done.stopped == "it ran longer than 2 seconds"
    state = subprocess.run(["ps", "-o", "stat=", "-p", done.text.strip()], capture_output=True, text=True).stdout
    assert state.strip()[:1] in ("", "Z")


def test_files_can_be_searched(tmp_path):
    (tmp_path / "x").write_bytes(b"one\r\ntwo\r\n")
    assert do(tmp_path, "search_text", pattern="^t.o$", path=".") == "x:2: two"


def test_a_pipe_is_waited_for(tmp_path):
    read, write = os.pipe()
    assert not system.can_read(read, 0.05)
    os.write(write, b"x")
    assert system.can_read(read, 0) and os.read(read, 9) == b"x" and not system.can_read(read, 0)
    os.close(write)
    assert system.can_read(read, 0)
    os.close(read)


def test_a_console_that_knows_no_escapes_gets_none(monkeypatch):
    """There is no kernel32 here, as there is no such mode on an old console."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert not streams.is_screen(sys.stdout) and not streams.styled(sys.stdout) and not streams.live(sys.stdout)


def test_the_home_folder_is_known(monkeypatch, tmp_path):
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert outside.homes() == [str(tmp_path)]


class Screen:
    """Stands for io._WindowsConsoleIO: takes and gives UTF-8."""

    written = bytearray()

    def __init__(self, number, mode, closefd):
        assert mode in ("rb", "wb") and not closefd

    def write(self, data):
        Screen.written += data
        return len(data)

    def read(self, most):
        return "né\r\n".encode()


def test_a_console_is_written_and_read_in_characters(monkeypatch):
    monkeypatch.setattr(system, "is_terminal", lambda handle: True)
    monkeypatch.setattr(io, "_WindowsConsoleIO", Screen)
    stream = streams._text(streams._Stdout, 1, io.TextIOWrapper(io.BytesIO(), "cp1252"), "replace")
    stream.write("┌ 漢字\n")
    stream.flush()
    assert Screen.written.decode() == "┌ 漢字\n"
    assert system.read(0, 100).decode() == "né\r\n"


@pytest.mark.parametrize("told, encoding", [(None, "utf-8"), ("cp850", "cp850")])
def test_what_goes_into_a_file_is_utf_8_unless_the_user_wants_another_encoding(monkeypatch, told, encoding):
    monkeypatch.setattr(os, "environ", {"PYTHONIOENCODING": told} if told else {})
    before = io.TextIOWrapper(io.BytesIO(), told or "cp1252")
    assert streams._text(streams._Stdout, 1, before, "replace").encoding == encoding


def test_nul_is_no_terminal(monkeypatch):
    """Windows says of every device that it is one; only a console has a mode."""
    monkeypatch.setattr(os, "isatty", lambda handle: True)
    with open(os.devnull, "rb", buffering=0) as file:
        assert not system.is_terminal(file.fileno()) and not streams._Input(file.fileno(), closefd=False).isatty()
        assert system.can_read(file.fileno(), 0) and system.read(file.fileno(), 9) == b""
        monkeypatch.setattr(system, "_console_mode", lambda handle: 3)
        assert system.is_terminal(file.fileno())


def test_a_lock_is_waited_for_longer_than_windows_does(tmp_path, monkeypatch):
    refused = []

    def locking(handle, mode, n_bytes):
        assert os.lseek(handle, 0, os.SEEK_CUR) == system.LOCKED_AT
        if len(refused) < 3:
            refused.append(handle)
            raise OSError(errno.EDEADLK, "Resource deadlock avoided")

    monkeypatch.setattr(sys.modules["msvcrt"], "locking", locking)
    with open(tmp_path / "x", "w+b") as file:
        system.lock(file.fileno())
        assert len(refused) == 3 and file.tell() == 0


def test_all_that_a_program_started_is_ended():
    code = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    code += "print(p.pid, flush=True); time.sleep(600)"
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    second = psutil.Process(int(first.stdout.readline()))
    system.kill_group(first.pid, 15)
    first.wait()
    psutil.wait_procs([second], 60)
    assert not second.is_running() or second.status() == psutil.STATUS_ZOMBIE
    with pytest.raises(ProcessLookupError):
        system.kill_group(first.pid, 15)


def test_a_process_that_has_ended_is_not_there(monkeypatch):
    def none(pid, number):
        raise OSError(errno.EINVAL, "The parameter is incorrect")

    monkeypatch.setattr(os, "kill", none)
    with pytest.raises(ProcessLookupError):
        system.kill(1, 15)


def test_programs_are_found_whatever_their_ending(monkeypatch):
    there = {"npx": "C:\\npm\\npx.cmd"}
    monkeypatch.setattr(system.shutil, "which", lambda name, path: there.get(name) if path == "C:\\npm" else None)
    assert system.program("npx", "C:\\npm") == there["npx"] and system.program("none", "C:\\npm") == "none"


def test_a_program_with_an_ending_that_may_be_executed_can_be_edited(tmp_path, monkeypatch):
    """Its handle does not tell that it may."""
    (tmp_path / "x.bat").write_bytes(b"a\r\n")
    (tmp_path / "x.bat").chmod(0o755)
    real = os.fstat

    def without(handle):
        about = {name: getattr(real(handle), name) for name in dir(real(handle)) if name.startswith("st_")}
        return types.SimpleNamespace(**about | {"st_mode": about["st_mode"] & ~0o111})

    monkeypatch.setattr(os, "fstat", without)
    do(tmp_path, "edit_file", path="x.bat", old="a", new="b")
    assert (tmp_path / "x.bat").read_bytes() == b"b\r\n"


def test_links_are_counted_although_a_folder_lists_no_counts(tmp_path):
    (tmp_path / "x").write_text("")
    os.link(tmp_path / "x", tmp_path / "y")

    class Entry:
        path, is_symlink, is_file = str(tmp_path / "x"), lambda self: False, lambda self: True

        def stat(self):
            return os.stat_result((0,) * 10)

    assert outside._is_linked(Entry())


def test_files_that_are_mapped_are_not_renamed(tmp_path, monkeypatch):
    """Which as_elsewhere.py refuses, as Windows does."""
    held = np.memmap(tmp_path / "held", np.uint8, "w+", shape=(4,))
    with pytest.raises(PermissionError):
        os.replace(tmp_path / "held", tmp_path / "x")
    system.remove(tmp_path / "held")  # stays until it is free
    assert (tmp_path / "held").exists()
    del held
    system.remove(tmp_path / "held")
    assert not (tmp_path / "held").exists()
    monkeypatch.setattr(layers, "_rows_of", lambda model, name, ids: np.ones((len(ids), 8), np.float32))
    model = types.SimpleNamespace(config=types.SimpleNamespace(hc_mult=2, hidden_size=8))
    layers._embed(model, [[1, 2], [3]], tmp_path / "before")
    layer = object.__new__(layers._Layer)
    layer.layer = types.SimpleNamespace(attn=None)
    layer._attention = lambda ids, streams, state, start: streams.numpy() + 1
    layer._mixture = lambda ids, streams, progress: {"n": np.array(len(ids))}
    monkeypatch.setattr(layers, "Timeline", lambda attentions: None)
    found = layer.run([[1, 2], [3]], tmp_path / "before", tmp_path / "after", lambda n: None)
    (tmp_path / "before").unlink()
    assert found["n"] == 3 and (np.load(tmp_path / "after") == 2).all()
