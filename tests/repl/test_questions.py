"""A call that waits for the user: nothing but a whole line, begun after the question was there, decides about it."""

import contextlib
import json
import re
import shutil
import time
from pathlib import Path

import pexpect
import pytest
from terminal import Terminal
from test_terminal import SLOW, idle, steady, transcripts

from v4cli.agent.approval import Answer, Choice, Request
from v4cli.agent.tools import Call, Kind, Tool, parameters
from v4cli.repl.approve import about, answer_to, question

TOOL = Tool("run_shell", "Run", parameters(["command"], command="what"), Kind.RUN, lambda arguments, context: "")


def request(pattern="run_shell: ls*", **arguments) -> Request:
    return Request(Call("1", "run_shell", arguments or {"command": "ls"}, tool=TOOL), "ls", pattern=pattern)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("y", Answer(Choice.YES)), ("Yes", Answer(Choice.YES)), (" y ", Answer(Choice.YES)),
        ("s", Answer(Choice.SESSION)), ("session", Answer(Choice.SESSION)), ("a", Answer(Choice.ALWAYS)),
        ("ALWAYS", Answer(Choice.ALWAYS)), ("n", Answer(Choice.NO)), ("no", Answer(Choice.NO)),
        ("no, use tabs", Answer(Choice.NO, "use tabs")), ("No: too slow", Answer(Choice.NO, "too slow")),
        ("also do x", Answer(Choice.WORDS, "also do x")), ("sure", Answer(Choice.WORDS, "sure")),
        ("yes please also run the tests", Answer(Choice.WORDS, "yes please also run the tests")),
        ("no-op it", Answer(Choice.WORDS, "no-op it")),
        ("not yet", Answer(Choice.WORDS, "not yet")), ("a b", Answer(Choice.WORDS, "a b")),
        ("y\ny", Answer(Choice.WORDS, "y\ny")), ("y.", Answer(Choice.WORDS, "y.")), ("", None), ("  \n", None),
    ],
)  # fmt: skip
def test_what_a_line_answers(line, answer):
    assert answer_to(line, request()) == answer


@pytest.mark.parametrize("line", ["s", "a", "always", "session"])
def test_no_rule_is_made_where_none_is_offered(line):
    assert answer_to(line, request(pattern="")) is None
    assert "session" not in question(request(pattern="")) and "always" not in question(request(pattern=""))


def test_the_question_names_the_tool_and_what_it_works_on():
    assert about(request()) == "run_shell: run ls?"
    assert about(request(command="a\nb\u202e" + "c" * 200)) == "run_shell: run a b\ufffd" + "c" * 55 + "…?"
    edit = Tool("write_file", "Write", parameters(["path"], path="where"), Kind.EDIT, lambda arguments, context: "")
    assert about(Request(Call("1", "write_file", {"path": "a.txt"}, tool=edit), "")) == "write_file: change a.txt?"
    code = Tool("run_python", "Run", parameters(["code"], code="what"), Kind.RUN, lambda arguments, context: "")
    assert about(Request(Call("1", "run_python", {"code": "1"}, tool=code), "1")) == "run_python: run 1?"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "seen.txt").write_text("")
    return {"cwd": str(tmp_path / "work"), "env": {"V4_HOME": str(tmp_path / "home")}}


@pytest.fixture
def terminal(place):
    """A chat that waits for an answer about `ls`."""
    with Terminal(**place) as terminal:
        steady(terminal)
        terminal.line("run ls")
        terminal.wait("yes, once")
        yield terminal


def results(place) -> list[str]:
    """What the model was told of its calls."""
    records = [json.loads(line) for path in transcripts(place) for line in path.read_text().splitlines()]
    said = [record["message"] for record in records if record["type"] == "message"]
    return [message["content"] for message in said if message["role"] == "tool"]


def undecided(terminal) -> bool:
    """Whether the question still stands a moment later."""
    terminal.pump(0.4)
    return any("run ls?" in row for row in terminal.rows) and "└" not in terminal.text


def test_what_is_typed_or_pasted_decides_nothing_before_enter(terminal, place):
    for typed in ("y", "a", "s", "n", "also", "\x1b[200~a\n\x1b[201~", "\x1b[200~y\x1b[201~"):
        terminal.type(typed)
        assert undecided(terminal) and not results(place)
        terminal.type("\x08" * 5)
    terminal.line("n")
    terminal.wait("the user said no")
    assert not (Path(place["env"]["V4_HOME"]) / "state" / "approvals.json").exists()


def test_other_words_go_to_the_model_and_enter_alone_does_nothing(terminal, place):
    terminal.type("\r\r")
    assert undecided(terminal)
    terminal.wait("type y, ")
    terminal.line("also do this")
    terminal.wait("but: also do")
    terminal.wait(idle)
    assert results(place) == ["error: this call was not run: the user said neither yes nor no, but: also do this"]


def test_plan_refuses_the_call_that_waits(terminal, place):
    terminal.line("/approve edits")
    terminal.wait("approval: edits")
    terminal.pump(0.6)
    assert undecided(terminal)
    terminal.line("/approve plan")
    terminal.wait("approval: plan")
    terminal.wait(idle)
    assert "only reading is allowed" in results(place)[0]


@pytest.mark.skipif(not shutil.which("bwrap"), reason="needs bubblewrap: without it every command is asked about")
def test_all_lets_the_call_that_waits_run(terminal, place):
    if "not sandboxed" in terminal.text:
        pytest.skip("bubblewrap cannot make namespaces here")
    terminal.line("/approve all")
    terminal.wait("└ seen.txt")
    assert "seen.txt" in results(place)[0]


def test_leaving_is_a_no(terminal, place):
    terminal.type("\x04")
    assert terminal.end() == 0
    assert "not run" in results(place)[0]


def test_a_terminal_that_goes_away_is_a_no(terminal, place):
    with contextlib.suppress(pexpect.ExceptionPexpect):  # it has not ended at once
        terminal.child.close(force=False)
    for _ in range(100):
        if results(place):
            break
        time.sleep(0.1)
    assert "not run" in results(place)[0]


def test_a_line_begun_before_the_question_is_a_message_that_waits(place):
    slow = place | {"program": SLOW, "env": place["env"] | {"SECONDS": "0.03"}}
    with Terminal(**slow) as terminal:
        steady(terminal)
        terminal.line("run ls")
        terminal.wait("thinking")
        terminal.type("y")
        terminal.wait("which waits; then you can answer")
        terminal.type("\r")
        terminal.wait("⋯ y")
        terminal.wait("yes, once")
        assert undecided(terminal)
        terminal.line("n")
        terminal.wait("the user said no")


@pytest.fixture
def plain(place):
    """The same line by line, before anything is said."""
    with Terminal("--plain", prompt="nano is ready", **place) as terminal:
        steady(terminal)
        yield terminal


def test_line_by_line_other_words_go_to_the_model(plain, place):
    plain.line("run ls")
    plain.wait("answer:")
    assert "run_shell: run ls?" in plain.text
    plain.line("")
    plain.wait("type y, ")
    plain.line("also do this")
    plain.wait("neither yes nor no")
    plain.line("run pwd")
    plain.wait(lambda t: t.text.count("answer:") == 3)
    plain.line("/approve plan")
    plain.wait("only reading")
    plain.wait(lambda _: len(results(place)) == 2)
    assert results(place)[0].endswith("but: also do this")
    assert not (Path(place["env"]["V4_HOME"]) / "state" / "approvals.json").exists()


def test_line_by_line_what_was_typed_before_the_question_answers_nothing(plain, place):
    plain.type("run ls\rsay one\ry\r")
    plain.wait("answer:")
    plain.pump(0.5)
    assert not results(place)
    plain.line("no, not that")
    plain.wait("the user said no: not that")
    plain.line("/exit")
    assert plain.end() == 0
    [kept] = transcripts(place)
    asked = re.findall(r'"role": "user", "content": "([^"]*)"', kept.read_text())
    assert asked == ["run ls", "say one", "y"]


@pytest.mark.parametrize("keys", ["\x03", "\x04", "/exit\r"])
def test_line_by_line_ways_to_say_no(plain, place, keys):
    plain.line("run ls")
    plain.wait("answer:")
    plain.type(keys)
    plain.wait("said no")
    if keys == "\x03":
        plain.wait(lambda t: t.rows[t.screen.cursor.y] == ">")
        plain.type("\x04")
    assert plain.end() == 0
    assert "said no" in results(place)[0]
