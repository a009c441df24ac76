"""Conversations: undo, retry, fork, compact, going on after a crash or with another model, export."""

import json
import shutil

import pytest
from scripted import Scripted, block, invoke

from v4cli.agent.conversation import SUMMARY_HEAD, Conversation, to_json, to_markdown
from v4cli.agent.loop import Agent, Said
from v4cli.agent.tools import Context, Decision, Kind, Tool, Toolbox, parameters
from v4cli.agent.transcript import Transcript
from v4cli.chat.turn import Chat, Options
from v4cli.errors import UsageError
from v4cli.paths import NANO

ECHO = Tool("echo", "Say it", parameters((), text="what"), Kind.READ, lambda arguments, context: arguments["text"])


@pytest.fixture(scope="module")
def nano():
    return Chat.open(NANO)


@pytest.fixture
def talk(nano, tmp_path):
    """talk(turn, turn, ...) gives a conversation with a model that says that."""

    def made(*turns, transcript=None) -> Conversation:
        chat = Chat(nano.engine, nano.tokenizer, nano.defaults, Forgetful(nano.engine, nano.tokenizer, turns))
        agent = Agent(chat, Toolbox([ECHO]), Context(tmp_path), lambda call, context: Decision(True))
        return Conversation(transcript or Transcript.new(tmp_path / "chats"), agent, Options(False))

    return made


class Forgetful(Scripted):
    """Whatever was fed can be taken back."""

    def sync(self, tokens, *rest) -> bool:
        self.tokens = []
        return super().sync(tokens, *rest)


def contents(conversation) -> list[str]:
    return [message["content"] for message in conversation.messages]


def saved(conversation) -> list[dict]:
    return Transcript.load(conversation.transcript.path).messages


def ask(conversation, text: str, **options) -> list[dict]:
    return [event.message for event in conversation.ask(text, **options) if isinstance(event, Said)]


def test_everything_said_is_recorded_as_it_comes(talk):
    conversation = talk(block(invoke("echo", text="a")), "Done.")
    events = conversation.ask("go", shown="@file")
    for event in events:
        if isinstance(event, Said):
            assert saved(conversation)[-1] == event.message
    assert contents(conversation) == ["go", "", "a", "Done."] and saved(conversation) == conversation.messages
    assert conversation.messages[0]["shown"] == "@file"


def test_an_empty_message_is_refused_and_leaves_nothing(talk):
    conversation = talk()
    with pytest.raises(UsageError, match="empty"):
        conversation.ask(" \n")
    assert conversation.messages == [] and not conversation.transcript.path.exists()


def test_undo_and_retry_go_back_to_the_last_question(talk):
    conversation = talk("One.", block(invoke("echo", text="a")), "Two.", "Three.")
    ask(conversation, "first")
    ask(conversation, "second", shown="2nd")
    list(conversation.retry())
    assert contents(conversation) == ["first", "One.", "second", "Three."]
    assert conversation.undo() == "2nd" and conversation.undo() == "first"
    assert conversation.messages == saved(conversation) == []
    for action in (conversation.undo, conversation.retry):
        with pytest.raises(UsageError, match="nothing has been said"):
            action()


def test_a_fork_leaves_the_original_as_it_is(talk):
    conversation = talk("One.", "Two.")
    ask(conversation, "first")
    original = conversation.transcript
    assert conversation.fork() == conversation.transcript.id != original.id
    ask(conversation, "second")
    assert contents(conversation) == ["first", "One.", "second", "Two."]
    assert [m["content"] for m in Transcript.load(original.path).messages] == ["first", "One."]


def test_compact_goes_on_from_a_summary(talk):
    conversation = talk("One.", "We said one. ", "Two.")
    conversation.transcript.set(system="Be brief.")
    ask(conversation, "first")
    list(conversation.compact())
    ask(conversation, "second")
    assert contents(conversation) == ["Be brief.", SUMMARY_HEAD + "We said one.", "second", "Two."]
    assert saved(conversation) == conversation.messages[1:]


@pytest.mark.parametrize("summary", ["", "  ", block(invoke("echo", text="a"))])
def test_without_a_summary_nothing_changes(talk, summary):
    conversation = talk("One.", summary)
    ask(conversation, "first")
    with pytest.raises(UsageError, match="as it was"):
        list(conversation.compact())
    assert contents(conversation) == ["first", "One."]


def test_an_interrupted_summary_changes_nothing(talk):
    conversation = talk("One.", "We said one.")
    ask(conversation, "first")
    with pytest.raises(UsageError, match="interrupted"):
        list(conversation.compact(cancelled=lambda: True))
    assert contents(conversation) == ["first", "One."]


def test_a_call_without_a_result_gets_one_before_the_next_question(talk):
    conversation = talk(block(invoke("echo", text="a"), invoke("echo", text="b")), "I see.")
    for event in conversation.ask("go"):
        if isinstance(event, Said) and event.message["role"] == "tool":
            break  # as if the program had ended here
    again = talk("I see.", transcript=Transcript.load(conversation.transcript.path))
    ask(again, "well?")
    assert contents(again) == ["go", "", "a", "error: it was not finished", "well?", "I see."]
    assert again.messages[3]["tool_call_id"] == "call_1"


def test_ids_of_another_tokenizer_are_forgotten_for_good(talk, nano, tmp_path):
    conversation = talk("One.")
    ask(conversation, "first")
    before = conversation.transcript.path.stat().st_size
    same = talk("Two.", transcript=Transcript.load(conversation.transcript.path))
    assert "sampled" in same.messages[-1]
    assert conversation.transcript.path.stat().st_size == before  # to look at it is not to write
    shutil.copytree(NANO, tmp_path / "other")
    with (tmp_path / "other" / "tokenizer.json").open("a") as file:
        file.write(" ")
    other = Chat.open(tmp_path / "other")
    agent = Agent(other, Toolbox(), Context(tmp_path), lambda call, context: Decision(True))
    Conversation(Transcript.load(conversation.transcript.path), agent, Options(False))
    back = talk("Three.", transcript=Transcript.load(conversation.transcript.path))
    assert contents(back) == ["first", "One."] and "sampled" not in back.messages[-1]


def test_export_has_everything_but_token_ids(talk):
    conversation = talk(block(invoke("echo", text="```\n# x")), "Done.")
    conversation.transcript.set(system="Be brief.")
    ask(conversation, "go")
    exported = json.loads(to_json(conversation.transcript))
    assert exported["about"]["system"] == "Be brief." and "sampled" not in str(exported)
    assert [message["role"] for message in exported["messages"]] == ["user", "assistant", "tool", "assistant"]
    text = to_markdown(conversation.transcript)
    for part in (
        "# go\n",
        "## System\n\nBe brief.",
        "**echo**",
        '"text"',
        "````\n```\n# x\n````",
        "## Assistant\n\nDone.",
    ):
        assert part in text


def test_export_of_odd_messages_does_not_fail(tmp_path):
    odd = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool"},
        {"role": "assistant", "tool_calls": None},
    ]
    text = to_markdown(Transcript.new(tmp_path, odd))
    assert "a\n\n[Unsupported image]" in text and "**f**" in text
