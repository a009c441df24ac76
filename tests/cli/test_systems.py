"""Commands where Python has only what Windows or macOS has (as_elsewhere.py), and what v4cli/system.py does there."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from v4kernels import native

from v4cli import files, system

RUN = Path(__file__).parent / "as_elsewhere.py"
ROOT = Path(__file__).parents[2]
SYSTEMS = pytest.mark.parametrize("on", ["windows", pytest.param("macos", marks=pytest.mark.slow)])
UNLIKE_WINDOWS = ("test_write", "test_read_what_is_no_text", "test_new_files_have_the_permissions_of_the_umask",
                  "test_an_edit_keeps_permissions_and_attributes")  # fmt: skip


def elsewhere(on, tmp_path, *arguments, library=False, **more):
    env = os.environ | {"V4_HOME": str(tmp_path / "home")}
    if library:
        env["V4_TEST_LIBRARY"] = native.library()._name
    command = [sys.executable, RUN, on, *arguments]
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=600, **more)


@SYSTEMS
def test_every_module_can_be_imported(tmp_path, on):
    done = elsewhere(on, tmp_path, "modules")
    assert done.returncode == 0, done.stderr


@SYSTEMS
@pytest.mark.parametrize("library", [False, True])
def test_nano_answers(tmp_path, library, on):
    if library and not native.available():
        pytest.skip(native.reason())
    asked = ("run", "--local", "--model", "nano", "--temp", "0", "Hello, who are you?")
    done = elsewhere(on, tmp_path, *asked, library=library, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and "nano" in done.stdout, done.stderr
    assert ("plain torch computes, which is slow (v4 doctor)" in done.stderr) is not library


@SYSTEMS
@pytest.mark.parametrize("arguments, shown", [(("plan", "flash"), "RTX 4090"), (("show", "nano"), "experts")])
def test_commands_that_only_tell(tmp_path, arguments, shown, on):
    done = elsewhere(on, tmp_path, *arguments)
    assert done.returncode == 0 and shown in done.stdout, done.stderr


POWERSHELL = f"""#!{sys.executable}
import base64, subprocess, sys
words = base64.b64decode(sys.argv[-1]).decode("utf-16-le").splitlines()
assert words[0].startswith("[Console]::OutputEncoding") and words[-1].startswith("if (-not $?)")
sys.exit(subprocess.run(["sh", "-c", words[1]]).returncode)
"""
WINDOWS_HAS_NONE = "there is no sandbox on this system; every program that a model runs is asked about"
MACOS_LACKS_IT = "/usr/bin/sandbox-exec is not there; every program that a model runs is asked about"


@pytest.mark.slow
@pytest.mark.parametrize("on, said", [("windows", WINDOWS_HAS_NONE), ("macos", MACOS_LACKS_IT)])
def test_doctor_says_what_holds(tmp_path, on, said):
    done = elsewhere(on, tmp_path, "doctor")
    assert said in " ".join(done.stdout.split()) and "apt install" not in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@SYSTEMS
def test_a_conversation_through_a_pipe(tmp_path, monkeypatch, on):
    """With a tool for files, and a command of the user's."""
    if not native.available():
        pytest.skip(native.reason())
    shell = tmp_path / "System32" / "WindowsPowerShell" / "v1.0" / "powershell.exe"
    shell.parent.mkdir(parents=True)
    shell.write_text(POWERSHELL)
    shell.chmod(0o700)
    monkeypatch.setenv("SystemRoot", str(tmp_path))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_bytes(b"The password is vexi.\r\n")
    said = "What does the file notes.txt say?\n!echo from the user\n/exit\n"
    done = elsewhere(
        on, tmp_path, "chat", "--model", "nano", "--temp", "0", "--tools", "nano", library=True, input=said
    )
    assert "vexi" in done.stdout and "from the user" in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.slow
def test_tools_on_windows(tmp_path):
    """Tests of their own, and those of every system but for what needs other permissions and files than Windows has."""
    left_out = [f"--deselect=tests/agent/test_files.py::{name}" for name in UNLIKE_WINDOWS]
    found = [ROOT / "tests" / "cli" / "windows_files.py", ROOT / "tests" / "agent" / "test_files.py"]
    options = ["--noconftest", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--basetemp={tmp_path / 'made'}"]
    done = elsewhere("windows", tmp_path, "pytest", *options, *left_out, *found)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]


def test_a_link_is_not_followed_where_the_system_has_no_flag_for_that(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_NOFOLLOW")
    (tmp_path / "file").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError) as caught:
        system.open_file(tmp_path / "link", os.O_RDONLY, follow=False)
    assert caught.value.errno == errno.ELOOP
    os.close(system.open_file(tmp_path / "link", os.O_RDONLY))


def test_reading_at_an_offset_leaves_the_place_in_the_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(range(100)))
    for _ in range(2):
        with open(tmp_path / "file", "rb", buffering=0) as file:
            target = bytearray(10)
            assert system.read_at(file.fileno(), target, 95) == 5 and target[:5] == bytes(range(95, 100))
            assert file.read(2) == b"\x00\x01"
        monkeypatch.delattr(os, "preadv", raising=False)


def test_a_file_that_is_being_read_on_windows_is_replaced_when_it_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "WINDOWS", True)
    refused, real = [], os.replace

    def busy(old, new):
        if len(refused) < 3:
            refused.append(old)
            raise PermissionError(errno.EACCES, "used by another process", str(new))
        real(old, new)

    monkeypatch.setattr(os, "replace", busy)
    files.write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and len(refused) == 3
    monkeypatch.setattr(system, "BUSY_S", -1)
    refused.clear()
    with pytest.raises(PermissionError):
        files.write_atomically(tmp_path / "file", b"newer")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"] and (tmp_path / "file").read_bytes() == b"new"
