"""search_text: what it finds, and that it says what it did not look at or did not finish."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from v4cli.agent import grep, sandbox, search
from v4cli.agent.builtin import toolbox
from v4cli.agent.process import Limits
from v4cli.agent.tools import Context, ToolError

SEARCH = toolbox("search_text").tools["search_text"]
LINK = "[not searched, or not as text: link (symbolic link)]"


class Workspace:
    def __init__(self, folder: Path):
        self.folder = folder

    def find(self, pattern: str, path: str = ".", **more) -> str:
        return SEARCH.run({"pattern": pattern, "path": path}, Context(self.folder, **more))

    def error(self, pattern: str, path: str = ".", **more) -> str:
        with pytest.raises(ToolError) as error:
            self.find(pattern, path, **more)
        return str(error.value)


@pytest.fixture(params=["in the sandbox", "without one"])
def at(tmp_path, request, hide) -> Workspace:
    """A workspace with two files and a link out of it."""
    if request.param == "without one":
        hide("bwrap")
    elif sandbox.missing():
        pytest.skip(sandbox.missing())
    folder = tmp_path / "project"
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "notes.txt").write_text("first line\nthe vexi line\n")
    (folder / "main.py").write_text("print('vexi')\n")
    (tmp_path / "secret.txt").write_text("TOKEN")
    (folder / "link").symlink_to(tmp_path / "secret.txt")
    return Workspace(folder)


def test_what_is_found(at):
    both = f"docs/notes.txt:2: the vexi line\nmain.py:1: print('vexi')\n{LINK}"
    assert at.find("vexi") == at.find("v[e]xi", str(at.folder)) == both
    assert at.find("^the .*line$", "docs") == "docs/notes.txt:2: the vexi line"
    assert at.find("first", "docs/notes.txt") == "docs/notes.txt:1: first line"
    assert at.find("nowhere", "docs") == at.find("--help", "docs") == "no matches"
    assert at.find("TOKEN") == f"no matches\n{LINK}"
    assert at.error("x", "nope") == "no such file"


@pytest.mark.parametrize("pattern", ["(", "[[:alpha:]]", r"\p{L}", r"\z", "a{9999999999}", "(" * 5000, "x**"])
def test_what_python_does_not_know_as_a_regular_expression_is_refused(at, pattern):
    assert "not a regular expression as Python knows them" in at.error(pattern)


def test_line_ends_and_marks_are_no_part_of_lines(at):
    (at.folder / "dos.txt").write_bytes(b"\xef\xbb\xbffirst\r\nsecond\r\n")
    assert at.find("^(first|second)$", "dos.txt") == "dos.txt:1: first\ndos.txt:2: second"


def test_matches_are_bounded_and_that_is_said(at):
    (at.folder / "many").write_text("vexi\n" * 201)
    lines = at.find("vexi", "many").split("\n")
    assert len(lines) == 201 and lines[-2] == "many:200: vexi"
    assert lines[-1].startswith("[there are more than 200 matches")
    (at.folder / "many").write_text("vexi\n" * 200)
    assert at.find("vexi", "many").split("\n")[-1] == "many:200: vexi"


def test_what_is_seldom_meant_comes_last(at):
    for name in (".venv", "build", "src", "x.min.js"):
        (at.folder / name).mkdir()
        (at.folder / name / "x").write_text("vexi\n" * 80)
    (at.folder / ".gitignore").write_text("# made\n/build/\n*.min.js\n!docs\n")
    files = [line.split(":")[0] for line in at.find("vexi").split("\n")]
    assert list(dict.fromkeys(files[:-2])) == ["docs/notes.txt", "main.py", "src/x", ".venv/x", "build/x"]


def test_of_a_long_line_the_part_with_the_match_is_shown(at):
    (at.folder / "long").write_text("x" * 5000 + "vexi" + "y" * 5000)
    text = at.find("vexi", "long")
    assert "vexi" in text and text.startswith("long:1: …x") and text.endswith("y…") and len(text) < 400


def test_names_of_any_kind_are_told_apart(at):
    names = ["-odd:1: name", "a\nb:1: vexi", 'quo"te', os.fsdecode(b"\xff"), "é"]
    (at.folder / "odd").mkdir()
    for name in names:
        (at.folder / "odd" / name).write_text("vexi")
    shown = ["odd/-odd:1: name", json.dumps("odd/a\nb:1: vexi"), 'odd/quo"te', "odd/é", json.dumps("odd/\udcff")]
    assert at.find("vexi", "odd").split("\n") == [f"{name}:1: vexi" for name in shown]


def test_what_is_not_searched_is_said(at, tmp_path):
    (at.folder / ".git").mkdir()
    (at.folder / ".git" / "config").write_text("vexi")
    for i in range(5):
        (at.folder / f"{i}.bin").write_bytes(b"vexi\0vexi")
    with open(at.folder / "sparse", "wb") as file:
        file.truncate(1 << 33)
    os.mkfifo(at.folder / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(at.folder / "socket"))
    (at.folder / "loop").symlink_to(at.folder)
    (at.folder / "latin").write_bytes("né vexi".encode("latin-1"))
    (at.folder / "late").write_bytes(b"vexi\n" + b"x\n" * (1 << 20) + b"\0vexi")
    (at.folder / "wide").write_text("x" * (grep.BLOCK + 10) + "vexi")
    *found, note = at.find("vexi").split("\n")
    server.close()
    assert [line.split(":")[0] for line in found] == ["docs/notes.txt", "late", "latin", "main.py", "wide"]
    parts = note.removeprefix("[not searched, or not as text: ").removesuffix("]").split("; ")
    assert set(parts) == {
        ".git (of git)",
        "0.bin, 1.bin, 2.bin and 3 more (binary)",
        "late (binary from somewhere on)",
        "latin (not UTF-8, so that only ASCII could match)",
        "link, loop (symbolic link)",
        "pipe (named pipe)",
        "socket (socket)",
        "wide (lines too long to be matched as a whole)",
    }
    assert at.find("vexi", ".git") == ".git/config:1: vexi"


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_what_must_not_be_read_is_said(at):
    (at.folder / "docs").chmod(0)
    assert "docs (permission denied)" in at.find("vexi")
    (at.folder / "docs").chmod(0o700)


def test_an_error_of_reading_is_said(tmp_path, capsys, monkeypatch):
    def broken(path, flags):
        raise OSError(5, "Input/output error")

    (tmp_path / "a").write_text("vexi")
    monkeypatch.setattr(grep.os, "open", broken)
    assert grep.main("vexi", str(tmp_path / "a")) == 0
    end = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert end == ["end", False, {"input/output error": [1, str(tmp_path / "a")]}]


def test_trees_of_any_depth(at):
    deep = "/".join(["d"] * 1100)
    subprocess.run(["mkdir", "-p", at.folder / deep], check=True)
    (at.folder / deep / "x").write_text("vexi")
    found = at.find("vexi", "d")
    subprocess.run(["rm", "-r", at.folder / "d"], check=True)
    assert found == f"{deep}/x:1: vexi"


def test_matches_across_pieces_of_a_file(at):
    with open(at.folder / "big", "w") as file:
        for i in range(300_000):
            file.write(f"{i} é\n")
    assert at.find("^299999 é$", "big") == "big:300000: 299999 é"
    assert at.find(r"^\d+ [^é]", "big") == "no matches"


@pytest.mark.parametrize("found", ["nothing", "something"])
def test_a_search_that_is_ended_says_so(at, found, monkeypatch):
    """A pattern that takes forever in the second file."""
    monkeypatch.setattr(search, "LIMITS", Limits(seconds=2))
    (at.folder / "slow").mkdir()
    (at.folder / "slow" / "1").write_text("ab" if found == "something" else "")
    (at.folder / "slow" / "2").write_text("a" * 40 + "c")
    (at.folder / "slow" / "3").write_text("ab")
    if found == "nothing":
        assert "the search failed: it ran longer than 2 seconds" in at.error("(a+)+b", "slow")
    else:
        text = at.find("(a+)+b", "slow")
        assert text.startswith(
            "slow/1:1: ab\n[the search is not complete: it ran longer than 2 seconds; it had come to"
        )


ENDS = {
    "killed": "import os; os.kill(os.getpid(), 9)",
    "out of memory": "raise MemoryError",
    "too much output": "print('x' * 3_000_000)",
    "half a line": "print('[\"match\", \"ma', end='')",
}


@pytest.mark.parametrize("name", ENDS)
def test_a_search_that_breaks_off_says_so(at, name, monkeypatch, tmp_path):
    """Whatever ends the program, what it had found is not all."""
    program = tmp_path / "grep.py"
    program.write_text(f'print(\'["at", "a"]\\n["match", "a", 1, "text"]\', flush=True)\n{ENDS[name]}\n')
    monkeypatch.setattr(grep, "__file__", str(program))
    match, note = at.find("vexi").split("\n")
    assert match == "a:1: text" and note.startswith("[the search is not complete: ") and "it had come to a]" in note
    program.write_text(ENDS[name])
    assert at.error("vexi").startswith("the search failed: ")


def test_the_user_can_end_it(at):
    (at.folder / "slow").write_text("a" * 40 + "c")
    assert at.error("(a+)+b", "slow", cancelled=lambda: True) == "the search failed: the user interrupted it"


def test_python_of_the_search_is_there():
    assert Path(sys.executable).name.startswith("python")
