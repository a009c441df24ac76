"""Pastes, files, history, completion."""

import random
import stat

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from v4cli.agent.attached import Attached
from v4cli.errors import UsageError, V4Error
from v4cli.repl.commands import TABLE
from v4cli.repl.files import with_files
from v4cli.repl.input import Completions, History
from v4cli.repl.pastes import END, START, PasteReader, Pastes


def test_long_pastes_are_markers_until_sent():
    pastes = Pastes()
    assert pastes.taken("short\r\ntext") == "short\ntext"
    big = "line\n" * 400_000
    marker = pastes.taken(big)
    assert marker == "[pasted: 2.0 MB, 400,001 lines]"
    second = pastes.taken("x\n" * 20)
    assert second != marker
    assert pastes.expanded(f"see {marker} and {second}.") == f"see {big} and {'x' + chr(10)}" + "x\n" * 19 + "."
    assert pastes.expanded("nothing here") == "nothing here"


def test_a_marker_within_a_paste_stays_as_it_was_pasted():
    pastes = Pastes()
    first = pastes.taken("a\n" * 20)
    second = pastes.taken(first + "\nb" * 20)
    assert pastes.expanded(second) == first + "\nb" * 20


class Pieces:
    """Stands for a terminal that gives text in these pieces."""

    closed = False

    def __init__(self, pieces: list[str]):
        self.pieces = pieces

    def read(self, count: int) -> str:
        return self.pieces.pop(0)


def test_a_paste_comes_in_one_piece_and_nothing_is_lost():
    text = f"ab{START}one{END}c{START}two two{END}de"
    rng = random.Random(3)
    for _ in range(500):
        places = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(0, 6)))
        pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)])]
        reader, n = PasteReader(Pieces(list(pieces))), len(pieces)
        assert "".join(reader.read() for _ in range(n)) == text


def test_the_history_is_private_and_keeps_markers_of_long_pastes(tmp_path):
    pastes = Pastes()
    history = History(tmp_path / "history", pastes)
    assert stat.S_IMODE((tmp_path / "history").stat().st_mode) == 0o600
    history.append_string("hello")
    history.append_string(pastes.taken("y" * 50_000))
    history.append_string(pastes.taken("z\n" * 20))
    again = list(History(tmp_path / "history", Pastes()).load_history_strings())
    assert again == ["z\n" * 20, "[pasted: 50.0 kB, 1 lines]", "hello"]


def test_lines_are_remembered_even_if_they_cannot_be_written(tmp_path, full_disk):
    history = History(tmp_path / "state" / "history", Pastes())
    with full_disk():
        history.append_string("hello")
    assert history.get_strings() == ["hello"]
    (tmp_path / "file").write_text("")
    with pytest.raises(V4Error, match="cannot be written"):
        History(tmp_path / "file" / "history", Pastes())


def completed(folder, text: str) -> list[str]:
    completions = Completions(folder).get_completions(Document(text), CompleteEvent())
    return [text[: len(text) + c.start_position] + c.text for c in completions]


def test_tab_completes_commands_and_files(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "my file.md").write_text("y")
    assert "/export" in completed(tmp_path, "/ex") and len(completed(tmp_path, "/")) >= len(TABLE)
    assert completed(tmp_path, "see @no") == ["see @notes.txt"]
    assert completed(tmp_path, "@d") == ["@docs/"]
    assert completed(tmp_path, "@docs/m") == ['@"docs/my file.md"']
    assert completed(tmp_path, 'x @"docs/my f') == ['x @"docs/my file.md"']
    assert completed(tmp_path, "mail me@no") == [] and completed(tmp_path, "@/nowhere/at/all") == []


def test_mentioned_files_are_added(tmp_path):
    (tmp_path / "a.txt").write_text("alpha\n")
    (tmp_path / "b c.md").write_text("```\ncode\n```\n")
    text, found = with_files('compare @a.txt, and @"b c.md". Mail x@a.txt, @nobody @a.txt', tmp_path)
    assert text.startswith(
        'compare @a.txt, and @"b c.md". Mail x@a.txt, @nobody @a.txt\n\na.txt (6 bytes):\n```\nalpha\n```'
    )
    assert text.endswith("b c.md (13 bytes):\n````\n```\ncode\n```\n````") and text.count("alpha") == 1
    assert [file.name for file in found.files] == ["a.txt", "b c.md"]
    for words in ("no files @ all", "what is @property? or @x[0]?", "a@*.pyx"):
        assert with_files(words, tmp_path) == (words, Attached())


def test_folders_and_patterns_are_mentioned_too(tmp_path):
    (tmp_path / "src").mkdir()
    for name in ("src/a.py", "src/b.py", "src/.hidden", "notes.md"):
        (tmp_path / name).write_text(f"# {name}\n")
    assert [file.name for file in with_files("read @src/", tmp_path)[1].files] == ["src/a.py", "src/b.py"]
    assert [file.name for file in with_files("read @*.md, then @src/?.py.", tmp_path)[1].files] == [
        "notes.md", "src/a.py", "src/b.py",
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"\*.pyx: no file matches"):
        with_files("read @*.pyx", tmp_path)


def test_files_that_cannot_be_added_are_named(tmp_path):
    (tmp_path / "image").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UsageError, match="not UTF-8"):
        with_files("@image", tmp_path)
