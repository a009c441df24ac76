"""The REPL in a real (pseudo) terminal: what a user types and sees, on nano."""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from terminal import Terminal

from v4cli.agent import sandbox

SLOW = (sys.executable, str(Path(__file__).with_name("slow_chat.py")), "chat")


@pytest.fixture
def place(tmp_path):
    """A workspace, and the environment of its own."""
    work = tmp_path / "work"
    (work / "docs").mkdir(parents=True)
    (work / "docs" / "plan.txt").write_text("".join(f"step {i}\n" for i in range(40)))
    return {"cwd": str(work), "env": {"V4_HOME": str(tmp_path / "home")}}


def slow(place, seconds: float) -> dict:
    return place | {"program": SLOW, "env": place["env"] | {"SECONDS": str(seconds)}}


def approve(terminal: Terminal, key: str) -> None:
    """Answer the question about a call."""
    terminal.wait(lambda t: "yes, once" in "\n".join(t.rows))
    terminal.line(key)


def steady(terminal: Terminal) -> None:
    """From now on the same answers, and none without an end, which nano may give to output it has never seen."""
    terminal.line("/temp 0")
    terminal.line("/set max_tokens 200")
    terminal.wait("max_tokens: 200")


def idle(terminal: Terminal) -> bool:
    """Nothing is being done: the status line begins with the model."""
    return any(row.startswith("nano ·") or row == "nano" for row in terminal.rows)


def transcripts(place) -> list[Path]:
    return sorted((Path(place["env"]["V4_HOME"]) / "chats").glob("*.jsonl"))


def test_a_whole_session(place):
    with Terminal(**place) as first:
        steady(first)
        first.line("what is 17*23?")
        first.wait("17*23 = 391")
        assert "● calculator  17*23" in first.text and "└ 391" in first.text
        assert re.search(r"∴ thought for [0-9.]+ s, \d+ tokens", first.text)
        assert "I need the value" not in first.text  # folded
        first.line("run ls")
        approve(first, "y")
        first.wait("└ docs")
        first.wait(idle)
        first.line("run pwd")
        approve(first, "no, too curious")
        first.wait("the user said no: too curious")
        first.wait(idle)
        first.line("/undo")
        first.wait("taken back: run pwd")
        first.type("\x04")
        assert first.end() == 0
    [path] = transcripts(place)
    assert path.stat().st_mode & 0o777 == 0o600
    with Terminal("-c", **place) as second:
        second.wait("17*23 = 391")
        assert "› run ls" in second.text and "run pwd" not in second.text
        second.line("/export md talk.md")
        second.wait("written:")
        second.line("/exit")
        assert second.end() == 0
    exported = (Path(place["cwd"]) / "talk.md").read_text()
    assert "I need the value of 17*23" in exported and "docs" in exported


def test_an_answer_is_interrupted_and_the_next_message_waits_meanwhile(place):
    with Terminal(**slow(place, 0.1)) as terminal:
        terminal.line("who are you?")
        terminal.wait("thinking")
        terminal.line("what is 2+2?")
        terminal.wait("⋯ what is 2+2?")
        terminal.type("\x03")  # takes back what waits
        terminal.wait("› what is 2+2?")
        terminal.wait("I am nano")
        terminal.type("\x1b")  # stops the answer
        terminal.wait("(interrupted)")
        terminal.wait(idle)
        assert "⋯" not in terminal.text
        terminal.type("\x03")  # clears the line
        terminal.wait("Ask something")
        terminal.type("\x03\x03")
        assert terminal.end() == 0
    messages = [json.loads(line) for line in transcripts(place)[0].read_text().splitlines()]
    said = [record["message"] for record in messages if record["type"] == "message"]
    assert said[0]["content"] == "who are you?" and said[1]["content"].startswith("I am nano") and len(said) == 2


def test_leaving_while_it_works_keeps_what_was_said(place):
    with Terminal(**slow(place, 0.1)) as terminal:
        terminal.line("who are you?")
        terminal.wait("I am nano")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert '"content": "I am nano' in transcripts(place)[0].read_text()


@pytest.mark.parametrize("columns, rows", [(20, 10), (300, 100)])
def test_narrow_and_huge_windows(place, columns, rows):
    with Terminal(columns=columns, rows=rows, **place) as terminal:
        steady(terminal)
        terminal.line("what is 17*23?")
        terminal.wait("17*23 = 391")
        terminal.line("run ls")
        approve(terminal, "n")
        terminal.wait("said no" if columns > 100 else "error:")
        terminal.line("/help")
        terminal.wait("/export")
        terminal.wait(idle)
        assert terminal.rows[-1].startswith("›") or "›" in "".join(terminal.rows)
        terminal.line("say 日本語 👍")
        terminal.wait(lambda t: t.text.count("日") >= 1 and idle(t))
        terminal.type("\x04")
        assert terminal.end() == 0


def test_the_window_is_resized_while_it_works(place):
    with Terminal(columns=100, **slow(place, 0.02)) as terminal:
        terminal.line("hello")
        terminal.wait("thinking")
        for columns, rows in ((40, 12), (20, 6), (120, 40), (80, 24)):
            terminal.resize(columns, rows)
            terminal.pump(0.2)
        terminal.wait("How can I help?")
        terminal.wait(idle)
        terminal.type("\x04")
        assert terminal.end() == 0


def test_no_colour_means_none(place):
    place["env"]["NO_COLOR"] = "1"
    with Terminal(**place) as terminal:
        steady(terminal)
        terminal.line("what is 17*23?")
        terminal.wait("17*23 = 391")
        terminal.line("/nonsense")
        terminal.wait("there is no command")
        terminal.type("/e")
        terminal.wait("leave")
        terminal.type("\x03\x04")
        terminal.end()
    for codes in re.findall(rb"\x1b\[([0-9;]*)m", terminal.raw):
        assert not any(30 <= int(code or 0) <= 49 or 90 <= int(code or 0) <= 107 for code in codes.split(b";")), codes


def test_a_paste_of_2_mb_is_a_marker_and_sends_nothing(place):
    text = "0123456789 abcdefgh\n" * 100_000
    with Terminal(**place) as terminal:
        terminal.wait(idle)
        start = time.monotonic()
        terminal.type("\x1b[200~")
        for at in range(0, len(text), 1 << 16):
            terminal.type(text[at : at + (1 << 16)])
            terminal.pump(0)
        terminal.type("\x1b[201~")
        terminal.wait("› [pasted: 2.0 MB, 100,001 lines]")
        print(f"2 MB paste: {time.monotonic() - start:.2f} s")
        assert not transcripts(place)
        terminal.type("\x03!cat > /dev/null; echo ok\r")
        terminal.wait(lambda t: "\nok" in t.text)
        terminal.type("\x1b[200~one\ntwo\x1b[201~")
        terminal.wait("  two")
        terminal.type("\x03\x04")
        assert terminal.end() == 0


def test_keys_of_the_line_editor(place, tmp_path):
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nprintf "/tokens from the editor" > "$1"\n')
    editor.chmod(0o700)
    place["env"]["EDITOR"] = place["env"]["VISUAL"] = str(editor)
    with Terminal(**place) as terminal:
        terminal.wait(idle)
        terminal.type("one\x1b\rtwo\nthree\\\rfour")
        terminal.wait(lambda t: t.text.endswith("› one\n  two\n  three\n  four") or "  four" in t.rows)
        terminal.type("\x03")
        terminal.wait("Ask something")
        terminal.line("/tokens first thing")
        terminal.wait("tokens\n")
        terminal.type("\x1b[A")
        terminal.wait(lambda t: t.text.count("/tokens first thing") == 2)
        terminal.type("\x03/tok\t")
        terminal.wait("› /tokens")
        terminal.type("\x03\x12fir")
        terminal.wait(lambda t: "› /tokens first thing" in t.rows[-4:] or t.text.count("first thing") == 2)
        terminal.type("\r\x03look @do\t")
        terminal.wait("› look @docs/")
        terminal.type("\x03\x18\x05")
        terminal.wait("› /tokens from the editor")
        terminal.type("\r")
        terminal.wait(lambda t: t.text.count(" tokens\n") >= 2)
        terminal.type("\x04")
        assert terminal.end() == 0
    history = Path(place["env"]["V4_HOME"]) / "state" / "history"
    assert history.stat().st_mode & 0o777 == 0o600


def test_the_viewer_unfolds_reasoning_and_results(place):
    with Terminal(**place) as terminal:
        steady(terminal)
        terminal.line("what is 17*23?")
        terminal.wait("17*23 = 391")
        terminal.wait(idle)
        terminal.type("\x0f")
        terminal.wait("▸ reasoning")
        terminal.type("a")
        terminal.wait("I need the value of 17*23")
        terminal.type("q")
        terminal.wait(idle)
        terminal.type("\x04")
        assert terminal.end() == 0


def test_a_key_meant_for_the_input_approves_nothing(place):
    with Terminal(**slow(place, 0.03)) as terminal:
        terminal.line("run ls")
        terminal.wait("thinking")
        terminal.type("yes, I was typing")
        terminal.wait("which waits; then you can answer")
        terminal.type("yyy")
        terminal.wait("typingyyy")
        assert "└" not in terminal.text
        terminal.type("\x1b")
        terminal.wait("the user said no")
        terminal.type("\x04")


@pytest.mark.skipif(sandbox.missing() != "", reason="without a sandbox every call is asked about")
def test_yes_for_the_session_asks_once(place):
    with Terminal(**place) as terminal:
        steady(terminal)
        terminal.line("run ls")
        terminal.wait("yes, for this session: run_shell: ls")
        approve(terminal, "s")
        terminal.wait("└ docs")
        terminal.wait(idle)
        terminal.line("run ls")
        terminal.wait(lambda t: t.text.count("└ docs") == 2)
        assert terminal.text.count("yes, once") == 0


def test_a_model_that_cannot_be_loaded_ends_with_its_exit_code(place, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with Terminal("-m", str(tmp_path / "broken"), prompt="", **place) as terminal:
        assert terminal.end() == 3
    assert "v4: " in terminal.text and "Traceback" not in terminal.text


def test_where_nothing_can_be_kept_it_talks_all_the_same(place):
    Path(place["env"]["V4_HOME"]).write_text("a file")
    with Terminal(**place) as terminal:
        steady(terminal)
        terminal.line("what is 17*23?")
        terminal.wait("17*23 = 391")
        terminal.wait(idle)
        assert terminal.text.count("what is typed is not remembered") == 1
        terminal.type("\x1b[A")
        terminal.wait("› what is 17*23?")
        terminal.type("\x03\x03\x03")
        assert terminal.end() == 0


@pytest.mark.slow  # of the machine's speed
def test_the_prompt_is_there_soon(place):
    seconds = []
    for _ in range(3):
        with Terminal(**place) as terminal:
            seconds.append(time.monotonic() - terminal.started)
    print(f"first bytes of the prompt after {statistics.median(seconds) * 1000:.0f} ms")
    assert min(seconds) < 1.5


def test_plain_mode_draws_nothing(place):
    with Terminal("--plain", prompt="nano is ready", **place) as terminal:
        steady(terminal)
        terminal.line("what is 17*23?")
        terminal.wait("17*23 = 391")
        terminal.line("run ls")
        terminal.wait("answer:")
        terminal.line("y")
        terminal.wait("docs\n")
        terminal.line("/exit")
        assert terminal.end() == 0
    assert b"\x1b" not in terminal.raw


def piped(place, *args, stdin: bytes = b"", command="chat") -> subprocess.CompletedProcess:
    """`v4 chat ARGS` in a pipe."""
    return subprocess.run(
        [sys.executable, "-m", "v4cli", command, *args], input=stdin, capture_output=True, cwd=place["cwd"],
        env=os.environ | place["env"], timeout=60,
    )  # fmt: skip


def test_in_a_pipe_calls_are_refused_and_streams_are_kept_apart(place):
    done = piped(place, stdin=b"what is 17*23?\nrun ls\n/nonsense\nsay \xff\n")
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0 and "17*23 = 391" in out and "I need the value" not in out
    assert "I need the value" in err and "there is no command" in err
    assert "not run" in err and ("--approve" in err or sandbox.missing())
    assert "\x1b" not in out + err and "Traceback" not in err and "unexpected" not in err


def test_conversations_are_listed_and_taken_up_by_their_ids(place):
    assert b"no conversation" in piped(place, command="logs").stderr
    for name in (b"Ada", b"Bob"):
        piped(place, stdin=b"/temp 0\nmy name is " + name + b"\n")
    rows = json.loads(piped(place, "--json", command="logs").stdout)
    assert [row["title"] for row in rows] == ["my name is Bob", "my name is Ada"] and rows[0]["messages"] == 2
    assert rows[1]["id"].encode() in piped(place, command="logs").stdout
    done = piped(place, "--resume", rows[1]["id"], stdin=b"/temp 0\nwhat is my name?\n")
    assert b"Ada" in done.stdout and b"2 messages so far" in done.stderr
    done = piped(place, "-c", stdin=b"/temp 0\nwhat is my name?\n")
    assert b"Ada" in done.stdout and b"4 messages so far" in done.stderr


@pytest.mark.parametrize(
    "args, code, says",
    [
        (["-r", "nonsense"], 2, b"v4 logs"),
        (["-c"], 2, b"v4 chat, begins one"),
        (["-c", "-r", "x"], 2, b"drop --continue"),
        (["--approve", "never"], 2, b"--approve"),
        (["--tools", "hammer"], 2, b"hammer"),
        (["--json"], 2, b"No such option"),
        (["-m", "nowhere"], 3, b"not found"),
    ],
)
def test_mistakes_have_their_exit_code(place, args, code, says):
    done = piped(place, *args)
    assert done.returncode == code and says in done.stderr and b"Traceback" not in done.stderr and not done.stdout


def test_the_prompt_is_there_in_every_frame(place):
    with Terminal(**slow(place, 0.01)) as terminal:
        terminal.line("/temp 0")
        terminal.line("what is 17*23?")
        frames = without = 0
        while "17*23 = 391" not in terminal.text:
            before = len(terminal.raw)
            assert terminal.pump()
            if len(terminal.raw) > before:
                frames += 1
                without += not [row for row in terminal.rows if row][-1].startswith("›")
        assert frames > 10 and without <= frames // 10


def test_names_of_files_are_text_wherever_they_are_shown(place):
    evil = "a\x1b[31;5;7m\x1b]0;title\x07\u202egnp\u200b"
    (Path(place["cwd"]) / "docs" / evil).write_text("x")
    history = Path(place["env"]["V4_HOME"]) / "state" / "history"
    history.parent.mkdir(parents=True)
    history.write_text(f"# 2026\n+look at {evil}\n")
    with Terminal(**place) as terminal:
        steady(terminal)
        terminal.line("list docs")
        terminal.wait("└")
        terminal.wait(idle)
        terminal.type("look @docs/a\t")
        terminal.wait(lambda t: "gnp" in "".join(t.rows[-4:]))
        terminal.type("\x03")
        terminal.wait("Ask something")
        terminal.type("\x1b[A\x1b[A\x1b[A\x1b[A")
        terminal.wait("look at a")
        terminal.type("\x03\x04")
        terminal.end()
    assert b"\x1b[31;5;7m" not in terminal.raw and b"\x1b]0;" not in terminal.raw
    assert not {"\u202e", "\u200b"} & set(terminal.raw.decode())
