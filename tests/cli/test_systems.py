"""Commands where Python has only what Windows has (as_windows.py), and what v4cli/system.py does there."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from v4kernels import native

from v4cli import files, system

RUN = Path(__file__).parent / "as_windows.py"


def as_windows(tmp_path, *arguments, library=False, **more):
    env = os.environ | {"V4_HOME": str(tmp_path / "home")}
    if library:
        env["V4_TEST_LIBRARY"] = native.library()._name
    command = [sys.executable, RUN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=250, **more)


def test_every_module_can_be_imported_on_windows(tmp_path):
    done = as_windows(tmp_path, "modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("library", [False, True])
def test_nano_answers_on_windows(tmp_path, library):
    if library and not native.available():
        pytest.skip(native.reason())
    asked = ("run", "--local", "--model", "nano", "--temp", "0", "Hello, who are you?")
    done = as_windows(tmp_path, *asked, library=library, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and "nano" in done.stdout, done.stderr
    assert ("plain torch computes, which is slow (v4 doctor)" in done.stderr) is not library


@pytest.mark.parametrize("arguments, shown", [(("plan", "flash"), "RTX 4090"), (("show", "nano"), "experts")])
def test_commands_that_only_tell(tmp_path, arguments, shown):
    done = as_windows(tmp_path, *arguments)
    assert done.returncode == 0 and shown in done.stdout, done.stderr


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
