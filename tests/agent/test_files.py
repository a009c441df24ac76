"""The tools on files: what they give, and that they do not leave the workspace."""

import json
import os
import socket
import stat
import sys
import threading
from pathlib import Path

import pytest

from v4cli.agent import files, grep, sandbox, search
from v4cli.agent.builtin import toolbox
from v4cli.agent.tools import Context, ToolError

BOX = toolbox("edit")
SECRET = "TOKEN-77"


class Workspace:
    def __init__(self, folder: Path):
        self.folder, self.context = folder, Context(folder)

    def do(self, name: str, **arguments) -> str:
        call = BOX.call({"function": {"name": name, "arguments": json.dumps(arguments)}})
        assert not call.fault
        return call.tool.run(call.arguments, self.context)

    def preview(self, name: str, **arguments) -> str:
        return BOX.tools[name].preview(arguments, self.context)

    def error(self, name: str, **arguments) -> str:
        with pytest.raises(ToolError) as error:
            self.do(name, **arguments)
        return str(error.value)


@pytest.fixture
def at(tmp_path) -> Workspace:
    """A workspace with a few files, a secret beside it, and links that lead there."""
    folder = tmp_path / "project"
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "notes.txt").write_text("first line\nthe vexi line\n")
    (folder / "main.py").write_text("print('vexi')\n")
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "project2").mkdir()
    (folder / "link").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "dangling").symlink_to(tmp_path / "new.txt")
    (folder / "inner").symlink_to("docs/notes.txt")
    return Workspace(folder)


OUTSIDE = [
    "../secret.txt", "/etc/passwd", "link", "up/secret.txt", "docs/../../secret.txt", "up", "..", "/", "dangling",
    "/proc/self/environ", "/proc/self/root/etc/passwd", "../project2/x", "docs/../up/new.txt",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_outside_is_reached(at, path):
    for name in ("read_file", "list_folder"):
        assert "outside the workspace" in at.error(name, path=path)
    assert "outside the workspace" in at.error("search_text", path=path, pattern="TOKEN")
    assert "outside the workspace" in at.error("write_file", path=path, content="x")
    assert "outside the workspace" in at.error("edit_file", path=path, old=SECRET, new="x")
    for preview in (files.preview_write, files.preview_edit):
        with pytest.raises(ToolError, match="outside the workspace"):
            preview({"path": path, "content": "", "old": SECRET, "new": ""}, at.context)
    assert (at.folder / "../secret.txt").read_text() == SECRET and not (at.folder / "../new.txt").exists()
    assert list((at.folder / "../project2").iterdir()) == []


@pytest.mark.parametrize("name", ["read_file", "write_file"])
def test_a_folder_that_becomes_a_link_meanwhile_is_not_followed(at, name, monkeypatch):
    parts = files._parts

    def swapped(folder, path):
        found = parts(folder, path)
        if not (at.folder / "docs").is_symlink():
            (at.folder / "docs").rename(at.folder / "gone")
            (at.folder / "docs").symlink_to(at.folder.parent)
        return found

    monkeypatch.setattr(files, "_parts", swapped)
    at.error(name, path="docs/secret.txt", **({"content": "x"} if name == "write_file" else {}))
    assert (at.folder.parent / "secret.txt").read_text() == SECRET


def test_a_file_that_becomes_a_link_meanwhile_is_not_followed(at, monkeypatch):
    monkeypatch.setattr(files, "_parts", lambda folder, path: ("link",))
    at.error("read_file", path="main.py")
    monkeypatch.setattr(files, "_old", lambda folder, path: (None, 0o644))
    at.do("write_file", path="main.py", content="x")  # puts a file in place of the link
    assert (at.folder.parent / "secret.txt").read_text() == SECRET and (at.folder / "link").read_text() == "x"


def test_read(at):
    assert at.do("read_file", path="docs/notes.txt") == "first line\nthe vexi line\n"
    assert at.do("read_file", path=str(at.folder / "main.py")) == at.do("read_file", path="./docs/../main.py")
    assert at.do("read_file", path="inner").startswith("first line")
    assert at.error("read_file", path="nope") == at.error("read_file", path="no/pe") == "no such file"
    assert at.error("read_file", path="docs") == "it is a folder; list_folder lists it"
    assert at.error("read_file", path="main.py/x") == "it is not a folder"
    assert "file name too long" in at.error("read_file", path="x" * 5000)
    for path in ("", "a\0b"):
        assert "cannot be empty" in at.error("read_file", path=path)


def test_read_what_is_no_text(at):
    (at.folder / "binary").write_bytes(b"\x7fELF\0\1")
    (at.folder / "latin").write_bytes("é".encode("latin-1"))
    with open(at.folder / "large", "wb") as file:
        file.truncate(1 << 33)
    os.mkfifo(at.folder / "fifo")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(at.folder / "socket"))
    assert (
        "not a text file" in at.error("read_file", path="binary") == at.error("write_file", path="binary", content="")
    )
    assert "not a text file" in at.error("read_file", path="latin")
    assert "too large (8192 MiB)" in at.error("read_file", path="large")
    for name, more in (("read_file", {}), ("write_file", {"content": ""}), ("edit_file", {"old": "a", "new": "b"})):
        assert "not a regular file" in at.error(name, path="fifo", **more)
        at.error(name, path="socket", **more)
    assert at.do("search_text", path=".", pattern="vexi").count("\n") == 1  # waits for none of them
    server.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make device files")
def test_read_a_device(at):
    os.mknod(at.folder / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    assert at.error("read_file", path="zero") in ("it is not a regular file", "permission denied")


def test_read_a_long_file(at):
    (at.folder / "long").write_text("".join(f"line {i}\n" for i in range(1, 20_001)))
    text = at.do("read_file", path="long")
    last = int(text[:-1].split("\n")[-2].split()[1])
    assert f"line {last + 1} comes next" in text and f"sed -n '{last + 1}," in text and len(text) < files.MAX_READ + 300
    (at.folder / "one").write_text("x" * 100_000)
    assert at.do("read_file", path="one").startswith("x" * files.MAX_READ + "[this is the beginning")


def test_list(at):
    assert at.do("list_folder", path=".").split("\n") == ["dangling", "docs/", "inner", "link", "main.py", "up"]
    assert at.do("list_folder", path="docs") == "notes.txt"
    (at.folder / "empty").mkdir()
    assert at.do("list_folder", path="empty") == "[the folder is empty]"
    assert at.error("list_folder", path="main.py") == "it is not a folder"
    (at.folder / "empty" / "a\nb\x1b[31m").touch()
    (Path(os.fsencode(at.folder / "empty").decode()) / os.fsdecode(b"\xff")).touch()
    assert at.do("list_folder", path="empty") == "a?b?[31m\n?"
    for i in range(files.MAX_NAMES):
        (at.folder / "empty" / f"f{i}").touch()
    assert at.do("list_folder", path="empty").endswith("\n[2 more]")


@pytest.fixture(params=["ripgrep", "python"])
def searcher(request, monkeypatch):
    """Either program that searches."""
    if request.param == "ripgrep" and not search.shutil.which("rg", path=sandbox.PATH):
        pytest.skip("ripgrep is not installed")
    if request.param == "python":
        monkeypatch.setattr(search.shutil, "which", lambda *a, **k: None)


def test_search(at, searcher):
    both = "docs/notes.txt:2: the vexi line\nmain.py:1: print('vexi')"
    assert at.do("search_text", path=".", pattern="vexi") == both
    assert at.do("search_text", path=str(at.folder), pattern="v[e]xi") == both
    assert at.do("search_text", path="docs", pattern="^the .*line$") == "docs/notes.txt:2: the vexi line"
    assert at.do("search_text", path="inner", pattern="first") == "docs/notes.txt:1: first line"
    assert at.do("search_text", path=".", pattern="nowhere") == at.do("search_text", path=".", pattern="TOKEN")
    assert at.do("search_text", path=".", pattern="TOKEN") == "no matches"
    assert "the search failed" in at.error("search_text", path=".", pattern="(")
    assert at.error("search_text", path="nope", pattern="x") == "no such file"
    assert at.do("search_text", path=".", pattern="--help") == "no matches"


def test_search_is_bounded_and_leaves_out_binaries_and_git(at, searcher):
    (at.folder / ".git").mkdir()
    (at.folder / ".git" / "x").write_text("vexi")
    (at.folder / ".hidden").write_text("xx vexi " + "y" * 5000)
    (at.folder / "data.bin").write_bytes(b"vexi\0vexi")
    (at.folder / "-odd:1: name").write_text("vexi\n" * 1000)
    lines = at.do("search_text", path=".", pattern="vexi").split("\n")
    assert lines[-1].startswith("[there are more matches") and len(lines) == search.MAX_MATCHES + 1
    assert lines[0] == "-odd:1: name:1: vexi"
    hidden = at.do("search_text", path=".", pattern="xx")
    assert hidden.startswith(".hidden:1: xx vexi yyy") and len(hidden) < 400
    assert "data.bin:" not in at.do("search_text", path=".", pattern="^vexi.vexi")


def test_a_pattern_that_takes_forever_is_stopped(at, monkeypatch):
    monkeypatch.setattr(search.shutil, "which", lambda *a, **k: None)
    monkeypatch.setattr(search, "LIMITS", search.Limits(seconds=1))
    (at.folder / "a").write_text("a" * 40 + "b")
    assert "ran longer than 1 seconds" in at.error("search_text", path="a", pattern="(a+)+$")


def test_grep_is_a_program_of_its_own(at, capsys, monkeypatch):
    monkeypatch.chdir(at.folder)
    assert grep.main("vexi", "main.py") == 0 and capsys.readouterr().out == "main.py\0001:print('vexi')\n"
    assert grep.main("nothing", ".") == 1 and grep.main("(", ".") == 2


def test_write(at):
    assert at.do("write_file", path="a/b/new.txt", content="one\ntwo") == "wrote a/b/new.txt (2 lines)"
    assert (at.folder / "a/b/new.txt").read_text() == "one\ntwo"
    os.chmod(at.folder / "main.py", 0o750)
    assert at.do("write_file", path="main.py", content="pass\n") == "wrote main.py (1 line)"
    assert (at.folder / "main.py").read_text() == "pass\n"
    assert stat.S_IMODE((at.folder / "main.py").stat().st_mode) == 0o750
    at.do("write_file", path="inner", content="through a link inside")
    assert (at.folder / "inner").is_symlink() and (at.folder / "docs/notes.txt").read_text() == "through a link inside"
    assert at.error("write_file", path="docs", content="x") == "it is a folder; list_folder lists it"
    assert at.error("write_file", path=".", content="x") == "it is a folder; list_folder lists it"
    assert at.error("write_file", path="main.py/x", content="x") == "it is not a folder"
    assert "too large" in at.error("write_file", path="x", content="x" * (files.MAX_BYTES + 1))
    assert at.do("write_file", path="empty", content="") == "wrote empty (0 lines)"
    assert not list(at.folder.rglob("*.tmp"))


def test_write_leaves_git_alone(at):
    for path in (".git/hooks/pre-commit", "docs/.git/config"):
        assert "git would obey it unasked" in at.error("write_file", path=path, content="x")
    assert not (at.folder / ".git").exists()


def test_write_does_not_reach_through_a_hard_link(at):
    os.link(at.folder.parent / "secret.txt", at.folder / "hard")
    at.do("write_file", path="hard", content="x")
    assert (at.folder.parent / "secret.txt").read_text() == SECRET and (at.folder / "hard").read_text() == "x"


def test_readers_see_the_old_or_the_new_file(at):
    old, new = "a" * 100_000, "b" * 200_000
    at.do("write_file", path="x", content=old)
    seen, stop = set(), threading.Event()

    def read():
        while not stop.is_set():
            seen.add((at.folder / "x").read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(40):
        at.do("write_file", path="x", content=new if i % 2 else old)
    stop.set()
    reader.join()
    assert seen <= {old, new}


def test_edit(at):
    edit = {"path": "docs/notes.txt", "old": "vexi", "new": "duro"}
    assert at.preview("edit_file", **edit) == (
        "--- a/docs/notes.txt\n+++ b/docs/notes.txt\n@@ -1,2 +1,2 @@\n first line\n-the vexi line\n+the duro line\n"
    )
    assert at.do("edit_file", **edit) == "edited docs/notes.txt"
    assert (at.folder / "docs/notes.txt").read_text() == "first line\nthe duro line\n"
    assert "is not in the file" in at.error("edit_file", **edit)
    assert "is there 2 times" in at.error("edit_file", path="docs/notes.txt", old="line", new="x")
    assert "the old text is empty" in at.error("edit_file", path="docs/notes.txt", old="", new="x")
    assert at.error("edit_file", path="nope", old="a", new="x") == "no such file"
    assert (at.folder / "docs/notes.txt").read_text() == "first line\nthe duro line\n"


def test_edit_keeps_the_kind_of_line_ends(at):
    (at.folder / "dos.txt").write_bytes(b"one\r\ntwo\r\nthree\r\n")
    at.do("edit_file", path="dos.txt", old="one\ntwo", new="1\n2")
    assert (at.folder / "dos.txt").read_bytes() == b"1\r\n2\r\nthree\r\n"


def test_preview_of_writing(at):
    new = at.preview("write_file", path="new", content="a\nb")
    assert new == "--- /dev/null\n+++ b/new\n@@ -0,0 +1,2 @@\n+a\n+b\n\\ No newline at end of file\n"
    assert "-print('vexi')\n+pass\n" in at.preview("write_file", path="main.py", content="pass\n")
    assert not (at.folder / "new").exists()


def test_python_of_the_search_is_there():
    assert Path(sys.executable).name.startswith("python")
