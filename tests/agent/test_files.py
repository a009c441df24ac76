"""The tools on files: what they give, and that they do not leave the workspace."""

import json
import os
import socket
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v4cli.agent import edits, files
from v4cli.agent.builtin import toolbox
from v4cli.agent.tools import Context, ToolError

BOX = toolbox("edit")
SECRET = "TOKEN-77"
ROOT = hasattr(os, "getuid") and os.getuid() == 0


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
    monkeypatch.setattr(files, "_old", lambda folder, path: (None, None))
    assert "another program has changed the file" in at.error("write_file", path="main.py", content="x")
    assert (at.folder.parent / "secret.txt").read_text() == SECRET and (at.folder / "link").is_symlink()


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
    assert "not a regular file" in at.error("search_text", path="fifo", pattern="a")
    at.error("search_text", path="socket", pattern="a")
    for name in ("fifo", "socket", "main.py"):
        assert "not a folder" in at.error("list_folder", path=name)
    server.close()


@pytest.mark.skipif(not ROOT, reason="only root can make device files")
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
    assert at.do("list_folder", path="empty") == '"a\\nb\\u001b[31m"\n"\\udcff"'
    for i in range(files.MAX_NAMES):
        (at.folder / "empty" / f"f{i}").touch()
    assert at.do("list_folder", path="empty").endswith("\n[2 more]")


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
    assert "its other hard links keep the old content" in at.do("write_file", path="hard", content="x")
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


LINE_ENDS = [  # the file, old, new, the file then
    (b"one\r\ntwo\r\nthree\r\n", "one\ntwo", "1\n2", b"1\r\n2\r\nthree\r\n"),
    (b"one\r\ntwo\nthree\r\n", "one\ntwo\nthree", "1\n2\n3", b"1\r\n2\n3\r\n"),  # mixed
    (b"a\nb\r\nc\n", "b\n", "b\nx\n", b"a\nb\r\nx\r\nc\n"),
    (b"a\r\nb\nc\nd\r\n", "b\nc\n", "b\nx\ny\nc\n", b"a\r\nb\nx\ny\nc\nd\r\n"),
    (b"a\rb\rc", "a\nb", "a\nx\nb", b"a\rx\rb\rc"),  # of an old Mac
    (b"a\r\nb", "a\r\nb", "a\r\nc\r\nd", b"a\r\nc\r\nd"),  # told as they are
    (b"a\r\nb", "a\r\nb", "a\nc\nd", b"a\r\nc\r\nd"),  # told only once
    (b"a\nb\n", "a\r\nb", "a\r\nc", b"a\nc\n"),  # told wrongly
    (b"a\r\nb\n", "a\r\n", "a\n", b"a\nb\n"),  # meant to change
    (b"a\nb", "b", "b\nc", b"a\nb\nc"),  # no line end at the end
    (b"a\nb\n", "b\n", "b", b"a\nb"),
    (b"ab", "b", "x\ny", b"ax\ny"),
    (b"\xef\xbb\xbfa\r\nb", "a\n", "x\n", b"\xef\xbb\xbfx\r\nb"),
    ("é\r\n\u2028x\x0cy\x85\n".encode(), "x\x0cy", "z", "é\r\n\u2028z\x85\n".encode()),
    (b"a\r\r\nb", "a\n\nb", "a\n\nc", b"a\r\r\nc"),
    (b"x\r\ny\r\n", "x\ny\n", "", b""),
]


@pytest.mark.parametrize(("before", "old", "new", "after"), LINE_ENDS)
def test_edit_matches_any_line_ends_and_keeps_all_other_bytes(at, before, old, new, after):
    (at.folder / "x").write_bytes(before)
    at.do("edit_file", path="x", old=old, new=new)
    assert (at.folder / "x").read_bytes() == after


@given(ends=st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=1, max_size=30), data=st.data())
def test_an_edit_of_lines_keeps_every_line_end(ends, data):
    first = data.draw(st.integers(0, len(ends) - 1))
    last = data.draw(st.integers(first, len(ends) - 1))
    lines = [f"<{i}>" for i in range(len(ends))]
    new = [line.replace("<", "(") if first <= i <= last else line for i, line in enumerate(lines)]
    old_part, new_part = ("".join(line + "\n" for line in of[first : last + 1]) for of in (lines, new))
    before, after = ("".join(map(str.__add__, of, ends)) for of in (lines, new))
    assert edits.replaced(before, old_part, new_part) == after


def test_edits_that_are_not_clear_change_nothing(at):
    (at.folder / "x").write_bytes(b"aaa\r\nb")
    unclear = [
        ("aa", "x", "2 times"), ("c", "x", "not in the file"), ("b", "b", "the same"), ("", "x", "empty"),
        ("a\nb", "a\r\nb", "not in the file"),
    ]  # fmt: skip
    for old, new, says in unclear:
        assert says in at.error("edit_file", path="x", old=old, new=new)
    (at.folder / "x").write_bytes(b"\xe9")
    assert "not a text file" in at.error("edit_file", path="x", old="a", new="b")


def test_what_a_text_is_compared_with_grows_only_with_its_size():
    """The places of one repeated text in another, and the least difference of two, can take hours to find."""
    with pytest.raises(ValueError, match="times"):
        edits.replaced("a" * 4_000_000, "a" * 2_000_000, "b")
    lines = [f"{i % 150}\n" for i in range(100_000)]
    text = edits.diff("x", "".join(lines), "".join(lines[::-1]))
    assert text.startswith("--- a/x\n+++ b/x\n@@ -1,100000 +1,100000 @@\n-0\n") and text.endswith("+0\n")


def test_diffs_have_lines_of_the_file(at):
    (at.folder / "x").write_bytes("\ufeffa\x0cb\u2028c\r\nd\r\n".encode())
    shown = at.preview("edit_file", path="x", old="d", new="e")
    assert shown == "--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n a\x0cb\u2028c\r\n-d\r\n+e\r\n"


def test_new_files_have_the_permissions_of_the_umask(at):
    for umask, mode in ((0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o027, 0o640)):
        before = os.umask(umask)
        try:
            at.do("write_file", path=f"new-{umask}", content="x")
            at.do("write_file", path="main.py", content=f"{umask}")
        finally:
            os.umask(before)
        assert stat.S_IMODE((at.folder / f"new-{umask}").stat().st_mode) == mode
        assert stat.S_IMODE((at.folder / "main.py").stat().st_mode) == 0o644


@pytest.mark.parametrize("mode", [0o600, 0o755, 0o664, 0o4755])
def test_an_edit_keeps_permissions_and_attributes(at, mode):
    path = at.folder / "main.py"
    path.chmod(mode)
    try:
        os.setxattr(path, "user.note", b"kept")
    except OSError:
        pass  # not every file system has them
    attributes = os.listxattr(path)
    at.do("edit_file", path="main.py", old="vexi", new="duro")
    assert stat.S_IMODE(path.stat().st_mode) == mode & 0o777 and os.listxattr(path) == attributes


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_root_keeps_the_owner_of_a_file(at):
    os.chown(at.folder / "main.py", 12345, 54321)
    assert at.do("edit_file", path="main.py", old="vexi", new="duro") == "edited main.py"
    about = (at.folder / "main.py").stat()
    assert (about.st_uid, about.st_gid) == (12345, 54321)


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_an_owner_that_cannot_be_kept_is_said(at, monkeypatch):
    def refused(*arguments):
        raise PermissionError(1, "Operation not permitted")

    os.chown(at.folder / "main.py", 12345, 54321)
    monkeypatch.setattr(os, "fchown", refused)
    assert "; its owner or group is another now" in at.do("write_file", path="main.py", content="")


def test_read_only_files_stay_as_they_are(at):
    (at.folder / "main.py").chmod(0o444)
    for name, more in (("write_file", {"content": ""}), ("edit_file", {"old": "vexi", "new": "x"})):
        assert "read-only" in at.error(name, path="main.py", **more)
    assert "vexi" in (at.folder / "main.py").read_text()


def test_a_change_of_another_program_meanwhile_is_not_written_over(at, monkeypatch):
    replaced = edits.replaced

    def slow(*arguments):
        (at.folder / "main.py").write_text("of the user")
        return replaced(*arguments)

    monkeypatch.setattr(edits, "replaced", slow)
    assert "another program" in at.error("edit_file", path="main.py", old="vexi", new="x")
    assert (at.folder / "main.py").read_text() == "of the user"


def test_the_mark_at_the_beginning_is_neither_shown_nor_lost(at):
    (at.folder / "x").write_bytes(b"\xef\xbb\xbfa")
    assert at.do("read_file", path="x") == "a"
    at.do("write_file", path="x", content="b")
    assert (at.folder / "x").read_bytes() == b"\xef\xbb\xbfb"


def test_names_of_any_length_can_be_written(at):
    name = "é" * 127
    at.do("write_file", path=name, content="x")
    assert at.do("edit_file", path=name, old="x", new="y") == f"edited {name}"


def test_preview_of_writing(at):
    new = at.preview("write_file", path="new", content="a\nb")
    assert new == "--- /dev/null\n+++ b/new\n@@ -0,0 +1,2 @@\n+a\n+b\n\\ No newline at end of file\n"
    assert "-print('vexi')\n+pass\n" in at.preview("write_file", path="main.py", content="pass\n")
    assert not (at.folder / "new").exists()
