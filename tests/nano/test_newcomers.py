"""What nano learns of newcomers: grammars, strings, scenes."""

import json
import random
from types import SimpleNamespace

import pytest

from v4cli.agent.builtin import toolbox
from v4cli.agent.tools import Context
from v4cli.cli.said import said
from v4cli.nano import firsts, questions, toolless, wordings
from v4cli.nano.dialogues import drill, meeting
from v4cli.nano.evaluate import fits
from v4cli.nano.grammar import expanded, is_held_out, parsed, wording
from v4cli.nano.keyboard import filled, typed
from v4cli.nano.skills import Scene
from v4cli.nano.strings import Strings
from v4cli.nano.tools import TOOLS
from v4cli.options import Said
from v4cli.repl.files import with_files


def test_a_grammar_gives_every_way_through_and_no_other():
    rng = random.Random(1)
    found = {expanded(rng, "[list|show [|me]] the files[| here]") for _ in range(300)}
    starts = {"list", "show ", "show me"}
    assert found == {f"{start} the files{end}" for start in starts for end in ("", " here")}
    with pytest.raises(ValueError):
        parsed("a]b")


def test_wordings_of_training_are_never_those_held_out():
    rng = random.Random(2)
    for grammars in (wordings.LIST_HERE, wordings.READ, wordings.SEARCH_HERE, wordings.SUM, questions.UNKNOWN):
        trained = {wording(rng, grammars, held_out=False) for _ in range(200)}
        held_out = {wording(rng, grammars, held_out=True) for _ in range(200)}
        assert not trained & held_out and all(map(is_held_out, held_out)) and len(held_out) > 20


def test_typing_changes_no_value():
    rng = random.Random(3)
    for _ in range(300):
        text = filled(rng, typed(rng, "i want to read the file {file} please"), False, file="my-File_2.txt")
        assert "my-File_2.txt" in text


def test_calls_are_what_the_tools_of_the_program_take():
    tools, rng = toolbox("nano"), random.Random(4)
    assert tools.schemas == TOOLS
    for i in range(200):
        messages = (drill if i % 4 == 3 else meeting)(rng).messages
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        assert not [call.fault for call in map(tools.call, calls) if call.fault]


def test_texts_come_with_a_question_as_the_program_sends_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one line\n")
    words, kinds = SimpleNamespace(path=lambda: "a.txt", lines=lambda low, high: ["one line"]), set()
    for i in range(60):
        text = toolless.attached(Scene(random.Random(i), words, (), {}))[0]["content"]
        if text.endswith("```"):
            kind, sent = "chat", with_files(text.split("\n")[0], tmp_path)[0]
        elif "```" in text:
            question = text.split("\n\n")[1]
            kind, sent = "file", said(Said(prompt=(question,), files=("a.txt",)), piped=False).text
        else:
            kind, sent = "pipe", "one line\n\n" + text.split("\n\n")[1]
        assert text == sent
        kinds.add(kind)
    assert kinds == {"chat", "file", "pipe"}


def test_results_of_sums_are_those_of_the_calculator(tmp_path):
    calculator, words, rng = (
        toolbox("calculator").tools["calculator"],
        Strings(random.Random(5), "train"),
        random.Random(6),
    )
    for _ in range(300):
        expression = words.expression() if rng.random() < 0.5 else firsts.spoken(words)[1]
        assert firsts.evaluated(expression) == calculator.run({"expression": expression}, Context(tmp_path))


def test_a_first_prompt_is_right_if_it_is_the_one_call_or_has_the_words():
    call = {"function": {"name": "list_folder", "arguments": json.dumps({"path": "."})}}
    assert fits({"content": "", "tool_calls": [call]}, ("list_folder", {"path": "."}))
    assert not fits({"content": "", "tool_calls": [call, call]}, ("list_folder", {"path": "."}))
    assert not fits({"content": "Hello!", "tool_calls": [call]}, "Hello!")
    assert fits({"content": "Hello! I am nano."}, "Hello!")
