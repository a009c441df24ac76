"""Lines of the user's on nano: messages, tools, commands, shell lines, files; what is shown, and what is kept."""

import json
import stat
from threading import Timer

import pytest

from v4cli import paths
from v4cli.agent.approval import Answer, Choice
from v4cli.agent.loop import CallEnd, Done
from v4cli.chat.parser import Text
from v4cli.chat.turn import Chat
from v4cli.entries import made
from v4cli.errors import ModelError
from v4cli.options import ChatOptions
from v4cli.repl import actions, commands, items
from v4cli.repl.dialogue import Dialogue
from v4cli.repl.setup import Setup
from v4cli.store import library


class Talk:
    """A dialogue and all it has told."""

    def __init__(self, folder, answer=None, **about):
        self.told, self.asked, self.answer = [], [], answer or Answer(Choice.YES)
        setup = Setup(
            told=made(ChatOptions, {"model": "nano"} | about), folder=folder, resume=None,
            open=lambda name: Chat.open(library.model_folder(name)), keep=lambda session: [],
            greet=lambda dialogue: [("", "nano")], stats_line=lambda stats: f"{stats.prompt_tokens} tokens",
        )  # fmt: skip
        self.dialogue = Dialogue(setup, self.told.append, self.ask)
        self.dialogue.line("/temp 0")

    def ask(self, request):
        self.asked.append(request)
        return self.answer

    def line(self, text: str) -> str:
        """The answer, or the notes, that a line brings."""
        self.told.clear()
        self.dialogue.line(text)
        answer = "".join(item.text for item in self.told if isinstance(item, Text))
        return answer or "\n".join(item.text for item in self.told if isinstance(item, items.Note))

    @property
    def messages(self):
        return self.dialogue.conversation.transcript.messages


@pytest.fixture
def talk(tmp_path, monkeypatch):
    monkeypatch.setenv("V4_HOME", str(tmp_path / "home"))
    folder = tmp_path / "work"
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "plan.txt").write_text("buy milk\n")
    return Talk(folder)


def test_a_message_is_answered_and_reasoning_is_counted(talk):
    assert talk.line("who are you?").startswith("I am nano")
    thought = next(item for item in talk.told if isinstance(item, items.Thought))
    assert thought.tokens > 3 and thought.seconds > 0
    assert isinstance(talk.told[0], items.Asked) and isinstance(talk.told[-1], items.Finished)


def test_what_the_model_s_side_notes_is_told_after_a_change_of_models_too(talk):
    for _ in range(2):
        talk.told.clear()
        talk.dialogue.chat.note("not constrained")
        assert talk.told == [items.Note("not constrained")]
        talk.dialogue.switch("nano")


def test_tools_that_read_just_run(talk):
    assert "plan.txt" in talk.line("list docs") and not talk.asked
    assert next(item for item in talk.told if isinstance(item, CallEnd)).result.strip() == "plan.txt"


def test_commands_of_the_model_are_asked_about_and_no_is_no(talk):
    talk.answer = Answer(Choice.NO, "not now")
    talk.line("run ls docs")
    assert talk.asked[0].preview == "ls docs"
    end = next(item for item in talk.told if isinstance(item, CallEnd))
    assert not end.ok and end.result.endswith("not now")


def test_undo_retry_edit_and_fork(talk):
    first = talk.line("what is 17*23?")
    assert "391" in first and talk.line("/retry") == first
    talk.line("who are you?")
    assert talk.line("/undo") == "taken back: who are you?" and len(talk.messages) == 4
    assert "= 42" in talk.line("/edit what is 6*7?")
    talk.line("/edit")
    assert items.Draft("what is 6*7?") in talk.told and talk.messages == []
    assert talk.line("/undo").startswith("nothing has been said yet\n")
    talk.line("hello")
    before = talk.dialogue.conversation.transcript.id
    assert before in talk.line("/fork") and talk.dialogue.conversation.transcript.id != before


def test_conversations_are_kept_and_taken_up_again(talk):
    talk.line("my name is Ada")
    id = talk.dialogue.conversation.transcript.id
    talk.line("/new")
    assert talk.messages == [] and "my name is Ada" in talk.line("/logs")
    talk.line("hello")
    talk.line(f"/resume {id}")
    earlier = next(item for item in talk.told if isinstance(item, items.Earlier))
    assert earlier.messages[0]["content"] == "my name is Ada"
    assert "Ada" in talk.line("what is my name?")
    talk.line("/resume")
    assert talk.messages[0]["content"] == "hello"
    assert "begins with" in talk.line("/resume nonsense")


def test_what_is_typed_is_told_from_what_is_sent(talk):
    talk.dialogue.line("say " + "word " * 3, shown="say [pasted]")
    assert talk.messages[0]["content"].startswith("say word") and talk.messages[0]["shown"] == "say [pasted]"


def test_files_and_shell_lines_reach_the_model(talk):
    talk.line("read this: @docs/plan.txt")
    assert talk.messages[0]["content"].endswith("docs/plan.txt (9 bytes):\n```\nbuy milk\n```")
    assert talk.messages[0]["shown"] == "read this: @docs/plan.txt"
    assert talk.line("!echo one; echo two >&2; exit 3") == "one\ntwo\n(exit 3)"
    talk.line("hello")
    sent = next(m for m in reversed(talk.messages) if m["role"] == "user")
    assert sent["content"].startswith("I ran `echo one") and "(exit 3)" in sent["content"] and "two" in sent["content"]
    talk.line("hello")
    assert talk.messages[-2]["content"] == "hello"


def test_of_a_long_output_it_is_said_how_much_is_missing(talk):
    missing = f"[{3_000_000 - (1 << 20)} bytes before this are left out]"
    assert talk.line("!head -c 3000000 /dev/zero | tr '\\0' x").startswith(f"{missing}\nxxx")
    assert missing in talk.dialogue.attached and "characters left out]" in talk.dialogue.attached


@pytest.mark.parametrize(
    "line, said",
    [
        ("!sleep 100", "\n(exit -15)"),
        ("!sleep 100 & echo begun", "begun"),  # the shell has ended, its output has not
        ("!trap '' TERM; echo begun; while :; do sleep 1; done", "begun\n(exit -9)"),
    ],
)
def test_a_shell_line_can_be_interrupted(talk, line, said):
    timer = Timer(0.3, talk.dialogue.interrupt)
    timer.start()
    assert talk.line(line) == said


def test_an_answer_can_be_interrupted_and_is_kept(talk):
    for line in ("/temp 50", "/set seed 1", "/set max_tokens 100000"):
        talk.line(line)
    seen = []

    def emit(item):
        seen.append(item)
        if len(seen) == 30:
            talk.dialogue.interrupt()

    talk.dialogue.emit = emit
    talk.dialogue.line("write a lot")
    assert len(talk.messages) >= 2 and talk.messages[1]["role"] == "assistant"
    assert any(getattr(item, "reason", "") == "interrupted" for item in seen)


def test_the_context_adds_up_and_is_the_prompt_that_comes_next(talk):
    def told() -> dict[str, int]:
        rows = (line.split(maxsplit=1) for line in talk.line("/context").split("\n") if line[-1] != ")")
        return {name: int(n.replace(",", "")) for n, name in rows}

    empty = told()
    assert empty["in the context"] == empty["system prompt and tools"] > 300 and talk.dialogue.used == 0
    talk.line("what is 17*23?")
    counts = told()
    used, free = counts.pop("in the context"), counts.pop("free")
    assert used == sum(counts.values()) == talk.dialogue.used and used + free == 1 << 20
    assert counts["system prompt and tools"] == empty["system prompt and tools"]
    assert {"your messages", "results of tools", "reasoning", "calls", "answers"} <= set(counts)
    talk.line("who are you?")
    grown = talk.dialogue.used
    assert grown > used and grown == len(talk.dialogue.context())
    talk.line("/undo")
    assert talk.dialogue.used == used and talk.dialogue.answered
    talk.line("/new")
    assert talk.dialogue.used == 0 and not talk.dialogue.answered
    talk.line("/resume")
    assert talk.dialogue.used == used and not talk.dialogue.answered


def test_code_of_the_last_answer_is_copied(talk):
    text = "So:\n\n```python\nprint(1)\n```\n\nor\n\n~~~\nls\n~~~\n\nDone."
    talk.dialogue.conversation.transcript.add({"role": "assistant", "content": text})

    def copied(line: str) -> str:
        talk.line(line)
        return next(item.text for item in talk.told if isinstance(item, items.Copy))

    assert copied("/copy code") == "ls\n" and copied("/copy code 1") == "print(1)\n" and copied("/copy") == text
    assert "2 blocks" in talk.line("/copy code 3") and "/copy takes" in talk.line("/copy all")


def test_settings_are_checked(talk):
    assert talk.line("/set top_p 0.5") == "top_p: 0.5"
    assert "above 0" in talk.line("/set top_p 7") and "is a number" in talk.line("/temp hot")
    assert "knows no" in talk.line("/set colour 7") and "at least 1" in talk.line("/set max_tokens 0")
    assert talk.dialogue.conversation.options.top_p == 0.5
    assert talk.line("/set top_p default") == "top_p: 1.0 (of the model)"
    assert talk.line("/think off") == "reasoning: off" and talk.line("/think max") == "reasoning: max"
    assert "takes off" in talk.line("/think hard")
    assert talk.line("/approve plan") == "approval: plan" and "takes ask" in talk.line("/approve never")
    assert talk.line("/system be brief") == "system prompt: be brief"
    assert talk.dialogue.conversation.messages[0] == {"role": "system", "content": "be brief"}
    assert talk.line("/system off") == "system prompt: none"


def test_what_the_command_was_told_holds_from_the_first_answer_on(talk):
    said = {"temp": 0.0, "stop": ("ano",), "stats": True, "hide_thinking": True, "max_rounds": 1, "seed": 3}
    told = Talk(talk.dialogue.setup.folder, **said)
    told.dialogue.begin()
    assert items.Show(False) in told.told and told.dialogue.conversation.options.seed == 3
    assert told.line("who are you?") == "I am n"
    assert items.Note(f"{told.dialogue.chat.stats.prompt_tokens} tokens") in told.told
    assert told.line("/set stop default") == "stop: none" and " tokens" in told.line("what is 17*23?")
    assert next(item for item in told.told if isinstance(item, Done)).reason == "rounds"


def test_set_tells_and_changes_every_way_to_answer(talk):
    names = [line.partition(":")[0] for line in talk.line("/set").split("\n")]
    assert names == list(actions.LIVE) and ", ".join(names) in talk.line("/help")
    for name, value in (("temp", "0.5"), ("top_k", "3"), ("seed", "9"), ("stop", "the end"), ("max_tokens", "7")):
        assert talk.line(f"/set {name} {value}") == f"{name}: {value}"
    options = talk.dialogue.conversation.options
    assert (options.temperature, options.stop, options.max_tokens) == (0.5, ("the end",), 7)
    assert talk.line("/set constrain perhaps") == "constrain is true or false, not 'perhaps'"
    assert "whole number" in talk.line("/set top_k 1.5") and "2^63" in talk.line("/set seed -1")
    assert talk.dialogue.conversation.options == options


def test_telling_commands(talk):
    talk.line("hello")
    assert talk.line("/tokens one two").endswith("tokens") and "answers" in talk.line("/context")
    assert talk.line("/stats").endswith("tokens") and "calculator" in talk.line("/tools")
    assert talk.line("/model").startswith("model: nano")
    talk.line("/copy")
    assert any(isinstance(item, items.Copy) and item.text.startswith("Hello") for item in talk.told)
    assert all(f"/{command.name}" in talk.line("/help") for command in commands.TABLE)


def test_export_writes_private_files_and_overwrites_none(talk):
    talk.line("what is 17*23?")
    talk.line("/export md talk.md")
    talk.line("/export json")
    work = talk.dialogue.setup.folder
    assert "**calculator**" in (work / "talk.md").read_text() and "391" in (work / "talk.md").read_text()
    exported = next(work.glob("*.json"))
    assert json.loads(exported.read_text())["messages"][0]["content"] == "what is 17*23?"
    assert stat.S_IMODE(exported.stat().st_mode) == 0o600
    assert "exists" in talk.line("/export md talk.md") and "format" in talk.line("/export pdf")


def test_unknown_commands_suggest(talk):
    assert talk.line("/exprot md").startswith("there is no command /exprot\nhint: /export")
    assert "/help lists" in talk.line("/zzzzzz")


def test_a_path_is_no_command(talk):
    talk.line("/etc/hosts is a file")
    assert talk.messages[0]["content"] == "/etc/hosts is a file"
    assert "no command /" in talk.line("/") and talk.line("!") == "! needs a command\nhint: !ls"


def test_every_command_does_something(talk):
    talk.line("hello")
    for command in commands.TABLE:
        if command.name != "exit":
            assert "unexpected" not in talk.line(f"/{command.name}"), command.name


def test_errors_are_told_and_the_dialogue_goes_on(talk, monkeypatch):
    monkeypatch.setattr(talk.dialogue.chat, "reply", lambda *a: (_ for _ in ()).throw(ModelError("broken", "mend it")))
    assert talk.line("hello") == "broken\nhint: mend it"
    assert items.Draft("hello") in talk.told and talk.messages == []
    monkeypatch.setattr(talk.dialogue.chat, "reply", lambda *a: 1 / 0)
    assert talk.line("hello").startswith("unexpected ZeroDivisionError")
    monkeypatch.undo()
    assert talk.line("hello").startswith("Hello")


def test_a_full_disk_loses_nothing(talk, full_disk):
    talk.line("hello")
    for line in ("!echo me", "/new"):
        talk.line(line)
    with full_disk():
        assert "cannot be written (File too large)\nhint: " in talk.line("who are you?")
    assert items.Draft("who are you?") in talk.told
    assert talk.messages == [] and len(list(paths.chats_dir().iterdir())) == 1
    assert "cannot be written" not in talk.line("who are you?")
    assert "I ran `echo me`" in talk.messages[0]["content"] and talk.messages[-1]["role"] == "assistant"


def test_a_message_whose_file_cannot_be_added_is_the_users_again(talk):
    (talk.dialogue.setup.folder / "half").write_bytes(b"\xff")
    assert "not UTF-8" in talk.line("what is in @half ?")
    assert items.Draft("what is in @half ?") in talk.told and talk.messages == []


def test_a_model_that_cannot_be_had_leaves_the_old_one(talk):
    assert "not found" in talk.line("/model nowhere")
    assert talk.line("hello").startswith("Hello")


def test_compact_goes_on_from_the_summary(talk):
    talk.line("hello")
    said = talk.line("/compact")
    if len(talk.messages) == 1:
        assert talk.messages[0]["content"].endswith(said.strip())
    else:  # nano may not manage a summary: then nothing is lost
        assert len(talk.messages) == 2 and "as it was" in said


def test_a_message_that_takes_long_waits_for_a_word(talk, monkeypatch):
    monkeypatch.setattr("v4cli.repl.dialogue.ASK_TOKENS", 10)
    line = "read @docs/plan.txt"
    assert "y sends it" in talk.line(line) and talk.messages == []
    assert not any(isinstance(item, items.Draft) for item in talk.told), "y would be typed behind it"
    assert "y sends it" in talk.line("again: @docs/plan.txt") and talk.messages == []  # another message
    talk.line("y")
    assert talk.messages[0]["shown"] == "again: @docs/plan.txt"
    assert talk.messages[0]["content"].endswith("docs/plan.txt (9 bytes):\n```\nbuy milk\n```")
    talk.dialogue.line("/new")
    talk.dialogue.chat.pace.learn(0, 1000, 1000.0)
    assert "tokens, about 3" in talk.line(line) and talk.messages == []
    talk.dialogue.chat.pace.learn(0, 1000, 100.0)
    talk.dialogue.line("/new")
    talk.line(line)
    assert talk.messages[0]["shown"] == line
    assert any("tokens, about 4 s" in item.text for item in talk.told if isinstance(item, items.Note))


def test_answers_are_json_once_that_is_said(talk):
    pytest.importorskip("llguidance")
    talk = Talk(talk.dialogue.setup.folder, tools="none")
    assert talk.line("/format a blob").startswith("--schema: 'a blob' is no field")
    assert talk.line("/format ok bool, sure bool").startswith("answers are JSON by {")
    talk.dialogue.line("/think off")
    assert set(json.loads(talk.line("Is it?"))) == {"ok", "sure"}
    assert items.Code("json") in talk.told
    assert talk.line("/format text") == "answers are text" and talk.line("who are you?").startswith("I am nano")
