"""A chat that begins on the command line, JSON in it, and files that take long, on three sizes of a real terminal."""

import json
import random
from pathlib import Path

import pytest
from terminal import Terminal


@pytest.mark.parametrize("size", [(80, 24), pytest.param((40, 15), marks=pytest.mark.slow),
                                  pytest.param((200, 50), marks=pytest.mark.slow)])  # fmt: skip
def test_a_chat_begins_with_words_answers_in_json_and_asks_before_it_reads_for_long(tmp_path, size):
    pytest.importorskip("llguidance")
    (tmp_path / "src").mkdir()
    letters = random.Random(1).choices("abcdefghij klmnop\n", k=40_000)
    (tmp_path / "src" / "big.txt").write_text("".join(letters))
    home, (columns, rows) = tmp_path / "home", size
    flags = ("--no-think", "--temp", "0", "--tools", "none", "-n", "60")
    place = {"cwd": str(tmp_path), "env": {"V4_HOME": str(home)}, "columns": columns, "rows": rows}
    with Terminal(*flags, "who", "are", "you?", **place) as terminal:
        terminal.wait("› who are you?")
        terminal.wait("tiny model")
        terminal.line("/format ok bool, sure bool")
        terminal.wait("answers are JSON by")
        terminal.line("Is it?")
        terminal.wait('"sure":')
        terminal.line("/format text")
        terminal.wait("answers are text")
        terminal.line("read @src/ now")
        terminal.wait("not known here")
        terminal.type("\x1b[A")
        terminal.wait(lambda t: [row for row in t.rows if row][-1] == "› read @src/ now")  # it is the user's again
        terminal.type("\x03")
        terminal.type("\x04")
        assert terminal.end() == 0
    (kept,) = Path(home, "chats").glob("*.jsonl")
    said = [
        record["message"] for record in map(json.loads, kept.read_text().splitlines()) if record["type"] == "message"
    ]
    assert [message["role"] for message in said] == ["user", "assistant"] * 2
    assert set(json.loads(said[-1]["content"])) == {"ok", "sure"}
