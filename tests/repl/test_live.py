"""What is on the screen while a turn is going on, and what goes to the scrollback: from events, without a terminal."""

import json
import random
import re
from dataclasses import replace
from queue import SimpleQueue

import pytest
from rich.cells import cell_len

from v4cli.agent import builtin
from v4cli.agent.approval import Request
from v4cli.agent.loop import CallEnd, CallStart, Done
from v4cli.agent.tools import Call, Context
from v4cli.chat.parser import End, Text, Thinking, ToolCallArguments, ToolCallEnd, ToolCallStart
from v4cli.repl import items
from v4cli.repl.approve import question
from v4cli.repl.live import TAIL, Live
from v4cli.repl.render import RESULT_LINES, Renderer, summary

ANSWER = """# Report

Some *words* about `code`:

- one
- two 日本語のテキスト

```python
def f():
    return 1
```

| a | b |
|---|---|
| 1 | 2 |

Done 👍."""


def live(width: int = 60, colour: bool = False) -> Live:
    return Live(Renderer(lambda: width, colour))


def turn(view: Live, pieces: list[str]) -> str:
    """Everything that goes to the scrollback for an answer in these pieces."""
    return "".join(map(view.take, [*map(Text, pieces), End("stop")]))


def test_the_answer_looks_the_same_however_it_streams():
    rng = random.Random(4)
    whole = turn(live(), [ANSWER])
    assert "# Report" in whole and "┃" not in whole.splitlines()[0]
    for _ in range(50):
        places = sorted(rng.randint(0, len(ANSWER)) for _ in range(rng.randint(0, 20)))
        pieces = [ANSWER[a:b] for a, b in zip([0, *places], [*places, len(ANSWER)])]
        assert turn(live(), pieces) == whole


def test_finished_blocks_leave_the_view_at_once():
    view = live()
    assert view.take(Text("First paragraph.\n\nSec")) == "First paragraph.\n"
    assert view.view(20).strip() == "Sec"
    assert view.take(Text("ond.\n\n")) == "\nSecond.\n"
    assert view.view(20).strip() == ""


def test_reasoning_shows_its_end_and_folds_to_a_line():
    view = live()
    for i in range(50):
        assert view.take(Thinking(f"thought {i}\n")) == ""
    shown = view.view(20).strip().split("\n")
    assert len(shown) == TAIL and shown[-1] == "┊ thought 49"
    assert view.take(items.Thought(3.2, 214)) == "∴ thought for 3.2 s, 214 tokens\n"
    view.take(items.Show(True))
    view.take(Thinking("in full"))
    assert "┊ in full" in view.take(items.Thought(1.0, 2))


def test_a_call_fills_in_runs_and_folds_its_result():
    view, arguments = live(), json.dumps({"command": "ls -l"})
    view.take(ToolCallStart(0, "run_shell"))
    for character in arguments[:-4]:
        view.take(ToolCallArguments(0, character))
    assert "○ run_shell  ls" in view.view(20)
    view.take(ToolCallArguments(0, arguments[-4:]))
    view.take(ToolCallEnd(0, "run_shell", arguments))
    view.take(End("stop"))
    call = Call("call_0", "run_shell", {"command": "ls -l"})
    view.take(CallStart(call))
    view.take(items.Output("line 1\n\x1b[31mline 2\x1b[0m\n"))
    assert "line 2" in view.view(20) and "\x1b" not in view.view(20)
    done = view.take(CallEnd(call, "".join(f"row {i}\n" for i in range(41)), True, 0.5))
    assert done.startswith("● run_shell  ls -l\n└ row 0\n") and f"… {41 - RESULT_LINES} more lines" in done
    assert view.view(20) == ""


def test_two_calls_keep_their_order():
    view = live()
    for index in (0, 1):
        view.take(ToolCallStart(index, "calculator"))
        view.take(ToolCallArguments(index, json.dumps({"expression": f"{index}+1"})))
    assert view.view(20).index("0+1") < view.view(20).index("1+1")
    first = view.take(CallEnd(Call("a", "calculator", {}), "1", True, 0.0))
    second = view.take(CallEnd(Call("b", "calculator", {}), "error: no", False, 0.0))
    assert "0+1" in first and "1+1" in second and "error: no" in second


@pytest.mark.parametrize("width", [8, 20, 79, 300])
def test_nothing_is_wider_than_the_window(width):
    view = live(width)
    said = view.take(items.Asked("a question with a-word-that-is-longer-than-any-narrow-window 日本語テキスト" * 3))
    said += view.take(Thinking("hmm " * 50)) + view.take(items.Thought(1, 1))
    said += turn(view, [ANSWER + "\n\n" + "漢字" * 100])
    view.take(ToolCallStart(0, "read_file"))
    view.take(ToolCallArguments(0, json.dumps({"path": "x/" * 200})))
    shown = view.view(10)
    said += view.take(CallEnd(Call("a", "read_file", {}), "wide " * 100 + "\n日本" * 30, False, 0.0))
    assert shown.count("\n") < 10
    assert max(cell_len(line) for line in (said + shown).split("\n")) <= width


def test_a_change_is_shown_as_a_diff_before_it_is_asked_about(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    arguments = {"path": "a.txt", "old": "two", "new": "2\x1b[2K"}
    tool = builtin.toolbox("edit_file").tools["edit_file"]
    call = Call("a", "edit_file", arguments, tool=tool)
    request = Request(call, tool.preview(arguments, Context(tmp_path)), pattern="edit_file: *")
    view = live(colour=True)
    view.take(ToolCallStart(0, "edit_file"))
    shown = view.take(items.Ask(request, SimpleQueue()))
    assert "\x1b[31m-two" in shown and "\x1b[32m+2␛[2K" in shown
    assert question(request).startswith("edit_file: change a.txt?") and "s  yes, for this session" in question(request)
    unprotected = replace(request, unprotected="no bubblewrap", pattern="")
    assert "no bubblewrap" in question(unprotected) and "session" not in question(unprotected)


def test_what_is_asked_about_is_bounded_and_says_so():
    draw = Renderer(lambda: 60, colour=False)
    text = "\n".join(f"line {i}" for i in range(2000))
    shown = draw.exact(text).split("\n")
    left = int(re.search(r"\[([0-9,]+) more", shown[-1])[1].replace(",", ""))
    assert "\n".join(shown[:-1]) == text[: len(text) - left] and draw.exact("ls -l") == "ls -l"
    assert len(draw.exact("x" * 200_000)) < 80_000


def test_ends_that_are_not_usual_are_told():
    assert live().take(Done("interrupted")) == "(interrupted)\n" and live().take(Done("stop")) == ""
    assert "without an answer" in live().take(Done("stop", empty=True))
    assert "before an answer" in live().take(Done("length", empty=True)) != live().take(Done("length"))


def test_colour_is_only_used_where_wanted():
    assert "\x1b" not in turn(live(colour=False), [ANSWER])
    coloured = turn(live(colour=True), [ANSWER])
    assert "\x1b[" in coloured and set(re.findall(r"\x1b(.)", coloured)) == {"["}


@pytest.mark.parametrize(
    "arguments, shown",
    [
        ('{"command": "ls', "ls"),
        ('{"path": "a.txt", "content": "x\\ny"}', "path: a.txt, content: x\ny"),
        ('{"n": 3, "all": true}', "n: 3, all: true"),
        ("{}", ""),
        ('{"pa', '{"pa'),
        ("[1]", "[1]"),
    ],
)
def test_arguments_are_shown_for_people(arguments, shown):
    assert summary(arguments) == shown


def test_earlier_messages_are_shown_folded():
    messages = [
        {"role": "user", "content": "long text that was sent", "shown": "[pasted]"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "secret plan",
            "tool_calls": [{"function": {"name": "clock", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "noon"},
        {"role": "assistant", "content": "It is **noon**."},
    ]
    said = live().take(items.Earlier(messages, 3))
    assert "3 earlier messages" in said and "› [pasted]" in said and "● clock" in said and "└ noon" in said
    assert "secret" not in said and said.endswith("It is noon.\n")
